"""Linear layers and convolutions whose result is at least float32 whatever they compute in, and a fast exact GELU."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax.model.parameters import parameter
from dajax.model.platform import product_dtype
from dajax.model.precision import product_precision, wide


def product(equation: str, x: Array, kernel: Array, dtype: Any) -> Array:
    """Return `jnp.einsum(equation, x, kernel)`, computed in `dtype`, as at least float32."""
    result = jnp.einsum(
        equation,
        x.astype(dtype),
        kernel.astype(dtype),
        precision=product_precision(dtype),
        preferred_element_type=product_dtype(dtype),
    )
    return result.astype(wide(dtype))


# Kernel and bias; the bias is None if the layer has none.
Weights = tuple[Array, Array | None]


class Dense(nn.Module):
    """A linear layer.

    Attributes:
        features: the number of output channels.
        dtype: the computation dtype of the product. The bias is added in at least float32.
        stddev: the standard deviation of the kernel's initial values.
        use_bias: whether the layer has a bias.
    """

    features: int
    dtype: jnp.dtype
    stddev: float
    use_bias: bool = True

    @nn.compact
    def weights(self, channels: int) -> Weights:
        """Return kernel and bias, for `project` in transformations of jax, within which modules cannot be called."""
        return _weights(self, (channels, self.features))

    def __call__(self, x: Float[Array, "*batch c_in"]) -> Float[Array, "*batch c_out"]:
        """Return the output channels, in at least float32."""
        return project(x, self.weights(x.shape[-1]), self.dtype)


def project(x: Float[Array, "*batch c_in"], weights: Weights, dtype: Any) -> Float[Array, "*batch c_out"]:
    """Apply the weights of a `Dense` to the channels; the result is at least float32."""
    kernel, bias = weights
    x = product("...c,cd->...d", x, kernel, dtype)
    return x if bias is None else x + bias.astype(x.dtype)


class Conv3x3(nn.Module):
    """A 3x3 convolution.

    Attributes:
        features: the number of output channels.
        dtype: the computation dtype of the convolution. The bias is added in at least float32.
        stddev: the standard deviation of the kernel's initial values.
        stride: the stride in both directions.
        use_bias: whether the layer has a bias.
    """

    features: int
    dtype: jnp.dtype
    stddev: float
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def weights(self, channels: int) -> Weights:
        """Return kernel and bias, for `convolve` in transformations of jax, within which modules cannot be called."""
        return _weights(self, (3, 3, channels, self.features))

    def __call__(
        self, features_bhwc: Float[Array, "batch height width c_in"]
    ) -> Float[Array, "batch h_out w_out c_out"]:
        """Return the convolved features, in at least float32."""
        return convolve(features_bhwc, self.weights(features_bhwc.shape[-1]), self.dtype, stride=self.stride)


def convolve(
    features_bhwc: Float[Array, "batch height width c_in"],
    weights: Weights,
    dtype: Any,
    *,
    stride: int = 1,
    row_padding: int = 1,
) -> Float[Array, "batch h_out w_out c_out"]:
    """Convolve feature maps with the weights of a `Conv3x3`; the result is at least float32.

    Args:
        features_bhwc: the feature maps.
        weights: Kernel and bias.
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


def _weights(module: Dense | Conv3x3, shape: tuple[int, ...]) -> Weights:
    kernel = parameter(module, "kernel", nn.initializers.normal(module.stddev), shape)
    if not module.use_bias:
        return kernel, None
    return kernel, parameter(module, "bias", nn.initializers.zeros, shape[-1:])


def gelu(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """Return the exact GELU: x times the probability that a standard normal variable is below x (arXiv:1606.08415).

    It uses erf. `jax.nn.gelu` uses erfc, which takes three polynomials and an exponential instead of one polynomial,
    and twice the time on a CPU.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))
