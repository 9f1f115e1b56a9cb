"""The operations that the network is made of, each computed as the target does it best.

`TABLE` says which implementation is taken. What no row takes is computed by the plain formula.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax.kernels import cpu, reference
from dajax.kernels.precision import wide
from dajax.kernels.reference import Weights
from dajax.kernels.targets import current_target


class Row(NamedTuple):
    """One implementation of an operation: the function of that name in the module of that platform.

    If the module has a function `takes_<operation>` of (target, the arguments), it says whether the implementation can
    serve.

    Attributes:
        operation: the name of a function of this module.
        platform: the platform of the target, and the name of the module.
        what: what it does, in words.
        limits: what it cannot do, in words.
        gradient: how reverse mode is computed. Forward mode always follows the plain formula.
    """

    operation: str
    platform: str
    what: str
    limits: str
    gradient: str


TABLE = (
    Row("attention", "cpu", "one head and a part of its queries at a time", "", "several heads at a time"),
    Row(
        "attention",
        "cuda",
        "cuDNN's, which stores no scores",
        "half precision; heads of at most 128 channels; Ampere or newer",
        "cuDNN's",
    ),
    Row(
        "attention",
        "tpu",
        "as many heads at a time as have 128 channels; no stored scores",
        "float32 and bfloat16; whole groups of such heads; scores of 16 queries fit on the chip",
        "jax's flash attention in bfloat16, the plain formula in float32",
    ),
    Row("layer_norm", "tpu", "one pass over the tokens", "a width that is a multiple of 128", "the plain formula"),
    Row("layer_norms", "tpu", "tap by tap, as layer_norm", "as layer_norm", "the plain formula"),
    Row("project_patches", "tpu", "the class token is left out last", "", "the plain formula"),
    Row("upsample_and_convolve", "tpu", "both convolutions as one", "", "XLA's, of the same convolution"),
    Row(
        "residual_unit",
        "tpu",
        "neighbouring columns of pixels side by side in the channels",
        "fewer than 128 channels, which divide 128; a width of whole groups of columns",
        "XLA's, of the same convolutions",
    ),
    Row("resize", "tpu", "matrix products", "", "matrix products"),
    Row("resize_and_convolve", "cpu", "one image and a strip of rows at a time", "", "the plain formula"),
    Row(
        "resize_and_convolve",
        "tpu",
        "some rows at a time; resized features exist on the chip only",
        "bfloat16; channels in multiples of 16; 8 rows fit on the chip",
        "the plain formula",
    ),
)


def choose(operation: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
    """Return the implementation of an operation that these arguments get under the current target."""
    target = current_target()
    plain: Callable[..., Any] = getattr(reference, operation)
    if target.kernels == "reference" or (operation, target.platform) not in {row[:2] for row in TABLE}:
        return plain
    # A platform's module is imported when it is needed: Pallas takes a while.
    module = import_module(f"dajax.kernels.{target.platform}")
    takes = getattr(module, f"takes_{operation}", None)
    fits = takes is None or takes(target, *arguments, **options)
    return getattr(module, operation) if fits else plain


def attention(
    query_bnhd: Float[Array, "batch tokens heads width"],
    key_bnhd: Float[Array, "batch tokens heads width"],
    value_bnhd: Float[Array, "batch tokens heads width"],
) -> Float[Array, "batch tokens heads width"]:
    """Return softmax(q k^T / sqrt(width)) v, see `reference.attention`."""
    heads = (query_bnhd, key_bnhd, value_bnhd)
    result: Array = choose("attention", *heads)(*heads)
    return result


def layer_norm(
    tokens_bnd: Float[Array, "... tokens dim"],
    scale_d: Float[Array, " dim"],
    bias_d: Float[Array, " dim"],
    epsilon: float,
    dtype: Any,
) -> Float[Array, "... tokens dim"]:
    """Return the normalised tokens in `dtype`, see `reference.layer_norm`."""
    arrays, options = (tokens_bnd, scale_d, bias_d), {"epsilon": epsilon, "dtype": jnp.dtype(dtype)}
    result: Array = choose("layer_norm", *arrays, **options)(*arrays, **options)
    return result


def layer_norms(
    taps: tuple[Float[Array, "batch tokens dim"], ...],
    scale_d: Float[Array, " dim"],
    bias_d: Float[Array, " dim"],
    epsilon: float,
    dtype: Any,
) -> tuple[Float[Array, "batch tokens dim"], ...]:
    """Return the normalised tokens of each tap in `dtype`, see `layer_norm`."""
    options = {"epsilon": epsilon, "dtype": jnp.dtype(dtype)}
    result: tuple[Array, ...] = choose("layer_norms", taps, scale_d, bias_d, **options)(
        taps, scale_d, bias_d, **options
    )
    return result


def product(equation: str, x: Array, kernel: Array, dtype: Any) -> Array:
    """Return `jnp.einsum(equation, x, kernel)`, computed in `dtype`, as at least float32.

    Every platform adds up in float32. On GPUs the result is rounded to `dtype`, which moves half as many bytes. On TPUs
    XLA adds the bias before the result leaves the chip; and on a CPU its products from bfloat16 to bfloat16 are half as
    fast as those to float32.
    """
    return reference.product(equation, x, kernel, dtype, _result(dtype))


def project(x: Float[Array, "*batch c_in"], weights: Weights, dtype: Any) -> Float[Array, "*batch c_out"]:
    """Apply a linear layer to the channels; the result is at least float32."""
    return reference.project(x, weights, dtype, _result(dtype))


def project_patches(tokens_bnd: Float[Array, "batch tokens c_in"], weights: Weights, dtype: Any) -> Array:
    """Leave out the class token and apply a linear layer to the channels; the result is at least float32."""
    arguments = (tokens_bnd, weights, dtype, _result(dtype))
    result: Array = choose("project_patches", *arguments)(*arguments)
    return result


def _result(dtype: Any) -> jnp.dtype:
    return jnp.dtype(dtype) if current_target().platform in ("cuda", "rocm") else wide(dtype)


def convolution_dtype(dtype: Any) -> jnp.dtype:
    """Return the computation dtype of convolutions if the encoder computes in `dtype`.

    On a CPU it is at least float32, because XLA's convolutions in bfloat16 take three times as long.
    """
    return wide(dtype) if current_target().platform == "cpu" else jnp.dtype(dtype)


def depth_dtype(dtype: Any) -> jnp.dtype:
    """Return the computation dtype of the last convolutions, at full size, if the other ones compute in `dtype`.

    It is at least float32, except on TPUs in bfloat16: their float32 is six products of bfloat16.
    """
    is_half = current_target().platform == "tpu" and jnp.dtype(dtype) == jnp.bfloat16
    return jnp.dtype(dtype) if is_half else wide(dtype)


def convolve(
    features_bhwc: Float[Array, "batch height width c_in"], weights: Weights, dtype: Any, *, stride: int = 1
) -> Float[Array, "batch h_out w_out c_out"]:
    """Convolve feature maps with a 3x3 kernel, see `reference.convolve`."""
    return reference.convolve(features_bhwc, weights, dtype, stride=stride)


def upsample_and_convolve(
    features_bhwc: Float[Array, "batch height width c"], upsampling: Weights, kernel: Array, dtype: Any
) -> Float[Array, "batch h_out w_out c_out"]:
    """Apply a transposed convolution whose stride is its size, then a 3x3 convolution without bias; all in `dtype`.

    See `reference.upsample_and_convolve`.
    """
    arguments = (features_bhwc, upsampling, kernel, dtype, _result(dtype))
    result: Array = choose("upsample_and_convolve", *arguments)(*arguments)
    return result


def residual_unit(
    features_bhwc: Float[Array, "batch height width c"], first: Weights, second: Weights, dtype: Any
) -> Float[Array, "batch height width c"]:
    """Return the feature maps plus two convolutions of them, each after a ReLU; all in `dtype`."""
    arguments = (features_bhwc, first, second, dtype)
    result: Array = choose("residual_unit", *arguments)(*arguments)
    return result


def resize(
    features_bhwc: Float[Array, "batch h_in w_in width"], size: tuple[int, int]
) -> Float[Array, "batch h_out w_out width"]:
    """Resize feature maps bilinearly with aligned corners, see `reference.resize`."""
    result: Array = choose("resize", features_bhwc, size)(features_bhwc, size)
    return result


def resize_and_convolve(
    features_bhwc: Float[Array, "batch h_in w_in c_in"],
    size: tuple[int, int],
    weights: Weights,
    dtype: Any,
    projection: Weights | None = None,
) -> Float[Array, "batch h_out w_out c_out"]:
    """Resize feature maps, convolve them, and if there is a projection, apply ReLU and it.

    See `reference.resize_and_convolve`.
    """
    arguments = (features_bhwc, size, weights, dtype, projection)
    result: Array = choose("resize_and_convolve", *arguments)(*arguments)
    return result


def takes_images_apart(batch: int, patches: int) -> bool:
    """Return whether the images of a batch run one after another, in `each_image`.

    They do on a CPU, whose cache holds the activations of one image, if one image keeps all cores busy.
    """
    target = current_target()
    return batch > 1 and (target.platform, target.kernels) == ("cpu", "auto") and cpu.has_enough_work(patches)


def each_image(function: Callable[[Any, Array], Any], params: Any, pixels_bhwc: Array) -> Any:
    """Return `function(params, pixels_bhwc)`, computed image by image; see `takes_images_apart`."""
    return cpu.each_image(function, params, pixels_bhwc)
