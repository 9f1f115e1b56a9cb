"""Parameters of modules, quickly."""

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

    Flax traces `init` with every call, to know the shape that is expected: half of the time that tracing the network
    takes. What is there and has the shape is taken as it is.
    """
    value: Any = module.get_variable("params", name)
    if not isinstance(value, jax.Array | np.ndarray) or value.shape != shape:
        value = module.param(name, init, shape)  # made, taken out of Flax's box, or refused
    return jnp.asarray(value)
