"""AdamW as Depth Anything is trained with: a learning rate for the encoder and one for the rest, falling to zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

from dajax.errors import ConfigError

# Parameters that are no matrices, or tables that are looked up: weight decay would only pull them to zero.
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
    """Return AdamW with a polynomial schedule; the defaults are those of V2's metric fine-tuning.

    Args:
        params: what is trained, or their shapes.
        steps: updates from the first to the last, at which the learning rates are zero.
        learning_rate: of neck and head.
        encoder_learning_rate: of the encoder; None: a tenth of `learning_rate`; 0: it stays as it is.
        warmup: updates in which the rates rise from zero.
        power: of the schedule, (1 - step / steps) ** power.
        weight_decay: of kernels; other parameters are not decayed.
        clip_norm: largest norm of all gradients together; None: not clipped.
        accumulate: gradients of so many steps are averaged into one update.

    Raises:
        ConfigError: a number is out of its range.
    """
    _check(steps=(steps, 1), accumulate=(accumulate, 1), warmup=(warmup, 0), learning_rate=(learning_rate, 0))
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
    return optimizer if accumulate == 1 else optax.MultiSteps(optimizer, accumulate)


def poly_schedule(rate: float, steps: int, warmup: int = 0, power: float = 0.9) -> optax.Schedule:
    """Return a schedule that rises for `warmup` steps, then falls as (1 - t) ** power, to zero at `steps`."""
    falling = optax.polynomial_schedule(rate, 0.0, power, steps - warmup)
    if warmup == 0:
        return falling
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), falling], [warmup])


def decay_mask(params: Any) -> Any:
    """Return a tree like `params`: True where weight decay applies, which is kernels."""
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
    """Return `fresh` params with the encoder of `params`: where metric fine-tuning starts from."""
    return {**fresh, "backbone": params["backbone"]}
