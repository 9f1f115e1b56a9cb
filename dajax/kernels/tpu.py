"""The operations on TPUs, as Pallas kernels where XLA's own would store or copy too much.

A TPU multiplies 128x128 numbers at a time (256x256 since v6e), and keeps arrays in tiles of 128 columns. An axis of 32
or 64 channels would leave most of it empty. Attention therefore takes as many heads at once as fill 128 columns, and
convolutions are computed with columns of pixels in the tile's columns and several rows of pixels at a time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu import flash_attention as flash
from jaxtyping import Array

from dajax.kernels import reference
from dajax.kernels.precision import product_precision, wide
from dajax.kernels.primitive import Kernel, kernel_function
from dajax.kernels.reference import Weights
from dajax.kernels.targets import Target, current_target
from dajax.resample import linear_matrix, linear_taps

_LANES = 128
# What a kernel may keep in the memory of the chip, which has at least 16 MiB.
_KERNEL_BYTES = 12 * 2**20
_FLOATS = (jnp.float32, jnp.bfloat16)

# --- attention -------------------------------------------------------------------------------------------------------


def takes_attention(target: Target, query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> bool:
    """Return whether heads fill the lanes, and the scores of a few queries fit on the chip."""
    batch, tokens, heads, width = query_bnhd.shape
    fills = _LANES % width == 0 and heads * width % _LANES == 0
    return fills and query_bnhd.dtype in _FLOATS and batch * tokens > 0 and _queries(tokens) >= 16


def _queries(tokens: int) -> int:
    """Return how many queries are taken at a time.

    Scores, exponentials and their rounded copy stay on the chip. Of 256 and 128 it is the number that leaves fewer rows
    of the last part empty.
    """
    at_a_time = min((256, 128), key=lambda rows: -tokens % rows)
    while at_a_time * tokens * 3 * 4 > _KERNEL_BYTES // 2:
        at_a_time //= 2
    return at_a_time


def _attend(query_ref: Any, key_ref: Any, value_ref: Any, out_ref: Any, *, width: int) -> None:
    """Attend with the heads in 128 columns, each in a product of its own from which the others are masked out."""
    query_nd, key_md, value_md = query_ref[0], key_ref[0], value_ref[0]
    dtype, precision = query_nd.dtype, product_precision(query_nd.dtype)
    column = jax.lax.broadcasted_iota(jnp.int32, query_nd.shape, 1)
    mixed_nd = jnp.zeros(query_nd.shape, jnp.float32)
    for start in range(0, _LANES, width):
        mine = (column >= start) & (column < start + width)
        scores_nm = jax.lax.dot_general(
            jnp.where(mine, query_nd, jnp.zeros_like(query_nd)),
            key_md,
            (((1,), (1,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        scale = width**-0.5
        weights_nm = jnp.exp((scores_nm - scores_nm.max(-1, keepdims=True)) * scale)
        head_nd = jax.lax.dot_general(
            weights_nm.astype(dtype),
            value_md,
            (((1,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        mixed_nd = jnp.where(mine, head_nd / weights_nm.sum(-1, keepdims=True), mixed_nd)
    out_ref[0] = mixed_nd.astype(dtype)


def _attention(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> Array:
    batch, tokens, heads, width = query_bnhd.shape
    flat = [x.reshape(batch, tokens, heads * width) for x in (query_bnhd, key_bnhd, value_bnhd)]
    rows = _queries(tokens)
    some = pl.BlockSpec((1, rows, _LANES), lambda image, head, part: (image, part, head))
    every = pl.BlockSpec((1, tokens, _LANES), lambda image, head, part: (image, 0, head))
    attended = pl.pallas_call(
        partial(_attend, width=width),
        grid=(batch, heads * width // _LANES, pl.cdiv(tokens, rows)),
        in_specs=[some, every, every],
        out_specs=some,
        out_shape=jax.ShapeDtypeStruct(flat[0].shape, flat[0].dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        name="attention",
        interpret=current_target().interpreted,
    )(*flat)
    return attended.reshape(query_bnhd.shape)


def _flash_gradients(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array, cotangent_bnhd: Array) -> Array:
    """Return the cotangents of query, key and value, next to each other; jax's kernel stores no scores either."""
    batch, tokens, _, width = query_bnhd.shape
    missing = -tokens % _LANES
    padded = tokens + missing
    segments = jnp.broadcast_to((jnp.arange(padded) >= tokens).astype(jnp.int32), (batch, padded))
    block = next(size for size in (512, 384, 256, 128) if padded % size == 0)
    sizes = flash.BlockSizes(**{name: 1 if name == "block_b" else block for name in flash.BlockSizes.__annotations__})

    def attend(*heads_bnhd: Array) -> Array:
        q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))).swapaxes(1, 2) for x in heads_bnhd)
        ids = flash.SegmentIds(segments, segments)
        mixed = flash.flash_attention(q, k, v, segment_ids=ids, sm_scale=width**-0.5, block_sizes=sizes)
        return mixed.swapaxes(1, 2)[:, :tokens].astype(query_bnhd.dtype)

    return jnp.concatenate(jax.vjp(attend, query_bnhd, key_bnhd, value_bnhd)[1](cotangent_bnhd), -1)


def _plain_gradients(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array, cotangent_bnhd: Array) -> Array:
    pull_back = jax.vjp(reference.attention, query_bnhd, key_bnhd, value_bnhd)[1]
    return jnp.concatenate(pull_back(cotangent_bnhd), -1)


_gradients = kernel_function(Kernel(_flash_gradients, _plain_gradients, 4))


def _pull_back(heads: tuple[Array, ...], cotangent_bnhd: Array) -> tuple[Array, ...]:
    if heads[0].dtype == jnp.float32:
        # jax's kernel would round float32 factors to bfloat16.
        return jax.vjp(reference.attention, *heads)[1](cotangent_bnhd)
    return tuple(jnp.split(_gradients(*heads, cotangent_bnhd), 3, -1))


attention = kernel_function(Kernel(_attention, reference.attention, 3, _pull_back))

# --- layer normalisation ---------------------------------------------------------------------------------------------

_NORMALISED_ROWS = 256


def takes_layer_norm(target: Target, tokens_bnd: Array, scale_d: Array, bias_d: Array, *, dtype: Any, **_: Any) -> bool:
    """Return whether the tokens are a batch that fills the lanes."""
    fills = tokens_bnd.ndim == 3 and tokens_bnd.size > 0 and tokens_bnd.shape[-1] % _LANES == 0
    return fills and jnp.dtype(dtype) in _FLOATS and tokens_bnd.dtype in _FLOATS


def _normalise(tokens_ref: Any, scale_ref: Any, bias_ref: Any, out_ref: Any, *, epsilon: float) -> None:
    out_ref[0] = reference.layer_norm(
        tokens_ref[0].astype(jnp.float32), scale_ref[0], bias_ref[0], epsilon=epsilon, dtype=jnp.float32
    ).astype(out_ref.dtype)


def _layer_norm(tokens_bnd: Array, scale_d: Array, bias_d: Array, *, epsilon: float, dtype: Any) -> Array:
    batch, tokens, width = tokens_bnd.shape
    rows = min(_NORMALISED_ROWS, tokens)
    some = pl.BlockSpec((1, rows, width), lambda image, part: (image, part, 0))
    one = pl.BlockSpec((1, width), lambda image, part: (0, 0))
    return pl.pallas_call(
        partial(_normalise, epsilon=epsilon),
        grid=(batch, pl.cdiv(tokens, rows)),
        in_specs=[some, one, one],
        out_specs=some,
        out_shape=jax.ShapeDtypeStruct(tokens_bnd.shape, dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        name="layer_norm",
        interpret=current_target().interpreted,
    )(tokens_bnd, scale_d[None], bias_d[None])


layer_norm = kernel_function(Kernel(_layer_norm, reference.layer_norm, 1))


def takes_layer_norms(target: Target, taps: tuple[Array, ...], scale_d: Array, bias_d: Array, **options: Any) -> bool:
    """Return whether each of the taps is taken."""
    return all(takes_layer_norm(target, tap, scale_d, bias_d, **options) for tap in taps)


def layer_norms(taps: tuple[Array, ...], scale_d: Array, bias_d: Array, **options: Any) -> tuple[Array, ...]:
    """Normalise tap by tap: to stack them would be a copy."""
    return tuple(layer_norm(tap, scale_d, bias_d, **options) for tap in taps)


def project_patches(tokens_bnd: Array, weights: Weights, dtype: Any, result: Any = None) -> Array:
    """Apply the linear layer first, because it makes less to copy: to leave out one row moves all others."""
    return reference.project(tokens_bnd, weights, dtype, result)[:, 1:]


# --- upsample and convolve -------------------------------------------------------------------------------------------


def upsample_and_convolve(
    features_bhwc: Array, upsampling: Weights, kernel: Array, dtype: Any, result: Any = None
) -> Array:
    """Apply both convolutions as one, at the resolution of its input, because there is no ReLU between them."""
    blocks, bias = upsampling
    batch, height, width, _ = features_bhwc.shape
    factor, features = blocks.shape[0], kernel.shape[3]
    exact = wide(blocks.dtype)
    # Axes: y, x: input position, one before to one after. p, q: place in the block, of the output. r, s: of the input.
    parts = jnp.asarray(_places(factor), exact)
    both = jnp.einsum(
        "pary,qbsx,rscd,abdf->yxcpqf",
        parts, parts, blocks.astype(exact), kernel.astype(exact), precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    x = reference.convolve(features_bhwc, (both.reshape(3, 3, blocks.shape[2], -1), None), dtype)
    if bias is not None:
        # Beyond the image there is no bias either: near its edges a part of the kernel counts.
        rows, columns = (
            jnp.asarray(_inside(n * factor), exact).reshape(n, factor, 3) for n in (height, width)
        )  # fmt: skip
        constant = jnp.einsum(
            "hpa,wqb,abdf,d->hwpqf", rows, columns, kernel.astype(exact), bias.astype(exact),
            precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        x = x + constant.reshape(1, height, width, -1).astype(x.dtype)
    # Places of one row that fill a tile together move together.
    together = _LANES // features if factor * features % _LANES == 0 and _LANES % features == 0 else 1
    x = x.astype(dtype).reshape(batch, height, width, factor, factor // together, together * features)
    return x.swapaxes(2, 3).reshape(batch, height * factor, width * factor, features)


def _places(factor: int) -> np.ndarray:
    """Return which input place (block, place in it) an output place reads at each shift: [out, shift, place, block]."""
    places = np.zeros((factor, 3, factor, 3), np.float32)
    for out in range(factor):
        for shift in range(3):
            block, place = divmod(factor + out + shift - 1, factor)
            places[out, shift, place, block] = 1
    return places


def _inside(size: int) -> np.ndarray:
    """Return 1 where a position, shifted by -1, 0 or 1, is inside: [size, 3]."""
    shifted = np.arange(size)[:, None] + np.arange(-1, 2)
    return ((shifted >= 0) & (shifted < size)).astype(np.float32)


# --- residual units --------------------------------------------------------------------------------------------------


def takes_residual_unit(target: Target, features_bhwc: Array, first: Weights, second: Weights, dtype: Any) -> bool:
    """Return whether several columns of pixels fit into a tile."""
    width, channels = features_bhwc.shape[2:]
    return channels < _LANES and _LANES % channels == 0 and width % (_LANES // channels) == 0


def residual_unit(features_bhwc: Array, first: Weights, second: Weights, dtype: Any) -> Array:
    """Convolve with neighbouring columns of pixels side by side in the channels, so that they fill a tile."""
    batch, height, width, channels = features_bhwc.shape
    columns = _LANES // channels
    folded = features_bhwc.reshape(batch, height, width // columns, columns * channels)
    units = [(_several_columns(kernel, columns), _tiled(bias, columns)) for kernel, bias in (first, second)]
    return reference.residual_unit(folded, units[0], units[1], dtype).reshape(features_bhwc.shape)


def _tiled(bias: Array | None, columns: int) -> Array | None:
    return None if bias is None else jnp.tile(bias, columns)


def _several_columns(kernel: Array, columns: int) -> Array:
    """Return the kernel [3, 3, c_in, c_out] for features that have `columns` columns of pixels in their channels."""
    places = np.zeros((3, columns, columns, 3), np.float32)  # group of input columns, input, output, shift
    for out in range(columns):
        for dx in range(3):
            group, column = divmod(columns + out + dx - 1, columns)
            places[group, column, out, dx] = 1
    several = jnp.einsum("gioh,yhcf->ygicof", jnp.asarray(places, kernel.dtype), kernel)
    return several.reshape(3, 3, columns * kernel.shape[2], columns * kernel.shape[3])


# --- resize, and resize and convolve ---------------------------------------------------------------------------------


def resize(features_bhwc: Array, size: tuple[int, int]) -> Array:
    """Resize by matrix products: a gather of rows or columns costs a TPU more.

    Rows are resized with several columns of pixels side by side in the channels, as the residual units have them.
    """
    batch, _, width, channels = features_bhwc.shape
    if width != size[1]:
        features_bhwc = reference.interpolate_by_product(features_bhwc, 2, size[1])
    if features_bhwc.shape[1] == size[0]:
        return features_bhwc
    columns = _LANES // channels if _LANES % channels == 0 and size[1] % (_LANES // channels) == 0 else 1
    folded = features_bhwc.reshape(batch, -1, size[1] // columns, columns * channels)
    return reference.interpolate_by_product(folded, 1, size[0]).reshape(batch, *size, channels)


def takes_resize_and_convolve(
    target: Target,
    features_bhwc: Array,
    size: tuple[int, int],
    weights: Weights,
    dtype: Any,
    projection: Weights | None = None,
) -> bool:
    """Return whether channels fill tiles, the projection has one channel, and some rows fit on the chip."""
    batch, height, width, channels = features_bhwc.shape
    features = weights[0].shape[-1]
    if jnp.dtype(dtype) != jnp.bfloat16 or batch * height * width == 0 or channels % 16 or features % 8:
        return False
    if projection is not None and projection[0].shape[-1] != 1:
        return False
    return _rows(height, width, size, channels, features) > 0


def _rows(height: int, width: int, size: tuple[int, int], channels: int, features: int) -> int:
    """Return how many output rows are computed in one step: as many as fit on the chip; 0 if not even 8 do."""
    columns_in, columns = (n + -n % _LANES for n in (width, size[1] + 2))
    at_once = max(_LANES // features, 1)
    fixed = 4 * columns_in * columns + 4 * 3 * (at_once + 2) * channels * features * at_once
    working = (2 * 3 * (at_once + 2) * channels + 2 * 4 * at_once * features) * columns
    for rows in (64, 32, 16, 8):
        read = _row_taps(height, size[0], rows)[3]
        moving = read * channels * (4 * columns_in + 4 * columns) + 2 * (rows + 2) * channels * columns
        if rows % at_once == 0 and fixed + working + moving < _KERNEL_BYTES:
            return rows
    return 0


def _convolve_rows(
    first_ref: Any, taps_ref: Any, fractions_ref: Any, features_ref: Any, columns_ref: Any, kernel_ref: Any,
    bias_ref: Any, *rest: Any, rows: int, projects: bool,
) -> None:  # fmt: skip
    """Make some output rows: resize columns by a product, rows one by one, then multiply several rows by the kernel."""
    *projection, out_ref, wide_ref, rows_ref = rest
    part, (channels, width) = pl.program_id(1), rows_ref.shape[1:]
    read, at_once = features_ref.shape[1], kernel_ref.shape[1] // (3 * channels) - 2

    columns = features_ref[0].reshape(read * channels, -1)
    resized = jax.lax.dot_general(
        columns, columns_ref[...], (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    wide_ref[...] = resized.reshape(read, channels, width)

    def interpolate(i: Any, _: Any) -> None:
        n = part * rows + i
        low, high = taps_ref[0, n] - first_ref[part], taps_ref[1, n] - first_ref[part]
        row = wide_ref[low] * fractions_ref[0, n] + wide_ref[high] * fractions_ref[1, n]
        rows_ref[i] = row.astype(rows_ref.dtype)

    def convolve(i: Any) -> Array:
        window = rows_ref[pl.ds(i, at_once + 2)].reshape((at_once + 2) * channels, width)
        patches = jnp.concatenate([window[:, dx : width - 2 + dx] for dx in range(3)])
        y = jax.lax.dot_general(kernel_ref[...], patches, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        y = y + bias_ref[...]
        if not projects:
            return y.reshape(at_once, -1, width - 2)
        return (jnp.maximum(y, 0) * projection[0][...]).reshape(at_once, -1, width - 2).sum(1) + projection[1][0]

    step = max(8, at_once) if projects else at_once  # rows of a depth map are stored by eight

    def store(i: Any, _: Any) -> None:
        at = pl.multiple_of(i * step, step)
        out_ref[0, pl.ds(at, step)] = jnp.concatenate([convolve(at + n) for n in range(0, step, at_once)]).astype(
            out_ref.dtype
        )

    jax.lax.fori_loop(0, rows + 2, interpolate, None)
    jax.lax.fori_loop(0, rows // step, store, None)


def _row_taps(height: int, size_out: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return the first input row of each step, two input rows and weights for each output row, and the rows of a step.

    There is one more output row above and below each step. Beyond the image the weights are 0.
    """
    steps = -(-size_out // rows)
    low, high, fraction = linear_taps(height, size_out)
    wanted = np.arange(-1, steps * rows + 1)
    inside = (wanted >= 0) & (wanted < size_out)
    wanted = wanted.clip(0, size_out - 1)
    taps = np.stack([low[wanted], high[wanted]]).astype(np.int32)
    fractions = np.stack([np.where(inside, 1 - fraction[wanted], 0), np.where(inside, fraction[wanted], 0)])
    first = taps[0, np.arange(steps) * rows]
    read = max(int(taps[1, i * rows : (i + 1) * rows + 2].max() - first[i]) + 1 for i in range(steps))
    return np.minimum(first, height - read).astype(np.int32), taps, fractions.astype(np.float32), read


def _several_rows(kernel: Array, rows: int) -> Array:
    """Return the kernel [3, 3, c_in, c_out] as a matrix from `rows` + 2 input rows to `rows` output rows.

    Its rows are (output row, c_out), its columns (shift of columns, input row, c_in).
    """
    places = np.zeros((rows, rows + 2, 3), np.float32)
    for dy in range(3):
        places[np.arange(rows), np.arange(rows) + dy, dy] = 1
    matrix = jnp.einsum("oiy,yxcf->ofxic", jnp.asarray(places, kernel.dtype), kernel)
    return matrix.reshape(rows * kernel.shape[3], -1)


def _resize_and_convolve(
    features_bhwc: Array, kernel: Array, bias: Array, *projection: Array, size: tuple[int, int], **_: Any
) -> Array:
    dtype = jnp.bfloat16
    batch, height, width, channels = features_bhwc.shape
    features = kernel.shape[3]
    at_once, rows = max(_LANES // features, 1), _rows(height, width, size, channels, features)
    first, taps, fractions, read = _row_taps(height, size[0], rows)
    columns = np.pad(linear_matrix(width, size[1], np.float64).T, ((0, 0), (1, 1)))  # a column of zeros on both sides

    def column_of(values: Array) -> Array:
        return jnp.tile(values.astype(jnp.float32), at_once)[:, None]

    def whole(array: Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda image, part, *_: (0,) * array.ndim)

    fixed = [jnp.asarray(columns, dtype), _several_rows(kernel, at_once).astype(dtype), column_of(bias)]
    specs = [whole(array) for array in fixed]
    if projection:
        fixed += [column_of(projection[0][:, 0]), projection[1].astype(jnp.float32)]
        specs += [whole(fixed[3]), pl.BlockSpec(memory_space=pltpu.SMEM)]
        out = jax.ShapeDtypeStruct((batch, *size), jnp.float32)
        out_spec = pl.BlockSpec((1, rows, size[1]), lambda image, part, *_: (image, part, 0))
    else:
        out = jax.ShapeDtypeStruct((batch, size[0], features, size[1]), dtype)
        out_spec = pl.BlockSpec((1, rows, features, size[1]), lambda image, part, *_: (image, part, 0, 0))
    some = pl.BlockSpec(
        tuple(map(pl.Element, (1, read, channels, width))), lambda image, part, first, *_: (image, first[part], 0, 0)
    )
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(batch, len(first)),
        in_specs=[some, *specs],
        out_specs=out_spec,
        scratch_shapes=[
            pltpu.VMEM((read, channels, size[1] + 2), jnp.float32),
            pltpu.VMEM((rows + 2, channels, size[1] + 2), dtype),
        ],
    )
    result = pl.pallas_call(
        partial(_convolve_rows, rows=rows, projects=bool(projection)),
        grid_spec=grid,
        out_shape=out,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="resize_and_convolve",
        interpret=current_target().interpreted,
    )(first, taps, fractions, features_bhwc.astype(dtype).swapaxes(2, 3), *fixed)
    # The result stays in bfloat16 on its way to the next convolution, which rounds to it anyway.
    return result[..., None] if projection else result.swapaxes(2, 3).astype(jnp.float32)


def _plain_resize_and_convolve(
    features_bhwc: Array, kernel: Array, bias: Array, *projection: Array, size: tuple[int, int], dtype: Any
) -> Array:
    x_bhwc = resize(features_bhwc, size)
    return reference.convolve_and_project(x_bhwc, (kernel, bias), dtype, projection or None)  # type: ignore[arg-type]


_convolution = kernel_function(Kernel(_resize_and_convolve, _plain_resize_and_convolve, 1))


def resize_and_convolve(
    features_bhwc: Array, size: tuple[int, int], weights: Weights, dtype: Any, projection: Weights | None = None
) -> Array:
    """Resize and convolve in one kernel, so that the resized features exist on the chip only."""
    kernel, bias = weights
    bias = jnp.zeros(kernel.shape[-1:], kernel.dtype) if bias is None else bias
    arrays = [features_bhwc, kernel, bias]
    if projection is not None:
        arrays += [projection[0], jnp.zeros((1,), kernel.dtype) if projection[1] is None else projection[1]]
    result: Array = _convolution(*arrays, size=tuple(size), dtype=jnp.dtype(dtype))
    return result
