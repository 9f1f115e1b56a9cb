"""One training step: a pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dajax.model.depth_anything import DepthAnything

# (prediction, target, mask) -> scalar; all [batch, height, width].
Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that training changes: a pytree.

    Attributes:
        step: how many batches have been seen.
        params: what is trained, float32.
        opt_state: the optimizer's.
        ema: running mean of the params, or None.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any = None

    @classmethod
    def create(cls, params: Mapping[str, Any], optimizer: Any, *, ema: bool = False) -> TrainState:
        """Return the state before the first step."""
        params = jax.tree.map(jnp.asarray, dict(params))
        # A copy: donated states must not hold the same memory twice.
        mean = jax.tree.map(jnp.copy, params) if ema else None
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params), mean)


def make_train_step(
    model: DepthAnything,
    optimizer: Any,
    loss: Loss,
    *,
    ema_decay: float | None = None,
    freeze: tuple[str, ...] = (),
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Return a function (state, batch) -> (state, metrics), to be put through `jax.jit`.

    batch: {"pixel_values": float [batch, height, width, 3], "labels": float [batch, height, width], "mask": bool
    [batch, height, width]}. Labels are metres for metric models and inverse depth for relative ones. Cut over the
    devices of a mesh, the same function trains on all of them: sums over a batch are sums over all devices.

    Args:
        model: computes in its own dtype; params stay float32. `DepthAnything(config, dtype="bfloat16", remat=True)`
            computes in half precision and keeps few activations.
        optimizer: of optax.
        loss: (prediction, target, mask) -> scalar: one of `dajax.losses`, or your own.
        ema_decay: of the running mean of the params; None: there is none.
        freeze: parts of the params, such as "backbone", that get no gradient and cost no backward pass.

    Returns:
        The step. Its metrics are scalars: "loss", and "grad_norm", the norm of all gradients.
    """

    def loss_of(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        params = {name: jax.lax.stop_gradient(part) if name in freeze else part for name, part in params.items()}
        output: Any = model.apply({"params": params}, batch["pixel_values"])
        return loss(output.predicted_depth, batch["labels"], batch["mask"])

    def train_step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        value, gradients = jax.value_and_grad(loss_of)(state.params, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            # Between the updates of an accumulating optimizer the params stand still, and so does their mean.
            updated = optimizer.has_updated(opt_state) if isinstance(optimizer, optax.MultiSteps) else True
            rate = jnp.where(updated, 1 - ema_decay, 0)
            ema = jax.tree.map(lambda mean, new: mean + rate.astype(mean.dtype) * (new - mean), ema, params)
        metrics = {"loss": value, "grad_norm": _norm(gradients)}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return train_step


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum((jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)), jnp.zeros(())))
