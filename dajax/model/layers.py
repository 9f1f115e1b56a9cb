"""Linear layers whose result is at least float32, whatever they compute in, and a fast exact GELU."""

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
    """Return `jnp.einsum(equation, x, kernel)` of both cast to `dtype`, as at least float32."""
    result = jnp.einsum(
        equation,
        x.astype(dtype),
        kernel.astype(dtype),
        precision=product_precision(dtype),
        preferred_element_type=product_dtype(dtype),
    )
    return result.astype(wide(dtype))


# Kernel and bias.
Weights = tuple[Array, Array | None]


class Dense(nn.Module):
    """A linear layer.

    Attributes:
        features: channels that come out.
        dtype: of the factors. Its bias is added in at least float32.
        stddev: of the kernel's initial values.
    """

    features: int
    dtype: jnp.dtype
    stddev: float
    use_bias: bool = True

    @nn.compact
    def weights(self, channels: int) -> Weights:
        """Return kernel and bias, for `project` inside of a transformation, where modules cannot be called."""
        return _weights(self, (channels, self.features))

    def __call__(self, x: Float[Array, "*batch c_in"]) -> Float[Array, "*batch c_out"]:
        """Return the mapped channels, at least float32."""
        return project(x, self.weights(x.shape[-1]), self.dtype)


def project(x: Float[Array, "*batch c_in"], weights: Weights, dtype: Any) -> Float[Array, "*batch c_out"]:
    """Return channels mapped by the weights of a `Dense`, at least float32."""
    kernel, bias = weights
    x = product("...c,cd->...d", x, kernel, dtype)
    return x if bias is None else x + bias.astype(x.dtype)


class Conv3x3(nn.Module):
    """A 3x3 convolution.

    Attributes:
        features: channels that come out.
        dtype: of the factors. Its bias is added in at least float32.
        stddev: of the kernel's initial values.
        stride: in both directions.
    """

    features: int
    dtype: jnp.dtype
    stddev: float
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def weights(self, channels: int) -> Weights:
        """Return kernel and bias, for `convolve` inside of a transformation, where modules cannot be called."""
        return _weights(self, (3, 3, channels, self.features))

    def __call__(self, maps_bhwc: Float[Array, "batch height width c_in"]) -> Float[Array, "batch h_out w_out c_out"]:
        """Return the convolved maps, at least float32."""
        return convolve(maps_bhwc, self.weights(maps_bhwc.shape[-1]), self.dtype, stride=self.stride)


def convolve(
    maps_bhwc: Float[Array, "batch height width c_in"],
    weights: Weights,
    dtype: Any,
    *,
    stride: int = 1,
    row_padding: int = 1,
) -> Float[Array, "batch h_out w_out c_out"]:
    """Return maps convolved with the weights of a `Conv3x3`, at least float32."""
    kernel, bias = weights
    # Written out, for even grids: "SAME" pads them on one side only where the stride is 2.
    padding = ((row_padding, row_padding), (1, 1))
    # No wider result than the factors: the gradient of such a convolution does not exist in jax.
    maps_bhwc = jax.lax.conv_general_dilated(
        maps_bhwc.astype(dtype),
        kernel.astype(dtype),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=product_precision(dtype),
    ).astype(wide(dtype))
    return maps_bhwc if bias is None else maps_bhwc + bias.astype(maps_bhwc.dtype)


def _weights(module: Dense | Conv3x3, shape: tuple[int, ...]) -> Weights:
    kernel = parameter(module, "kernel", nn.initializers.normal(module.stddev), shape)
    if not module.use_bias:
        return kernel, None
    return kernel, parameter(module, "bias", nn.initializers.zeros, shape[-1:])


def gelu(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """Return the exact GELU: x times the normal distribution's integral up to x (arXiv:1606.08415).

    By erf, which has one polynomial where the erfc of `jax.nn.gelu` has three and an exponential: half the
    time on a CPU.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))
