"""The platform that the network is traced for, and what depends on it: how something is computed, never what.

No other module asks for the platform. The choices are made when the network is traced, because
`jax.lax.platform_dependent` would trace every alternative and keep all of them in the program.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dajax.kernels.targets import current_target
from dajax.model.precision import wide

# The limits of cuDNN in https://docs.jax.dev/en/latest/_autosummary/jax.nn.dot_product_attention.html
_FUSED_ATTENTION_CAPABILITY = (8, 0)
_FUSED_ATTENTION_WIDTH = 128


def target_platform() -> str:
    """Return "cpu", "gpu" or "tpu", see `dajax.kernels.current_target`."""
    platform = current_target().platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def product_dtype(dtype: Any) -> jnp.dtype:
    """Return the dtype in which matrix products of `dtype` return their result.

    Every platform adds up in float32. On a CPU the result is float32 as well, because XLA's products from bfloat16 to
    bfloat16 are half as fast. Elsewhere the result is rounded to `dtype`, which moves half as many bytes.
    """
    return wide(dtype) if target_platform() == "cpu" else jnp.dtype(dtype)


def convolution_dtype(dtype: Any) -> jnp.dtype:
    """Return the computation dtype of convolutions if the encoder computes in `dtype`.

    On a CPU it is at least float32, because XLA's convolutions in bfloat16 take three times as long.
    """
    return wide(dtype) if target_platform() == "cpu" else jnp.dtype(dtype)


def has_fused_attention(dtype: Any, width: int) -> bool:
    """Return whether `jax.nn.dot_product_attention` has an implementation that never stores the attention scores.

    It is cuDNN's, which takes half precision and heads of at most 128 channels, on NVIDIA's GPUs since Ampere.
    """
    if target_platform() != "gpu" or jnp.dtype(dtype).itemsize != 2 or width % 8 or width > _FUSED_ATTENTION_WIDTH:
        return False
    return compute_capability() >= _FUSED_ATTENTION_CAPABILITY


def compute_capability() -> tuple[int, int]:
    """Return the CUDA compute capability of the GPU that is traced for, or (0, 0) if it is not NVIDIA's."""
    return current_target().capability
