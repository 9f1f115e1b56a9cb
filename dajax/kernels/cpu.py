"""The operations on CPUs: one image, one head and one strip of rows at a time, so that the work fits a cache.

The loops have derivative rules of their own, which compute gradients from whole feature maps: the gradient of a loop
over strips or images would add up arrays of the full size in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dajax.kernels import reference
from dajax.kernels.precision import product_precision, wide
from dajax.kernels.reference import Weights, convolve_and_project, interpolate
from dajax.resample import linear_taps

# How many attention scores are computed at a time, so that they stay in the cache, by the bytes of one number.
# Measured on a processor with 1 MiB of cache for each core and 32 MiB for all.
_CACHED_SCORES = {2: 2**20, 4: 2**21, 8: 2**20}

# Large feature maps are computed in strips of about _STRIP_BYTES, which stay in the cache. A strip has at least
# _STRIP_ROWS rows, because two more rows have to be computed at its edges.
_STRIP_BYTES = 2**22
_STRIP_ROWS = 32

# The images of a batch run one after another if each has at least this many patches: enough to keep all cores busy.
_PATCHES = 512


def has_enough_work(patches: int) -> bool:
    """Return whether one image of so many patches keeps all cores busy."""
    return patches >= _PATCHES


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def each_image(function: Callable[[Any, Array], Any], params: Any, pixels_bhwc: Array) -> Any:
    """Return `function(params, pixels_bhwc)`, computed image by image: a cache holds the activations of one image.

    The results of `function` are arrays whose first axis is the batch.
    """

    def alone(pixels_hwc: Array) -> Any:
        return function(params, pixels_hwc[None])

    return jax.tree.map(lambda x: x[:, 0], jax.lax.map(alone, pixels_bhwc))


@each_image.defjvp
def _each_image_derivative(
    function: Callable[[Any, Array], Any], primals: tuple[Any, Array], tangents: tuple[Any, Array]
) -> tuple[Any, Any]:
    # The derivative runs the whole batch: in a loop, every image would add its gradients to those of all params.
    return jax.jvp(function, primals, tangents)


@jax.custom_jvp
def attention(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> Array:
    """Compute one head at a time; if its scores do not fit into the cache, a part of its queries at a time."""
    batch, tokens, heads, width = query_bnhd.shape
    if batch == 0:
        return query_bnhd
    blocks = max(-(-tokens * tokens // _CACHED_SCORES[query_bnhd.dtype.itemsize]), 1)
    rows = -(-tokens // blocks)

    def of_head(x_bnhd: Array, i: Array, start: Array | int = 0, size: int = tokens) -> Array:
        return jax.lax.dynamic_slice(x_bnhd, (i // heads, start, i % heads, 0), (1, size, 1, width))[0, :, 0]

    def one_part(attended_bnhd: Array, number: Array) -> tuple[Array, None]:
        # The last part of a head ends at its last query, so it may repeat some queries of the part before.
        i, start = number // blocks, jnp.minimum(number % blocks * rows, tokens - rows)
        part_nd = _attend(of_head(query_bnhd, i, start, rows), of_head(key_bnhd, i), of_head(value_bnhd, i))
        place = (i // heads, start, i % heads, 0)
        return jax.lax.dynamic_update_slice(attended_bnhd, part_nd[None, :, None], place), None

    # The loop starts from the queries and overwrites all of them. `jax.lax.map` would start from zeros; XLA makes the
    # zeros of all layers before anything else, and they would occupy memory from the beginning.
    return jax.lax.scan(one_part, query_bnhd, jnp.arange(batch * heads * blocks))[0]


@attention.defjvp
def _attention_derivative(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    return jax.jvp(_attend_by_heads, primals, tangents)


def _attend_by_heads(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> Array:
    """Compute as many heads at a time as fit into the cache, in a loop whose gradient is a loop as well."""
    batch, tokens, heads, width = query_bnhd.shape
    apart = (x.swapaxes(1, 2).reshape(batch * heads, tokens, width) for x in (query_bnhd, key_bnhd, value_bnhd))
    at_a_time = max(_CACHED_SCORES[query_bnhd.dtype.itemsize] // (tokens * tokens), 1)
    attended = jax.lax.map(
        lambda head: _attend(head[0], head[1], head[2], kept=True), tuple(apart), batch_size=at_a_time
    )
    return attended.reshape(batch, heads, tokens, width).swapaxes(1, 2)


def _attend(query_nd: Array, key_md: Array, value_md: Array, kept: bool = False) -> Array:
    dtype, precision = value_md.dtype, product_precision(value_md.dtype)
    scores_nm = jnp.einsum(
        "nd,md->nm", query_nd, key_md, precision=precision, preferred_element_type=wide(dtype)
    )  # fmt: skip
    scale = query_nd.shape[-1] ** -0.5
    unnormalised_nm = jnp.exp((scores_nm - scores_nm.max(-1, keepdims=True)) * scale).astype(dtype)
    if not kept:
        # The barrier keeps XLA from computing the exponentials twice, for the product and for the sum. If a backward
        # pass needs them, there is no barrier: it would store them twice, before and after the barrier.
        unnormalised_nm = jax.lax.optimization_barrier(unnormalised_nm)
    mixed_nd = jnp.einsum(
        "nm,md->nd", unnormalised_nm, value_md, precision=precision, preferred_element_type=scores_nm.dtype
    )
    # Dividing after the product takes tokens * width divisions instead of tokens * tokens.
    return (mixed_nd / unnormalised_nm.sum(-1, dtype=scores_nm.dtype, keepdims=True)).astype(dtype)


def resize_and_convolve(
    features_bhwc: Float[Array, "batch h_in w_in c_in"],
    size: tuple[int, int],
    weights: Weights,
    dtype: Any,
    projection: Weights | None = None,
) -> Float[Array, "batch h_out w_out c_out"]:
    """Work image by image and in strips of rows, so that the resized features never leave the cache.

    They are the network's largest arrays. Beyond 32 MiB their memory would come from the system in every call, page by
    page, which takes as long as the convolution.
    """
    return _in_strips(size, jnp.dtype(dtype), features_bhwc, (weights, projection))


Both = tuple[Weights, Weights | None]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _in_strips(size: tuple[int, int], dtype: Any, features_bhwc: Array, both: Both) -> Array:
    row_bytes = size[1] * features_bhwc.shape[3] * features_bhwc.dtype.itemsize
    rows = max(_STRIP_BYTES // row_bytes, _STRIP_ROWS)
    if rows >= size[0]:
        return _whole(size, dtype, features_bhwc, both)
    strips = math.ceil(size[0] / rows)
    rows = math.ceil(size[0] / strips)
    # The last strip ends with the image, so it may repeat rows of the strip before.
    starts = np.minimum(np.arange(strips) * rows, size[0] - rows)

    def one_image(features_hwc: Array) -> Array:
        def one_strip(taps: tuple[Array, ...]) -> Array:
            low, high, low_weight, high_weight = taps
            strip_hwc = _weighted(features_hwc, low, low_weight) + _weighted(features_hwc, high, high_weight)
            return convolve_and_project(interpolate(strip_hwc[None], 2, size[1]), both[0], dtype, both[1], 0)[0]

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


@_in_strips.defjvp
def _in_strips_derivative(
    size: tuple[int, int], dtype: Any, primals: tuple[Array, Both], tangents: tuple[Array, Both]
) -> tuple[Array, Array]:
    # The derivative works on all rows: in a loop, every strip would add its gradient to an array of the full size.
    return jax.jvp(partial(_whole, size, dtype), primals, tangents)


def _whole(size: tuple[int, int], dtype: Any, features_bhwc: Array, both: Both) -> Array:
    return reference.resize_and_convolve(features_bhwc, size, both[0], dtype, both[1])


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
