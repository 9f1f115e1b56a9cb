"""Loops that keep memory small on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def map_into(start: Array, function: Callable[[Any], Array], xs: Any, places: Array | None = None) -> Array:
    """Return `start` with the results of `function` in it: those of `jax.lax.map(function, xs)`, or parts of an array.

    `jax.lax.map` begins with zeros, and XLA makes the zeros of all loops of a program before anything else: they take
    memory from its beginning. `start` depends on what came before.

    Args:
        start: of the result's shape and type. What it holds is of no matter where all of it is written over.
        function: of one element of `xs`.
        xs: arrays with a leading axis, as for `jax.lax.map`.
        places: where along the first axis each result, then with as many axes as `start`, begins. None: the i-th result
            is element i.
    """
    if start.size == 0:
        return start
    count = jax.tree.leaves(xs)[0].shape[0]

    def step(result: Array, place_and_x: tuple[Array, Any]) -> tuple[Array, None]:
        place, x = place_and_x
        value = function(x)
        if places is None:
            value = value[None]
        return jax.lax.dynamic_update_slice_in_dim(result, value.astype(result.dtype), place, 0), None

    return jax.lax.scan(step, start, (jnp.arange(count) if places is None else places, xs))[0]
