"""One training step: a pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dajax.errors import ConfigError
from dajax.model.depth_anything import DepthAnything

# (prediction, target, mask) -> scalar; all [batch, height, width].
Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes; a pytree.

    Attributes:
        step: how many batches have been seen.
        params: the params that are trained, float32.
        opt_state: the state of the optimizer.
        ema: the running mean of the params, or None.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any = None

    @classmethod
    def create(cls, params: Mapping[str, Any], optimizer: Any, *, ema: bool = False) -> TrainState:
        """Return the state before the first step.

        Args:
            params: the params to train. Those in half precision become float32: an update is often smaller than the
                spacing of half-precision numbers, and Adam's squares underflow. The model computes in its own `dtype`.
            optimizer: an optimizer of optax.
            ema: whether to keep a running mean of the params.

        Raises:
            ConfigError: a param is not floating-point.
        """
        params = jax.tree_util.tree_map_with_path(_master, dict(params))
        # A copy, because a donated state must not hold the same memory twice.
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
    """Return a training step: a pure function (state, batch) -> (state, metrics), for `jax.jit`.

    A batch is {"pixel_values": float [batch, height, width, 3], "labels": float [batch, height, width], "mask": bool
    [batch, height, width]}. Labels are metres for metric models and inverse depth for relative models. If the batch is
    split over the devices of a mesh, the same function trains on all of them: a sum over the batch is then a sum over
    all devices.

    Args:
        model: the model. It computes in its own dtype, and params stay float32:
            `DepthAnything(config, dtype="bfloat16", remat=True)` computes in half precision and keeps few activations.
        optimizer: an optimizer of optax, for example from `make_optimizer`.
        loss: a function (prediction, target, mask) -> scalar, from `dajax.losses` or your own.
        ema_decay: the decay of the running mean of the params; None: no mean.
        freeze: the top-level parts of the params, such as "backbone", that get no gradient. They cost no backward pass.

    Returns:
        The step. Its metrics are two scalars: "loss", and "grad_norm", the norm of all gradients together.
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
            # An accumulating optimizer leaves the params as they are between its updates; so does the mean.
            updated = optimizer.has_updated(opt_state) if isinstance(optimizer, optax.MultiSteps) else True
            rate = jnp.where(updated, 1 - ema_decay, 0)
            ema = jax.tree.map(lambda mean, new: mean + rate.astype(mean.dtype) * (new - mean), ema, params)
        metrics = {"loss": value, "grad_norm": _norm(gradients)}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return train_step


def _master(path: Any, leaf: Any) -> jax.Array:
    """Return a param in a type that it can be trained in."""
    array = jnp.asarray(leaf)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ConfigError(f"params must be floating-point arrays, but {name} is {array.dtype}")
    return array.astype(jnp.float32) if array.dtype.itemsize < 4 else array


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum((jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)), jnp.zeros(())))
