"""The operations as plain formulas. Every other implementation computes the same values and gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dajax.kernels.precision import product_precision, wide
from dajax.resample import linear_matrix, linear_taps

# Kernel and bias; the bias is None if the layer has none.
Weights = tuple[Array, Array | None]


def product(equation: str, x: Array, kernel: Array, dtype: Any, result: Any = None) -> Array:
    """Return `jnp.einsum(equation, x, kernel)`, computed in `dtype`, as at least float32.

    Args:
        equation: the einsum.
        x: the first factor.
        kernel: the second factor.
        dtype: the computation dtype.
        result: the dtype that the product is rounded to before it becomes wide; None does not round.
    """
    return jnp.einsum(
        equation,
        x.astype(dtype),
        kernel.astype(dtype),
        precision=product_precision(dtype),
        preferred_element_type=wide(dtype) if result is None else result,
    ).astype(wide(dtype))


def attention(
    query_bnhd: Float[Array, "batch tokens heads width"],
    key_bnhd: Float[Array, "batch tokens heads width"],
    value_bnhd: Float[Array, "batch tokens heads width"],
) -> Float[Array, "batch tokens heads width"]:
    """Return softmax(q k^T / sqrt(width)) v (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    Scores and softmax are computed in at least float32.
    """
    return apply_attention(attention_weights(query_bnhd, key_bnhd), value_bnhd)


def attention_weights(
    query_bnhd: Float[Array, "batch tokens heads width"], key_bnhd: Float[Array, "batch tokens heads width"]
) -> Float[Array, "batch heads tokens tokens"]:
    """Return softmax(q k^T / sqrt(width)), computed in at least float32, in the dtype of the queries."""
    scores_bhnm = jnp.einsum(
        "bnhd,bmhd->bhnm",
        query_bnhd,
        key_bnhd,
        precision=product_precision(query_bnhd.dtype),
        preferred_element_type=wide(query_bnhd.dtype),
    )
    return jax.nn.softmax(scores_bhnm * query_bnhd.shape[-1] ** -0.5, axis=-1).astype(query_bnhd.dtype)


def apply_attention(
    weights_bhnm: Float[Array, "batch heads tokens tokens"], value_bmhd: Float[Array, "batch tokens heads width"]
) -> Float[Array, "batch tokens heads width"]:
    """Return each token's weighted sum of the values."""
    return jnp.einsum(
        "bhnm,bmhd->bnhd", weights_bhnm, value_bmhd, precision=product_precision(value_bmhd.dtype)
    )  # fmt: skip


def layer_norm(
    tokens_bnd: Float[Array, "... tokens dim"],
    scale_d: Float[Array, " dim"],
    bias_d: Float[Array, " dim"],
    *,
    epsilon: float,
    dtype: Any,
) -> Float[Array, "... tokens dim"]:
    """Return the normalised tokens in `dtype` (Ba et al. 2016, arXiv:1607.06450), computed in at least float32.

    The variance is computed in two passes, as the mean square of the centred tokens.
    """
    x = tokens_bnd.astype(wide(dtype))
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    return (x * scale_d.astype(x.dtype) + bias_d.astype(x.dtype)).astype(dtype)


def layer_norms(taps: tuple[Array, ...], scale_d: Array, bias_d: Array, *, epsilon: float, dtype: Any) -> Any:
    """Return `layer_norm` of each tap, all computed at once.

    Otherwise a CPU would start on the first tap early, while the encoder still needs its memory.
    """
    return tuple(layer_norm(jnp.stack(taps), scale_d, bias_d, epsilon=epsilon, dtype=dtype))


def convolve(
    features_bhwc: Float[Array, "batch height width c_in"],
    weights: Weights,
    dtype: Any,
    *,
    stride: int = 1,
    row_padding: int = 1,
) -> Float[Array, "batch h_out w_out c_out"]:
    """Convolve feature maps with a 3x3 kernel; the result is at least float32.

    Args:
        features_bhwc: the feature maps.
        weights: Kernel [3, 3, c_in, c_out] and bias.
        dtype: the computation dtype.
        stride: the stride in both directions.
        row_padding: how many rows of zeros are added above and below. One column is added left and right.
    """
    kernel, bias = weights
    # The padding is written out because "SAME" pads even grids on one side only if the stride is 2.
    padding = ((row_padding, row_padding), (1, 1))
    # The result has the dtype of the factors: jax has no gradient for convolutions with a wider result.
    features_bhwc = jax.lax.conv_general_dilated(
        features_bhwc.astype(dtype),
        kernel.astype(dtype),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=product_precision(dtype),
    ).astype(wide(dtype))
    return features_bhwc if bias is None else features_bhwc + bias.astype(features_bhwc.dtype)


def upsample_and_convolve(
    features_bhwc: Float[Array, "batch height width c"],
    upsampling: Weights,
    kernel: Array,
    dtype: Any,
    result: Any = None,
) -> Float[Array, "batch h_out w_out c_out"]:
    """Apply a transposed convolution whose stride is its size, then a 3x3 convolution without bias; all in `dtype`.

    Args:
        features_bhwc: the feature maps.
        upsampling: Kernel [factor, factor, c, c] and bias: every position becomes a block of its own.
        kernel: [3, 3, c, c_out], of the convolution.
        dtype: the computation dtype.
        result: see `product`.
    """
    features_bhwc = upsample(features_bhwc, upsampling, dtype, result)
    return convolve(features_bhwc, (kernel, None), dtype).astype(dtype)


def upsample(features_bhwc: Array, upsampling: Weights, dtype: Any, result: Any = None) -> Array:
    """Apply a transposed convolution whose stride is its size; see `upsample_and_convolve`."""
    blocks, bias = upsampling
    batch, height, width, channels = features_bhwc.shape
    factor = blocks.shape[0]
    features_bhwc = product("bhwc,yxcd->bhywxd", features_bhwc, blocks, dtype, result).reshape(
        batch, height * factor, width * factor, channels
    )
    if bias is not None:
        features_bhwc = features_bhwc + bias.astype(features_bhwc.dtype)
    return features_bhwc.astype(dtype)


def residual_unit(
    features_bhwc: Float[Array, "batch height width c"], first: Weights, second: Weights, dtype: Any
) -> Float[Array, "batch height width c"]:
    """Return the feature maps plus two convolutions of them, each after a ReLU; all in `dtype`."""
    x = features_bhwc
    for weights in (first, second):
        x = convolve(jax.nn.relu(x), weights, dtype).astype(dtype)
    return features_bhwc + x


def project(x: Float[Array, "*batch c_in"], weights: Weights, dtype: Any, result: Any = None) -> Array:
    """Apply a linear layer to the channels; the result is at least float32. `result` is as in `product`."""
    kernel, bias = weights
    x = product("...c,cd->...d", x, kernel, dtype, result)
    return x if bias is None else x + bias.astype(x.dtype)


def project_patches(
    tokens_bnd: Float[Array, "batch tokens c_in"], weights: Weights, dtype: Any, result: Any = None
) -> Array:
    """Leave out the class token and apply a linear layer to the channels; see `project`."""
    return project(tokens_bnd[:, 1:], weights, dtype, result)


def resize(
    features_bhwc: Float[Array, "batch h_in w_in width"], size: tuple[int, int]
) -> Float[Array, "batch h_out w_out width"]:
    """Resize feature maps bilinearly so that the centres of the corner pixels stay where they are.

    PyTorch calls it `interpolate(mode="bilinear", align_corners=True)`. Every output row is a weighted sum of two input
    rows, and every output column of two input columns.
    """
    for axis, size_out in ((1, size[0]), (2, size[1])):
        if features_bhwc.shape[axis] != size_out:
            features_bhwc = interpolate(features_bhwc, axis, size_out)
    return features_bhwc


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def interpolate(features_bhwc: Array, axis: int, size_out: int) -> Array:
    """Resize one axis by two gathers, which cost less than a dense matrix product."""
    low, high, fraction = linear_taps(features_bhwc.shape[axis], size_out)
    weight = jnp.asarray(fraction, features_bhwc.dtype).reshape([-1 if a == axis else 1 for a in range(4)])
    return jnp.take(features_bhwc, low, axis) * (1 - weight) + jnp.take(features_bhwc, high, axis) * weight


@interpolate.defjvp
def _interpolate_derivative(
    axis: int, size_out: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    # The transpose of a gather adds number by number: in no fixed order on a GPU, and more slowly than a matrix product
    # everywhere. The transpose of a matrix product is a matrix product.
    return interpolate(primals[0], axis, size_out), interpolate_by_product(tangents[0], axis, size_out)


def interpolate_by_product(features_bhwc: Array, axis: int, size_out: int) -> Array:
    """Resize one axis by a matrix product."""
    matrix = linear_matrix(features_bhwc.shape[axis], size_out, np.float64)
    equation = {1: "oh,bhwc->bowc", 2: "ow,bhwc->bhoc"}[axis]
    dtype = features_bhwc.dtype
    product = jnp.einsum(
        equation,
        jnp.asarray(matrix, dtype),
        features_bhwc,
        precision=product_precision(dtype),
        preferred_element_type=wide(dtype),
    )
    return product.astype(dtype)


def resize_and_convolve(
    features_bhwc: Float[Array, "batch h_in w_in c_in"],
    size: tuple[int, int],
    weights: Weights,
    dtype: Any,
    projection: Weights | None = None,
) -> Float[Array, "batch h_out w_out c_out"]:
    """Resize feature maps, convolve them, and if there is a projection, apply ReLU and it; at least float32.

    Args:
        features_bhwc: the feature maps.
        size: the height and width to resize to.
        weights: Kernel [3, 3, c_in, c] and bias of the convolution.
        dtype: the computation dtype.
        projection: Kernel [c, c_out] and bias.
    """
    return convolve_and_project(resize(features_bhwc, size), weights, dtype, projection)


def convolve_and_project(
    features_bhwc: Array, weights: Weights, dtype: Any, projection: Weights | None, row_padding: int = 1
) -> Array:
    """Return what `resize_and_convolve` makes of resized feature maps."""
    x_bhwc = convolve(features_bhwc, weights, dtype, row_padding=row_padding)
    return x_bhwc if projection is None else project(jax.nn.relu(x_bhwc), projection, dtype)
