"""Fast access to the parameters of modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def parameter(module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...]) -> Array:
    """Return `module.param(name, init, shape)`.

    Flax traces `init` in every call to learn the expected shape, which is half of the time of tracing the network. This
    function takes a value that exists and has the shape, without tracing.
    """
    value: Any = module.get_variable("params", name)
    if not isinstance(value, jax.Array | np.ndarray) or value.shape != shape:
        value = module.param(name, init, shape)  # Flax makes it, takes it out of its box, or refuses it
    return jnp.asarray(value)
