"""Bilinear resizing of feature maps with aligned corners."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax.resample import linear_taps


def resize_align_corners(
    maps_bhwc: Float[Array, "batch h_in w_in width"], size: tuple[int, int]
) -> Float[Array, "batch h_out w_out width"]:
    """Resize maps bilinearly so that the centres of the corner pixels stay where they are.

    What PyTorch calls `interpolate(mode="bilinear", align_corners=True)`. Every output row is a weighted sum of two
    input rows, and every output column of two columns: two gathers each cost less than a dense matrix product.
    """
    for axis, size_out in ((1, size[0]), (2, size[1])):
        if maps_bhwc.shape[axis] == size_out:
            continue
        low, high, fraction = linear_taps(maps_bhwc.shape[axis], size_out)
        weight = jnp.asarray(fraction, maps_bhwc.dtype).reshape([-1 if a == axis else 1 for a in range(4)])
        maps_bhwc = jnp.take(maps_bhwc, low, axis) * (1 - weight) + jnp.take(maps_bhwc, high, axis) * weight
    return maps_bhwc
