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

# On a CPU, large features are computed in strips of about _STRIP_BYTES, which stay in the cache. A strip has at least
# _STRIP_ROWS rows, because two more rows have to be computed at its edges.
_STRIP_BYTES = 2**22
_STRIP_ROWS = 32


def resize_align_corners(
    features_bhwc: Float[Array, "batch h_in w_in width"], size: tuple[int, int]
) -> Float[Array, "batch h_out w_out width"]:
    """Resize feature maps bilinearly so that the centres of the corner pixels stay where they are.

    PyTorch calls it `interpolate(mode="bilinear", align_corners=True)`. Every output row is a weighted sum of two input
    rows, and every output column of two input columns. Two gathers for each cost less than a dense matrix product.
    """
    for axis, size_out in ((1, size[0]), (2, size[1])):
        if features_bhwc.shape[axis] != size_out:
            features_bhwc = _interpolate(features_bhwc, axis, size_out)
    return features_bhwc


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _interpolate(features_bhwc: Array, axis: int, size_out: int) -> Array:
    low, high, fraction = linear_taps(features_bhwc.shape[axis], size_out)
    weight = jnp.asarray(fraction, features_bhwc.dtype).reshape([-1 if a == axis else 1 for a in range(4)])
    return jnp.take(features_bhwc, low, axis) * (1 - weight) + jnp.take(features_bhwc, high, axis) * weight


@_interpolate.defjvp
def _interpolate_derivative(
    axis: int, size_out: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    # The transpose of a gather adds number by number: in no fixed order on a GPU, and more slowly than a matrix product
    # everywhere. The transpose of a matrix product is a matrix product.
    (features_bhwc,), (tangent_bhwc,) = primals, tangents
    matrix = linear_matrix(features_bhwc.shape[axis], size_out, np.float64)
    equation = {1: "oh,bhwc->bowc", 2: "ow,bhwc->bhoc"}[axis]
    dtype = tangent_bhwc.dtype
    product = jnp.einsum(
        equation,
        jnp.asarray(matrix, dtype),
        tangent_bhwc,
        precision=product_precision(dtype),
        preferred_element_type=wide(dtype),
    )
    return _interpolate(features_bhwc, axis, size_out), product.astype(dtype)


# (features, weights, row_padding) -> features with as many rows if row_padding is 1, with two rows less if it is 0.
OfRows = Callable[[Array, Any, int], Array]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def resize_and_apply(
    function: OfRows, size: tuple[int, int], features_bhwc: Float[Array, "batch h_in w_in c_in"], weights: Any
) -> Float[Array, "batch h_out ..."]:
    """Return `function(resize_align_corners(features_bhwc, size), weights, row_padding=1)`.

    On a CPU it works image by image and in strips of rows, so that the resized features never leave the cache. They are
    the network's largest arrays. Beyond 32 MiB their memory would come from the system in every call, page by page,
    which takes as long as the convolution.

    Args:
        function: a function that applies one 3x3 convolution, and otherwise works on each pixel alone. It calls no
            modules.
        size: the height and width to resize to.
        features_bhwc: the feature maps to resize.
        weights: a pytree that is passed to `function`.
    """
    row_bytes = size[1] * features_bhwc.shape[3] * features_bhwc.dtype.itemsize
    rows = max(_STRIP_BYTES // row_bytes, _STRIP_ROWS)
    if target_platform() != "cpu" or rows >= size[0]:
        return _whole(function, size, features_bhwc, weights)
    strips = math.ceil(size[0] / rows)
    rows = math.ceil(size[0] / strips)
    # The last strip ends with the image, so it may repeat rows of the strip before.
    starts = np.minimum(np.arange(strips) * rows, size[0] - rows)

    def one_image(features_hwc: Array) -> Array:
        def one_strip(taps: tuple[Array, ...]) -> Array:
            low, high, low_weight, high_weight = taps
            strip_hwc = _weighted(features_hwc, low, low_weight) + _weighted(features_hwc, high, high_weight)
            return function(_interpolate(strip_hwc[None], 2, size[1]), weights, 0)[0]

        def put(result: Array, place_and_taps: tuple[Array, Any]) -> tuple[Array, None]:
            place, taps = place_and_taps
            return jax.lax.dynamic_update_slice_in_dim(result, one_strip(taps), place, 0), None

        taps = _strips(features_hwc, size[0], starts, rows)
        of_strip = jax.eval_shape(one_strip, jax.tree.map(lambda x: x[0], taps))
        # The loop starts from any number that depends on the features, and overwrites it. `jax.lax.map` would start
        # from zeros; XLA makes zeros before anything else, and they would occupy memory from the beginning.
        start = jnp.broadcast_to(features_hwc[0, 0, 0].astype(of_strip.dtype), (size[0], *of_strip.shape[1:]))
        return jax.lax.scan(put, start, (jnp.asarray(starts), taps))[0]

    if features_bhwc.shape[0] == 1:
        return one_image(features_bhwc[0])[None]
    return jax.lax.map(one_image, features_bhwc)


@resize_and_apply.defjvp
def _derivative(
    function: OfRows, size: tuple[int, int], primals: tuple[Array, Any], tangents: tuple[Array, Any]
) -> tuple[Array, Array]:
    # The derivative works on all rows: in a loop, every strip would add its gradient to an array of the full size.
    return jax.jvp(partial(_whole, function, size), primals, tangents)


def _whole(function: OfRows, size: tuple[int, int], features_bhwc: Array, weights: Any) -> Array:
    return function(resize_align_corners(features_bhwc, size), weights, 1)


def _weighted(features_hwc: Array, index: Array, weight: Array) -> Array:
    return jnp.take(features_hwc, index, 0) * weight[:, None, None]


def _strips(features_hwc: Array, height: int, starts: np.ndarray, rows: int) -> tuple[Array, ...]:
    """Return the two input rows and their weights for each row of each strip, and for the rows above and below it.

    Beyond the image the weights are 0.
    """
    low, high, fraction = linear_taps(features_hwc.shape[0], height)
    wanted = starts[:, None] + np.arange(-1, rows + 1)
    inside = (wanted >= 0) & (wanted < height)
    wanted = wanted.clip(0, height - 1)
    weights = np.where(inside, 1 - fraction[wanted], 0), np.where(inside, fraction[wanted], 0)
    return (jnp.asarray(low[wanted]), jnp.asarray(high[wanted]), *(jnp.asarray(w, features_hwc.dtype) for w in weights))
