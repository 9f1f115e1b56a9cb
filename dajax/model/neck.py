"""The neck: from the tokens of four layers to one feature map (DPT, Ranftl et al. 2021, arXiv:2103.13413)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax.config import DepthAnythingConfig
from dajax.model.layers import Conv3x3, Dense, product
from dajax.model.parameters import parameter
from dajax.model.resize import resize_align_corners


class BlockUpsample(nn.Module):
    """A transposed convolution whose stride equals its kernel, so that every position becomes a block of its own."""

    config: DepthAnythingConfig
    dtype: jnp.dtype
    factor: int

    @nn.compact
    def __call__(self, features_bhwc: Float[Array, "batch height width c"]) -> Float[Array, "batch h_out w_out c"]:
        """Return features that are `factor` times as high and as wide."""
        batch, height, width, channels = features_bhwc.shape
        f = self.factor
        init = nn.initializers.normal(self.config.initializer_range)
        kernel = parameter(self, "kernel", init, (f, f, channels, channels))
        bias = parameter(self, "bias", nn.initializers.zeros, (channels,))
        features_bhwc = product("bhwc,yxcd->bhywxd", features_bhwc, kernel, self.dtype).reshape(
            batch, height * f, width * f, channels
        )
        return (features_bhwc + bias.astype(features_bhwc.dtype)).astype(self.dtype)


class Reassemble(nn.Module):
    """Bring one tap to the number of channels and the resolution of its level.

    Attributes:
        config: the architecture.
        dtype: the computation dtype.
        width: the number of output channels.
        factor: the output's resolution divided by that of the patch grid.
    """

    config: DepthAnythingConfig
    dtype: jnp.dtype
    width: int
    factor: int | float

    @nn.compact
    def __call__(
        self, features_bhwc: Float[Array, "batch height width c_in"]
    ) -> Float[Array, "batch h_out w_out c_out"]:
        """Return features at `factor` times the resolution of the patch grid."""
        features_bhwc = _dense(self.config, self.dtype, self.width)(features_bhwc).astype(self.dtype)
        if self.factor > 1:
            return BlockUpsample(self.config, self.dtype, int(self.factor), name="upsample")(features_bhwc)
        if self.factor < 1:
            stride = int(1 / self.factor)
            downsample = _conv3x3(self.config, self.dtype, self.width, "downsample", stride=stride)
            return downsample(features_bhwc).astype(self.dtype)
        return features_bhwc


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, around a skip connection."""

    config: DepthAnythingConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features_bhwc: Float[Array, "batch height width c"]) -> Float[Array, "batch height width c"]:
        """Return the refined features."""
        x = features_bhwc
        for name in ("convolution1", "convolution2"):
            x = _conv3x3(self.config, self.dtype, self.config.fusion_hidden_size, name)(nn.relu(x)).astype(self.dtype)
        return features_bhwc + x


class Fusion(nn.Module):
    """Add a finer level to the result of the coarser levels, and refine the sum."""

    config: DepthAnythingConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        features_bhwc: Float[Array, "batch height width c"],
        finer_bhwc: Float[Array, "batch height width c"] | None,
    ) -> Float[Array, "batch height width c"]:
        """Return the fused features before their enlargement, which the paper counts as a part of the fusion.

        Args:
            features_bhwc: the enlarged result of the coarser levels; for the coarsest level, that level.
            finer_bhwc: the level to add; None for the coarsest level.
        """
        unit1 = ResidualUnit(self.config, self.dtype, name="residual_layer1")
        unit2 = ResidualUnit(self.config, self.dtype, name="residual_layer2")
        if finer_bhwc is not None:
            features_bhwc = features_bhwc + unit1(finer_bhwc)
        elif self.is_initializing():
            unit1(features_bhwc)  # the coarsest level does not use this unit, but every checkpoint has its tensors
        # The paper enlarges first. Bilinear weights sum to one, so the projection may come first as well: it gives the
        # same numbers for a quarter of the work.
        return _dense(self.config, self.dtype, self.config.fusion_hidden_size)(unit2(features_bhwc)).astype(self.dtype)


@flax.struct.dataclass
class FusedFeatures:
    """The fused features of one level, before their enlargement. It is a pytree.

    Attributes:
        features_bhwc: the features, [batch, height, width, channels].
        size: the height and width to enlarge them to.
    """

    features_bhwc: Any
    size: tuple[int, int] = flax.struct.field(pytree_node=False)

    def enlarged(self) -> Array:
        """Return the features enlarged to `size`."""
        return resize_align_corners(self.features_bhwc, self.size)


class Neck(nn.Module):
    """Reassemble the taps, bring them to one number of channels, and fuse them from coarse to fine."""

    config: DepthAnythingConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, taps: tuple[Float[Array, "batch tokens dim"], ...], grid: tuple[int, int]
    ) -> tuple[FusedFeatures, ...]:
        """Return the fused features from the coarsest level to the finest.

        Args:
            taps: the encoder's tokens after each tapped layer, class token first.
            grid: the rows and columns of patches.
        """
        config, dtype = self.config, self.dtype
        levels = []
        for i, tap_bnd in enumerate(taps):
            features_bhwd = tap_bnd[:, 1:].reshape(tap_bnd.shape[0], *grid, tap_bnd.shape[2])
            width, factor = config.neck_hidden_sizes[i], config.reassemble_factors[i]
            features_bhwc = Reassemble(config, dtype, width, factor, name=f"reassemble_{i}")(features_bhwd)
            lateral = _conv3x3(config, dtype, config.fusion_hidden_size, f"conv_{i}", use_bias=False)
            levels.append(lateral(features_bhwc).astype(dtype))

        fused: list[FusedFeatures] = []
        for i, level_bhwc in enumerate(reversed(levels)):
            fusion = Fusion(config, dtype, name=f"fusion_{i}")
            height, width = level_bhwc.shape[1:3]
            features_bhwc = fusion(fused[-1].enlarged(), level_bhwc) if fused else fusion(level_bhwc, None)
            last = i == len(levels) - 1
            size = (2 * height, 2 * width) if last else levels[-i - 2].shape[1:3]
            fused.append(FusedFeatures(features_bhwc, (size[0], size[1])))
        return tuple(fused)


def _dense(config: DepthAnythingConfig, dtype: jnp.dtype, width: int) -> Dense:
    return Dense(width, dtype, config.initializer_range, name="projection")


def _conv3x3(
    config: DepthAnythingConfig, dtype: jnp.dtype, width: int, name: str, *, stride: int = 1, use_bias: bool = True
) -> Conv3x3:
    return Conv3x3(width, dtype, config.initializer_range, stride, use_bias, name=name)
