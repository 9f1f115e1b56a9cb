"""DPT: the neck makes one feature map of the tokens of four layers, and the head makes depth of it.

Ranftl et al. 2021, arXiv:2103.13413.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax import kernels
from dajax.config import DepthAnythingConfig
from dajax.model.layers import Conv3x3, Dense, parameter


class BlockUpsample(nn.Module):
    """A transposed convolution whose stride equals its kernel, so that every position becomes a block of its own."""

    config: DepthAnythingConfig
    factor: int

    @nn.compact
    def weights(self, channels: int) -> kernels.Weights:
        """Return kernel and bias."""
        init = nn.initializers.normal(self.config.initializer_range)
        kernel = parameter(self, "kernel", init, (self.factor, self.factor, channels, channels))
        return kernel, parameter(self, "bias", nn.initializers.zeros, (channels,))


@flax.struct.dataclass
class Level:
    """The feature map of one level, before the transposed convolution that enlarges it. It is a pytree.

    Attributes:
        features_bhwc: the features, [batch, height, width, channels].
        upsampling: Kernel and bias of a `BlockUpsample`; None for levels that are not enlarged.
    """

    features_bhwc: Any
    upsampling: Any


class Reassemble(nn.Module):
    """Bring one tap to the number of channels and the resolution of its level.

    Attributes:
        config: the architecture.
        dtype: the computation dtype.
        width: the number of output channels.
        factor: the level's resolution divided by that of the patch grid.
    """

    config: DepthAnythingConfig
    dtype: jnp.dtype
    width: int
    factor: int | float

    @nn.compact
    def __call__(self, tap_bnd: Float[Array, "batch tokens dim"], grid: tuple[int, int]) -> Level:
        """Return the level, of which `Lateral` computes the enlargement.

        Args:
            tap_bnd: the tokens, class token first.
            grid: the rows and columns of patches.
        """
        config, dtype = self.config, self.dtype
        weights = _dense(config, dtype, self.width).weights(tap_bnd.shape[2])
        projected_bnc = kernels.project_patches(tap_bnd, weights, dtype).astype(dtype)
        features_bhwc = projected_bnc.reshape(tap_bnd.shape[0], *grid, self.width)
        if self.factor > 1:
            upsample = BlockUpsample(config, int(self.factor), name="upsample")
            return Level(features_bhwc, upsample.weights(self.width))
        if self.factor < 1:
            downsample = _conv3x3(config, dtype, self.width, "downsample", stride=int(1 / self.factor))
            features_bhwc = downsample(features_bhwc).astype(dtype)
        return Level(features_bhwc, None)


class Lateral(nn.Module):
    """The 3x3 convolution, without bias, that brings a level to the number of channels of the fusion."""

    config: DepthAnythingConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, level: Level) -> Float[Array, "batch h_out w_out c_out"]:
        """Return the enlarged and convolved features. Nothing is between the two, so they may be computed as one."""
        config, dtype, features_bhwc = self.config, self.dtype, level.features_bhwc
        shape = (3, 3, features_bhwc.shape[-1], config.fusion_hidden_size)
        kernel = parameter(self, "kernel", nn.initializers.normal(config.initializer_range), shape)
        if level.upsampling is None:
            return kernels.convolve(features_bhwc, (kernel, None), dtype).astype(dtype)
        return kernels.upsample_and_convolve(features_bhwc, level.upsampling, kernel, dtype)


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, around a skip connection."""

    config: DepthAnythingConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features_bhwc: Float[Array, "batch height width c"]) -> Float[Array, "batch height width c"]:
        """Return the refined features."""
        width = self.config.fusion_hidden_size
        first, second = (
            _conv3x3(self.config, self.dtype, width, name).weights(width) for name in ("convolution1", "convolution2")
        )
        return kernels.residual_unit(features_bhwc, first, second, self.dtype)


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
        return kernels.resize(self.features_bhwc, self.size)


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
            width, factor = config.neck_hidden_sizes[i], config.reassemble_factors[i]
            level = Reassemble(config, dtype, width, factor, name=f"reassemble_{i}")(tap_bnd, grid)
            levels.append(Lateral(config, dtype, name=f"conv_{i}")(level))

        fused: list[FusedFeatures] = []
        for i, level_bhwc in enumerate(reversed(levels)):
            fusion = Fusion(config, dtype, name=f"fusion_{i}")
            height, width = level_bhwc.shape[1:3]
            features_bhwc = fusion(fused[-1].enlarged(), level_bhwc) if fused else fusion(level_bhwc, None)
            last = i == len(levels) - 1
            size = (2 * height, 2 * width) if last else levels[-i - 2].shape[1:3]
            fused.append(FusedFeatures(features_bhwc, (size[0], size[1])))
        return tuple(fused)


class Head(nn.Module):
    """Three convolutions. The features are enlarged before the first and, to the size of the pixels, before the second.

    Attributes:
        config: the architecture.
        dtype: the computation dtype of the first convolution.
    """

    config: DepthAnythingConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, fused: FusedFeatures, size: tuple[int, int]) -> Float[Array, "batch height width"]:
        """Return the depth: affine-invariant inverse depth (relative models) or metres (metric models).

        Args:
            fused: the finest level of the neck.
            size: Height and width of the depth.
        """
        config, stddev = self.config, self.config.initializer_range
        features_bhwc = fused.features_bhwc
        # At full size rounding errors would be visible in the depth map.
        dtype, last = self.dtype, kernels.depth_dtype(self.dtype)
        half = config.fusion_hidden_size // 2
        conv1 = Conv3x3(half, dtype, stddev, name="conv1").weights(features_bhwc.shape[-1])
        conv2 = Conv3x3(config.head_hidden_size, last, stddev, name="conv2").weights(half)
        conv3 = Dense(1, last, stddev, name="conv3").weights(config.head_hidden_size)

        features_bhwc = kernels.resize_and_convolve(features_bhwc, fused.size, conv1, dtype)
        depth_bhw = kernels.resize_and_convolve(features_bhwc, size, conv2, last, projection=conv3)[..., 0]
        activation = nn.sigmoid if config.is_metric else nn.relu
        return activation(depth_bhw) * jnp.asarray(config.max_depth, depth_bhw.dtype)


def _dense(config: DepthAnythingConfig, dtype: jnp.dtype, width: int) -> Dense:
    return Dense(width, dtype, config.initializer_range, name="projection")


def _conv3x3(config: DepthAnythingConfig, dtype: jnp.dtype, width: int, name: str, *, stride: int = 1) -> Conv3x3:
    return Conv3x3(width, dtype, config.initializer_range, stride, name=name)
