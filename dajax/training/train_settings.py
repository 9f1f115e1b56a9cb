"""The settings of a training run: read from a TOML file and checked before anything is built."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from dajax import losses
from dajax.config import KINDS, Style
from dajax.errors import ConfigError
from dajax.files import reason


class NamedLoss(NamedTuple):
    """A loss that settings can name, and the kind of model that it trains."""

    function: Callable[..., Any]
    kind: Literal["relative", "metric"]


LOSSES = {
    "silog": NamedLoss(losses.silog_loss, "metric"),
    "affine_invariant": NamedLoss(losses.affine_invariant_loss, "relative"),
    "aligned_l1": NamedLoss(losses.aligned_l1_loss, "relative"),
    "aligned_log": NamedLoss(losses.aligned_log_loss, "relative"),
    "depth_anything": NamedLoss(losses.depth_anything_loss, "relative"),
}


@dataclass(frozen=True)
class ModelSettings:
    """Which model is trained, and from which params.

    Attributes:
        start: Alias, Hub id or path of a checkpoint; empty: fresh params for `config`.
        config: the fields of a config.json for a fresh model, or those that differ from the checkpoint's. In TOML these
            are the tables [model.config] and [model.config.backbone_config].
        kind: the kind of the weights in `start`, if their file does not say it: "relative", "metric-indoor",
            "metric-outdoor" or "v1"; empty: the kind that is stored with them.
        weights_config: the same as an alias or as the path of a config.json; empty: none.
        prefix: what stands before the names of the model's tensors, if the file has several models.
        revision: Branch, tag or commit on the Hub; empty: main.
        local_files_only: Open no connection to the Hub.
        style: "huggingface" or "official", see `dajax.load`; empty: the style of the checkpoint.
        encoder_only: Take only the encoder from `start`, which may be a DINOv2 encoder alone; neck and head get fresh
            params.
        dtype: the computation dtype, float32 or bfloat16; params are float32.
        remat: Compute activations again in the backward pass, which saves memory.
    """

    start: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    kind: str = ""
    weights_config: str = ""
    prefix: str = ""
    revision: str = ""
    local_files_only: bool = False
    style: str = ""
    encoder_only: bool = False
    dtype: str = "float32"
    remat: bool = False


@dataclass(frozen=True)
class DataSettings:
    """Which synthetic scenes a model is trained on.

    Attributes:
        seed: the seed of the scenes. Validation scenes are others, whatever the seed.
        size: Height and width of the images in pixels, a multiple of 14.
        count: the number of different scenes; 0: every scene is new.
        batch_size: the number of scenes in a step, on all devices together.
        validation: the number of held-out scenes.
        flip: Mirror half of the images.
        degrade: Change colours, blur, add noise and compress, differently each time.
    """

    seed: int = 0
    size: int = 168
    count: int = 0
    batch_size: int = 8
    validation: int = 64
    flip: bool = True
    degrade: bool = True


@dataclass(frozen=True)
class OptimizerSettings:
    """The arguments of `dajax.training.make_optimizer`.

    Attributes:
        learning_rate: the learning rate of neck and head.
        encoder_learning_rate: the learning rate of the encoder; None: a tenth of `learning_rate`; 0: it is frozen.
        warmup: the number of updates in which the rates rise from zero.
        power: the exponent of the schedule (1 - t) ** power.
        weight_decay: the weight decay of kernels.
        clip_norm: the largest norm of all gradients together; None: no clipping.
        accumulate: the number of batches whose mean gradient makes one update.
    """

    learning_rate: float = 5e-5
    encoder_learning_rate: float | None = None
    warmup: int = 0
    power: float = 0.9
    weight_decay: float = 0.01
    clip_norm: float | None = None
    accumulate: int = 1


@dataclass(frozen=True)
class TrainSettings:
    """A training run.

    Attributes:
        output: the folder for checkpoints, logs, images and the trained model.
        steps: the number of batches.
        seed: the seed of fresh params.
        loss: a name in `LOSSES`.
        ema_decay: the decay of the running mean of the params, which is then validated and saved; 0: no mean.
        save_every: Steps between two saved training states.
        validate_every: Steps between two validations.
        keep: the number of training states that stay on disk.
        save_dtype: the dtype of the saved model's params: float32, float16 or bfloat16.
        model: which model is trained.
        data: what it is trained on.
        optimizer: how it is updated.
    """

    output: str
    steps: int
    seed: int = 0
    loss: str = "silog"
    ema_decay: float = 0.0
    save_every: int = 500
    validate_every: int = 500
    keep: int = 2
    save_dtype: str = "float32"
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)


def read_train_settings(path: str | Path, changes: Mapping[str, Any] | None = None) -> TrainSettings:
    """Return the settings in a TOML file.

    Args:
        path: the file. Its keys are the fields of `TrainSettings`; docs/training.md lists them.
        changes: values that replace those in the file, in tables like its own.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the message names the nearest known one), or a value has
            a wrong type or is out of range. The message lists all problems.
    """
    path = Path(path)
    try:
        # Some editors put a byte order mark first, which TOML does not have.
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {reason(error)}") from error
    problems: list[str] = []
    settings: TrainSettings = _build(TrainSettings, merged(values, changes or {}), "", problems)
    if not problems:
        problems = list(_out_of_range(settings))
    if problems:
        raise ConfigError(f"{path}: " + "; ".join(problems))
    return settings


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables in which the changes replace some of the values."""
    nested = {
        name: merged(values[name] if isinstance(values.get(name), Mapping) else {}, value)
        for name, value in changes.items()
        if isinstance(value, Mapping)
    }
    return {**values, **changes, **nested}


def _build(kind: Any, values: dict[str, Any], prefix: str, problems: list[str]) -> Any:
    types, known = get_type_hints(kind), {entry.name: entry for entry in fields(kind)}
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            problems.append(f"{name} is not a setting" + (f"; did you mean {prefix}{near[0]}?" if near else ""))
            continue
        if is_dataclass(types[key]):
            if isinstance(value, dict):
                found[key] = _build(types[key], value, f"{name}.", problems)
            else:
                problems.append(f"{name} must be a table, got {value!r}")
            continue
        expected = _plain(types[key])
        if expected is float and type(value) is int:
            found[key] = float(value)
        elif type(value) is not expected:
            problems.append(f"{name} must be of type {expected.__name__}, got {value!r}")
        else:
            found[key] = value
    missing = [key for key in ("output", "steps") if kind is TrainSettings and key not in values]
    problems += [f"{key} is missing" for key in missing]
    return None if problems else kind(**found)


def _plain(hint: Any) -> Any:
    """Return float for `float | None`, because TOML has no null, and dict for `dict[str, Any]`."""
    inner = next((part for part in get_args(hint) if hint == part | None), hint) if get_args(hint) else hint
    return get_origin(inner) or inner


def _out_of_range(settings: TrainSettings) -> Iterator[str]:
    """Yield a sentence for each value that is out of its range."""
    least = {
        "steps": 1, "save_every": 1, "validate_every": 1, "keep": 1, "data.batch_size": 1, "data.validation": 1,
        "data.count": 0, "data.size": 14, "data.seed": 0, "seed": 0, "optimizer.accumulate": 1, "optimizer.warmup": 0,
        "optimizer.learning_rate": 0, "optimizer.encoder_learning_rate": 0, "optimizer.weight_decay": 0,
        "optimizer.clip_norm": 0, "optimizer.power": 0, "ema_decay": 0,
    }  # fmt: skip
    for name, smallest in least.items():
        value: Any = settings
        for part in name.split("."):
            value = getattr(value, part)
        if value is not None and not value >= smallest:
            yield f"{name} must be at least {smallest}, got {value!r}"
    if settings.data.size % 14:
        yield f"data.size must be a multiple of 14, got {settings.data.size}"
    if settings.ema_decay >= 1:
        yield f"ema_decay must be below 1, got {settings.ema_decay}"
    if settings.loss not in LOSSES:
        yield f"loss must be one of {', '.join(LOSSES)}, got {settings.loss!r}"
    if settings.model.kind not in ("", *KINDS):
        yield f"model.kind must be one of {', '.join(KINDS)}, got {settings.model.kind!r}"
    if settings.model.style not in ("", *get_args(Style)):
        yield f"model.style must be one of {', '.join(get_args(Style))}, got {settings.model.style!r}"
    if settings.model.kind and settings.model.weights_config:
        yield "model.kind and model.weights_config say the same: give one of them"
    if settings.model.dtype not in ("float32", "bfloat16"):
        yield f"model.dtype must be float32 or bfloat16, got {settings.model.dtype!r}"
    if settings.save_dtype not in ("float32", "float16", "bfloat16"):
        yield f"save_dtype must be float32, float16 or bfloat16, got {settings.save_dtype!r}"
    if not settings.model.start and not settings.model.config:
        yield "model.start or model.config is needed"
    if settings.model.encoder_only and not settings.model.start:
        yield "model.encoder_only needs model.start"
