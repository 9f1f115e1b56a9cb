"""Linear layers and convolutions whose result is at least float32 whatever they compute in, and a fast exact GELU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dajax import kernels


def parameter(module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...]) -> Array:
    """Return `module.param(name, init, shape)`.

    Flax traces `init` in every call to learn the expected shape, which is half of the time of tracing the network. This
    function takes a value that exists and has the shape, without tracing.
    """
    value: Any = module.get_variable("params", name)
    if not isinstance(value, jax.Array | np.ndarray) or value.shape != shape:
        value = module.param(name, init, shape)  # Flax makes it, takes it out of its box, or refuses it
    return jnp.asarray(value)


def parameter_dtype(path: str, dtype: Any) -> jnp.dtype:
    """Return the dtype in which a parameter is kept if the encoder computes in `dtype`.

    The encoder's matrices, which are most of the params, are kept in `dtype`. The rest is kept in at least float32: it
    takes little memory, and rounding errors in it would be visible in the depth.

    Args:
        path: the parameter's path, such as "backbone/layer_0/mlp/fc1/kernel".
        dtype: the computation dtype of the encoder.
    """
    is_matrix = path.startswith("backbone/layer_") and path.endswith("/kernel")
    return jnp.dtype(dtype) if is_matrix else kernels.wide(dtype)


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
    def weights(self, channels: int) -> kernels.Weights:
        """Return kernel and bias."""
        return _weights(self, (channels, self.features))

    def __call__(self, x: Float[Array, "*batch c_in"]) -> Float[Array, "*batch c_out"]:
        """Return the output channels, in at least float32."""
        return kernels.project(x, self.weights(x.shape[-1]), self.dtype)


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
    def weights(self, channels: int) -> kernels.Weights:
        """Return kernel and bias."""
        return _weights(self, (3, 3, channels, self.features))

    def __call__(
        self, features_bhwc: Float[Array, "batch height width c_in"]
    ) -> Float[Array, "batch h_out w_out c_out"]:
        """Return the convolved features, in at least float32."""
        return kernels.convolve(features_bhwc, self.weights(features_bhwc.shape[-1]), self.dtype, stride=self.stride)


def _weights(module: Dense | Conv3x3, shape: tuple[int, ...]) -> kernels.Weights:
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
