"""The neck: tokens of four depths to one map (DPT, Ranftl et al. 2021, arXiv:2103.13413)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax.config import DepthAnythingConfig

from .resize import resize_align_corners


class BlockUpsample(nn.Module):
    """A transposed convolution whose stride equals its kernel: every pixel becomes a block of its own."""

    config: DepthAnythingConfig
    dtype: jnp.dtype
    factor: int

    @nn.compact
    def __call__(self, maps_bhwc: Float[Array, "batch height width c"]) -> Float[Array, "batch h_out w_out c"]:
        """Return maps that are `factor` times as high and as wide."""
        batch, height, width, channels = maps_bhwc.shape
        f = self.factor
        kernel = self.param(
            "kernel", nn.initializers.normal(self.config.initializer_range), (f, f, channels, channels)
        ).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(self.dtype)
        blocks = jnp.einsum("bhwc,yxcd->bhywxd", maps_bhwc, kernel)
        return blocks.reshape(batch, height * f, width * f, channels) + bias


class Reassemble(nn.Module):
    """Bring one tap to its width and its resolution."""

    config: DepthAnythingConfig
    dtype: jnp.dtype
    width: int
    factor: int | float

    @nn.compact
    def __call__(self, maps_bhwc: Float[Array, "batch height width c_in"]) -> Float[Array, "batch h_out w_out c_out"]:
        """Return maps of `factor` times the resolution of the patch grid."""
        init = nn.initializers.normal(self.config.initializer_range)
        maps_bhwc = nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="projection")(maps_bhwc)
        if self.factor > 1:
            return BlockUpsample(self.config, self.dtype, int(self.factor), name="upsample")(maps_bhwc)
        if self.factor < 1:
            # Padding is (1, 1) on even grids too, where "SAME" would pad on one side only.
            stride = int(1 / self.factor)
            return _conv3x3(self.config, self.dtype, self.width, "downsample", stride=stride)(maps_bhwc)
        return maps_bhwc


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, around a skip connection."""

    config: DepthAnythingConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps_bhwc: Float[Array, "batch height width c"]) -> Float[Array, "batch height width c"]:
        """Return refined maps."""
        x = maps_bhwc
        for name in ("convolution1", "convolution2"):
            x = _conv3x3(self.config, self.dtype, self.config.fusion_hidden_size, name)(nn.relu(x))
        return maps_bhwc + x


class Fusion(nn.Module):
    """Add a finer level to what came from the coarser ones, refine, and enlarge."""

    config: DepthAnythingConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        maps_bhwc: Float[Array, "batch height width c"],
        finer_bhwc: Float[Array, "batch height width c"] | None,
        size: tuple[int, int],
    ) -> Float[Array, "batch h_out w_out c"]:
        """Return fused maps of `size`."""
        unit1 = ResidualUnit(self.config, self.dtype, name="residual_layer1")
        unit2 = ResidualUnit(self.config, self.dtype, name="residual_layer2")
        if finer_bhwc is not None:
            maps_bhwc = maps_bhwc + unit1(finer_bhwc)
        elif self.is_initializing():
            unit1(maps_bhwc)  # the coarsest level does not use this unit, but every checkpoint has its tensors
        init = nn.initializers.normal(self.config.initializer_range)
        projection = nn.Dense(self.config.fusion_hidden_size, dtype=self.dtype, kernel_init=init, name="projection")
        # The paper enlarges first. Bilinear weights sum to one, so a pointwise linear map may as well come before: the
        # same numbers for a quarter of the work.
        return resize_align_corners(projection(unit2(maps_bhwc)), size)


class Neck(nn.Module):
    """Reassemble the taps, bring them to one width, and fuse them from coarse to fine."""

    config: DepthAnythingConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, taps: tuple[Float[Array, "batch tokens dim"], ...], grid: tuple[int, int]
    ) -> tuple[Float[Array, "batch _ _ c"], ...]:
        """Return the fused maps from the coarsest level to the finest.

        Args:
            taps: tokens of the encoder, class token first.
            grid: rows and columns of patches.
        """
        config, dtype = self.config, self.dtype
        levels = []
        for i, tap_bnd in enumerate(taps):
            maps_bhwd = tap_bnd[:, 1:].reshape(tap_bnd.shape[0], *grid, tap_bnd.shape[2])
            width, factor = config.neck_hidden_sizes[i], config.reassemble_factors[i]
            maps_bhwc = Reassemble(config, dtype, width, factor, name=f"reassemble_{i}")(maps_bhwd)
            lateral = _conv3x3(config, dtype, config.fusion_hidden_size, f"conv_{i}", use_bias=False)
            levels.append(lateral(maps_bhwc))

        fused: list[Array] = []
        for i, level_bhwc in enumerate(reversed(levels)):
            height, width = level_bhwc.shape[1:3]
            finer = None if i == len(levels) - 1 else levels[-i - 2]
            size = (2 * height, 2 * width) if finer is None else (finer.shape[1], finer.shape[2])
            fusion = Fusion(config, dtype, name=f"fusion_{i}")
            fused.append(fusion(fused[-1], level_bhwc, size) if fused else fusion(level_bhwc, None, size))
        return tuple(fused)


def _conv3x3(
    config: DepthAnythingConfig, dtype: jnp.dtype, width: int, name: str, *, stride: int = 1, use_bias: bool = True
) -> nn.Conv:
    init = nn.initializers.normal(config.initializer_range)
    return nn.Conv(width, (3, 3), stride, padding=1, use_bias=use_bias, dtype=dtype, kernel_init=init, name=name)
