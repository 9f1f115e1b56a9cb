"""Which part of the network is computed in which precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def wide(dtype: Any) -> jnp.dtype:
    """Return `dtype`, but at least float32. Sums, norms, softmax and the depth are computed in it."""
    # jnp.promote_types would raise an error if the user made jax's type promotion strict.
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def product_precision(dtype: Any) -> jax.lax.Precision | None:
    """Return the precision of matrix products and convolutions of `dtype`.

    For float32 it is full float32. jax's own default is TensorFloat-32 on NVIDIA's GPUs and bfloat16 on TPUs, which are
    a thousand and ten thousand times coarser. A user who sets `jax.default_matmul_precision` decides instead.
    """
    user_decides = jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]
    return None if user_decides or jnp.dtype(dtype).itemsize == 2 else jax.lax.Precision.HIGHEST
