"""Which part of the network is computed and kept in which precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def wide(dtype: Any) -> jnp.dtype:
    """Return `dtype`, but at least float32. Sums, norms, softmax and the last layers are computed in it."""
    # jnp.promote_types would raise an error if the user made jax's type promotion strict.
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def product_precision(dtype: Any) -> jax.lax.Precision | None:
    """Return the precision of matrix products and convolutions of `dtype`.

    For float32 it is full float32. jax's own default is TensorFloat-32 on NVIDIA's GPUs and bfloat16 on TPUs, which are
    a thousand and ten thousand times coarser. A user who sets `jax.default_matmul_precision` decides instead.
    """
    user_decides = jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]
    return None if user_decides or jnp.dtype(dtype).itemsize == 2 else jax.lax.Precision.HIGHEST


def parameter_dtype(path: str, dtype: Any) -> jnp.dtype:
    """Return the dtype in which a parameter is kept if the encoder computes in `dtype`.

    The encoder's matrices, which are most of the params, are kept in `dtype`. The rest is kept in at least float32: it
    takes little memory, and rounding errors in it would be visible in the depth.

    Args:
        path: the parameter's path, such as "backbone/layer_0/mlp/fc1/kernel".
        dtype: the computation dtype of the encoder.
    """
    is_matrix = path.startswith("backbone/layer_") and path.endswith("/kernel")
    return jnp.dtype(dtype) if is_matrix else wide(dtype)
