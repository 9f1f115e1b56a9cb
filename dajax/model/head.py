"""The head: the finest map to depth."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax.config import DepthAnythingConfig

from .precision import wide
from .resize import resize_align_corners


class Head(nn.Module):
    """Three convolutions with an enlargement to the picture's size after the first."""

    config: DepthAnythingConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, maps_bhwc: Float[Array, "batch h_in w_in c"], size: tuple[int, int]
    ) -> Float[Array, "batch height width"]:
        """Return depth of `size`: affine-invariant inverse depth (relative models) or metres (metric ones)."""
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        # From full size on everything is at least float32: what is rounded here is seen in the depth map.
        last = wide(self.dtype)
        half = config.fusion_hidden_size // 2
        x = nn.Conv(half, (3, 3), padding=1, dtype=self.dtype, kernel_init=init, name="conv1")(maps_bhwc)
        x = resize_align_corners(x.astype(last), size)
        x = nn.Conv(config.head_hidden_size, (3, 3), padding=1, dtype=last, kernel_init=init, name="conv2")(x)
        x = nn.Dense(1, dtype=last, kernel_init=init, name="conv3")(nn.relu(x))[..., 0]
        activation = nn.sigmoid if config.is_metric else nn.relu
        return activation(x) * jnp.asarray(config.max_depth, x.dtype)
