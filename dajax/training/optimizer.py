"""The optimizer of Depth Anything: AdamW with one learning rate for the encoder and one for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import optax

from dajax.errors import ConfigError

# These parameters are vectors or lookup tables; weight decay would only pull them to zero.
_NOT_DECAYED = ("bias", "scale", "lambda1", "cls_token", "mask_token", "position_embeddings")


def make_optimizer(
    params: Mapping[str, Any],
    *,
    steps: int,
    learning_rate: float = 5e-5,
    encoder_learning_rate: float | None = None,
    warmup: int = 0,
    power: float = 0.9,
    weight_decay: float = 0.01,
    clip_norm: float | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation | optax.MultiSteps:
    """Return AdamW with a polynomial schedule. The defaults are those of the metric fine-tuning of Depth Anything V2.

    Args:
        params: the params that are trained, or their shapes.
        steps: the number of updates in the whole training; the learning rates are zero at the end.
        learning_rate: the learning rate of neck and head.
        encoder_learning_rate: the learning rate of the encoder; None: a tenth of `learning_rate`; 0: it is frozen.
        warmup: the number of updates in which the rates rise from zero.
        power: the exponent of the schedule (1 - step / steps) ** power.
        weight_decay: the weight decay of kernels. Other parameters are not decayed.
        clip_norm: the largest norm of all gradients together; None: no clipping.
        accumulate: the number of batches whose mean gradient makes one update.

    Raises:
        ConfigError: a number is out of its range.
    """
    _check(steps=(steps, 1), accumulate=(accumulate, 1), warmup=(warmup, 0), learning_rate=(learning_rate, 0))
    _check(power=(power, 0), weight_decay=(weight_decay, 0))
    if warmup >= steps:
        raise ConfigError(f"warmup must be shorter than all {steps} steps, got {warmup}")
    if encoder_learning_rate is None:
        encoder_learning_rate = learning_rate / 10

    def adamw(rate: float) -> optax.GradientTransformation:
        if rate == 0:
            return optax.set_to_zero()
        return optax.adamw(poly_schedule(rate, steps, warmup, power), weight_decay=weight_decay, mask=decay_mask)

    groups = optax.multi_transform({"encoder": adamw(encoder_learning_rate), "rest": adamw(learning_rate)}, _groups)
    optimizer = groups if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), groups)
    optimizer = optax.GradientTransformation(partial(_init, optimizer.init), optimizer.update)
    return optimizer if accumulate == 1 else optax.MultiSteps(optimizer, accumulate)


def _init(init: Callable[[Any], Any], params: Any) -> Any:
    """Start the optimizer, but for no params in half precision: their updates would be lost, or make them NaN."""
    halves = [leaf.dtype for leaf in jax.tree.leaves(params) if leaf.dtype.itemsize < 4]
    if halves:
        raise ConfigError(
            f"{len(halves)} params are {halves[0]}, in which training fails: make the state with TrainState.create, "
            'which casts them to float32, or load them with dtype="float32"'
        )
    return init(params)


def poly_schedule(rate: float, steps: int, warmup: int = 0, power: float = 0.9) -> optax.Schedule:
    """Return a schedule that rises linearly for `warmup` steps and then falls to zero at `steps`.

    It falls as (1 - t) ** power, where t goes from 0 to 1.
    """
    falling = optax.polynomial_schedule(rate, 0.0, power, steps - warmup)
    if warmup == 0:
        return falling
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), falling], [warmup])


def decay_mask(params: Any) -> Any:
    """Return a tree like `params` that is True where weight decay applies: at kernels."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path[-1]) not in _NOT_DECAYED, params)


def _groups(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "encoder" if _name(path[0]) == "backbone" else "rest", params
    )


def _name(key: Any) -> str:
    return str(getattr(key, "key", key))


def _check(**values: tuple[float, float]) -> None:
    for name, (value, least) in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise ConfigError(f"{name} must be a number of at least {least}, got {value!r}")


def encoder_only(params: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `fresh` params with the encoder of `params`. Metric fine-tuning starts from such params."""
    return {**fresh, "backbone": params["backbone"]}
