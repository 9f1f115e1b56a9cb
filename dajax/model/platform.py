"""The one place that says what platform is traced for. It decides how something is computed, never what.

Choices are made at trace time: `jax.lax.platform_dependent` would trace every way and carry all of them along.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dajax.model.precision import wide

# What jax's call of cuDNN takes: https://docs.jax.dev/en/latest/_autosummary/jax.nn.dot_product_attention.html
_FUSED_ATTENTION_CAPABILITY = (8, 0)
_FUSED_ATTENTION_WIDTH = 128


def target_platform() -> str:
    """Return "cpu", "gpu" or "tpu": where `jax.default_device` says, else what jax runs on by itself.

    Whoever runs a program on other devices than the default ones traces it under `jax.default_device`, as estimators
    do.
    """
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else str(device.platform)


def product_dtype(dtype: Any) -> jnp.dtype:
    """Return the type in which matrix products of `dtype` give their result.

    Sums are float32 everywhere. On a CPU so is the result: XLA's products from bfloat16 to bfloat16 are half as fast.
    Elsewhere it is rounded to `dtype`, which moves half of the bytes.
    """
    return wide(dtype) if target_platform() == "cpu" else jnp.dtype(dtype)


def convolution_dtype(dtype: Any) -> jnp.dtype:
    """Return the type of convolutions where the trunk computes in `dtype`.

    At least float32 on a CPU, where those of XLA in bfloat16 take three times as long.
    """
    return wide(dtype) if target_platform() == "cpu" else jnp.dtype(dtype)


def has_fused_attention(dtype: Any, width: int) -> bool:
    """Return whether `jax.nn.dot_product_attention` has an implementation that never stores the scores.

    That is cuDNN's: half precision, heads of at most 128 channels, and NVIDIA's GPUs since Ampere.
    """
    if target_platform() != "gpu" or jnp.dtype(dtype).itemsize != 2 or width % 8 or width > _FUSED_ATTENTION_WIDTH:
        return False
    return compute_capability() >= _FUSED_ATTENTION_CAPABILITY


def compute_capability() -> tuple[int, int]:
    """Return NVIDIA's number for the generation of the GPU that is traced for; (0, 0) of other makers' GPUs."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None or isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)
