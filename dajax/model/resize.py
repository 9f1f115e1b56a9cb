"""Bilinear resizing of feature maps with aligned corners."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dajax.model.platform import target_platform
from dajax.model.precision import product_precision, wide
from dajax.resample import linear_matrix, linear_taps

# Strips of so many bytes stay in a processor's cache while they are worked on, but each has at least so many rows: two
# more are computed at its edges.
_STRIP_BYTES = 2**22
_STRIP_ROWS = 32


def resize_align_corners(
    maps_bhwc: Float[Array, "batch h_in w_in width"], size: tuple[int, int]
) -> Float[Array, "batch h_out w_out width"]:
    """Resize maps bilinearly so that the centres of the corner pixels stay where they are.

    What PyTorch calls `interpolate(mode="bilinear", align_corners=True)`. Every output row is a weighted sum of two
    input rows, and every output column of two columns: two gathers each cost less than a dense matrix product.
    """
    for axis, size_out in ((1, size[0]), (2, size[1])):
        if maps_bhwc.shape[axis] != size_out:
            maps_bhwc = _interpolate(maps_bhwc, axis, size_out)
    return maps_bhwc


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _interpolate(maps_bhwc: Array, axis: int, size_out: int) -> Array:
    low, high, fraction = linear_taps(maps_bhwc.shape[axis], size_out)
    weight = jnp.asarray(fraction, maps_bhwc.dtype).reshape([-1 if a == axis else 1 for a in range(4)])
    return jnp.take(maps_bhwc, low, axis) * (1 - weight) + jnp.take(maps_bhwc, high, axis) * weight


@_interpolate.defjvp
def _interpolate_derivative(
    axis: int, size_out: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    # The transpose of a gather adds up number by number: in no fixed order on a GPU, and slower than a product
    # everywhere. That of a product is a product.
    (maps_bhwc,), (tangent_bhwc,) = primals, tangents
    matrix = linear_matrix(maps_bhwc.shape[axis], size_out, np.float64)
    equation = {1: "oh,bhwc->bowc", 2: "ow,bhwc->bhoc"}[axis]
    dtype = tangent_bhwc.dtype
    product = jnp.einsum(
        equation,
        jnp.asarray(matrix, dtype),
        tangent_bhwc,
        precision=product_precision(dtype),
        preferred_element_type=wide(dtype),
    )
    return _interpolate(maps_bhwc, axis, size_out), product.astype(dtype)


# (maps, weights, row_padding) -> maps of as many rows with a padding of 1, of 2 rows less without.
OfRows = Callable[[Array, Any, int], Array]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def resize_and_apply(
    function: OfRows, size: tuple[int, int], maps_bhwc: Float[Array, "batch h_in w_in c_in"], weights: Any
) -> Float[Array, "batch h_out ..."]:
    """Return `function(resize_align_corners(maps_bhwc, size), weights, row_padding=1)`.

    On a CPU image by image and in strips of rows, so that resized maps never leave the cache. They are the largest
    there are: beyond 32 MiB, memory for them comes from the system with every call, page by page, which costs as much
    as the convolution.

    Args:
        function: one 3x3 convolution, and what works on each pixel alone. It calls no modules.
        size: (h_out, w_out).
        maps_bhwc: to be resized.
        weights: a pytree, for `function`.
    """
    row_bytes = size[1] * maps_bhwc.shape[3] * maps_bhwc.dtype.itemsize
    rows = max(_STRIP_BYTES // row_bytes, _STRIP_ROWS)
    if target_platform() != "cpu" or rows >= size[0]:
        return _whole(function, size, maps_bhwc, weights)
    strips = math.ceil(size[0] / rows)
    rows = math.ceil(size[0] / strips)
    # The last strip ends with the image: it repeats rows of the one before.
    starts = np.minimum(np.arange(strips) * rows, size[0] - rows)

    def one_image(maps_hwc: Array) -> Array:
        def one_strip(taps: tuple[Array, ...]) -> Array:
            low, high, low_weight, high_weight = taps
            strip_hwc = _weighted(maps_hwc, low, low_weight) + _weighted(maps_hwc, high, high_weight)
            return function(_interpolate(strip_hwc[None], 2, size[1]), weights, 0)[0]

        def put(result: Array, place_and_taps: tuple[Array, Any]) -> tuple[Array, None]:
            place, taps = place_and_taps
            return jax.lax.dynamic_update_slice_in_dim(result, one_strip(taps), place, 0), None

        taps = _strips(maps_hwc, size[0], starts, rows)
        of_strip = jax.eval_shape(one_strip, jax.tree.map(lambda x: x[0], taps))
        # Any number that is not known before: the zeros with which `jax.lax.map` begins would be made before anything
        # else, and take memory from the beginning.
        start = jnp.broadcast_to(maps_hwc[0, 0, 0].astype(of_strip.dtype), (size[0], *of_strip.shape[1:]))
        return jax.lax.scan(put, start, (jnp.asarray(starts), taps))[0]

    if maps_bhwc.shape[0] == 1:
        return one_image(maps_bhwc[0])[None]
    return jax.lax.map(one_image, maps_bhwc)


@resize_and_apply.defjvp
def _derivative(
    function: OfRows, size: tuple[int, int], primals: tuple[Array, Any], tangents: tuple[Array, Any]
) -> tuple[Array, Array]:
    # The gradient of a strip would be added up in maps of the whole size.
    return jax.jvp(partial(_whole, function, size), primals, tangents)


def _whole(function: OfRows, size: tuple[int, int], maps_bhwc: Array, weights: Any) -> Array:
    return function(resize_align_corners(maps_bhwc, size), weights, 1)


def _weighted(maps_hwc: Array, index: Array, weight: Array) -> Array:
    return jnp.take(maps_hwc, index, 0) * weight[:, None, None]


def _strips(maps_hwc: Array, height: int, starts: np.ndarray, rows: int) -> tuple[Array, ...]:
    """Return the taps of each strip's rows, and of the ones above and below: of weight 0 beyond the image."""
    low, high, fraction = linear_taps(maps_hwc.shape[0], height)
    wanted = starts[:, None] + np.arange(-1, rows + 1)
    inside = (wanted >= 0) & (wanted < height)
    wanted = wanted.clip(0, height - 1)
    weights = np.where(inside, 1 - fraction[wanted], 0), np.where(inside, fraction[wanted], 0)
    return (jnp.asarray(low[wanted]), jnp.asarray(high[wanted]), *(jnp.asarray(w, maps_hwc.dtype) for w in weights))
