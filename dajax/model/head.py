"""The head: from the finest feature map to depth (DPT, Ranftl et al. 2021, arXiv:2103.13413)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax.config import DepthAnythingConfig
from dajax.model.layers import Conv3x3, Dense, Weights, convolve, project
from dajax.model.neck import FusedFeatures
from dajax.model.precision import wide
from dajax.model.resize import resize_and_apply


class Head(nn.Module):
    """Three convolutions. The features are enlarged before the first and, to the size of the pixels, before the second.

    Attributes:
        config: the architecture.
        dtype: the computation dtype of the first convolution. The other two compute in at least float32.
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
        # At full size everything is in at least float32, because rounding errors would be visible in the depth map.
        dtype, last = self.dtype, wide(self.dtype)
        half = config.fusion_hidden_size // 2
        conv1 = Conv3x3(half, dtype, stddev, name="conv1").weights(features_bhwc.shape[-1])
        conv2 = Conv3x3(config.head_hidden_size, last, stddev, name="conv2").weights(half)
        conv3 = Dense(1, last, stddev, name="conv3").weights(config.head_hidden_size)
        activation = nn.sigmoid if config.is_metric else nn.relu

        def narrow(x_bhwc: Array, weights: Weights, row_padding: int) -> Array:
            return convolve(x_bhwc, weights, dtype, row_padding=row_padding)

        def depth(x_bhwc: Array, weights: tuple[Weights, Weights], row_padding: int) -> Array:
            x_bhwc = nn.relu(convolve(x_bhwc, weights[0], last, row_padding=row_padding))
            depth_bhw = project(x_bhwc, weights[1], last)[..., 0]
            return activation(depth_bhw) * jnp.asarray(config.max_depth, depth_bhw.dtype)

        features_bhwc = resize_and_apply(narrow, fused.size, features_bhwc, conv1)
        return resize_and_apply(depth, size, features_bhwc, (conv2, conv3))
