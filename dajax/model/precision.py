"""What is computed in which precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def wide(dtype: Any) -> jnp.dtype:
    """Return the type of what is not the trunk's: `dtype`, but at least float32."""
    # Written out, because jnp.promote_types refuses two types where the user made promotion strict.
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def product_precision(dtype: Any) -> jax.lax.Precision | None:
    """Return the precision of matrix products and convolutions of `dtype`.

    float32 is float32. jax's own default is TensorFloat-32 on NVIDIA's GPUs and bfloat16 on TPUs, a thousand and ten
    thousand times coarser; it holds where the user says so with `jax.default_matmul_precision`.
    """
    user_decides = jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]
    return None if user_decides or jnp.dtype(dtype).itemsize == 2 else jax.lax.Precision.HIGHEST


def parameter_dtype(path: str, dtype: Any) -> jnp.dtype:
    """Return the type to keep a parameter in, where the trunk computes in `dtype`.

    That of the encoder's matrices, most of the params, is `dtype`. The rest is at least float32: what rounding does to
    it is seen in the depth, and it costs little.

    Args:
        path: such as "backbone/layer_0/mlp/fc1/kernel".
        dtype: what the trunk computes in.
    """
    is_matrix = path.startswith("backbone/layer_") and path.endswith("/kernel")
    return jnp.dtype(dtype) if is_matrix else wide(dtype)
