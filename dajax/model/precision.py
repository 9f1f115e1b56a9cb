"""What is computed in more than the trunk's precision."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def wide(dtype: Any) -> jnp.dtype:
    """Return the type that norms, softmax and the last layers compute in: `dtype`, but at least float32."""
    # Written out, because jnp.promote_types refuses two types where the user made promotion strict.
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)
