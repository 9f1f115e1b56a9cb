"""`dajax train`: from settings to a saved model, on synthetic scenes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError, JobError, WeightsError
from dajax.model.depth_anything import DepthAnything
from dajax.preprocessing.processor import DepthImageProcessor
from dajax.training.batches import SceneBatches
from dajax.training.loop import run_training_loop
from dajax.training.optimizer import encoder_only, make_optimizer
from dajax.training.placement import Placement
from dajax.training.step import TrainState, make_train_step
from dajax.training.train_settings import LOSSES, ModelSettings, TrainSettings, merged
from dajax.training.validation import Validation
from dajax.weights.loading import load, released_config
from dajax.weights.saving import save
from dajax.weights.shapes import parameter_shapes

_LAST_BIAS = "head/conv3/bias"


def train(settings: TrainSettings, *, progress: bool = True) -> Path:
    """Train as the settings say, and save the result.

    Called again after it was stopped, it goes on from the newest state in the output folder, and ends with the same
    params as a run that was not stopped.

    Where `jax.distributed` joins several processes, all of them call this with the same settings and an output folder
    that all of them see. Batches are cut over all devices; the first process writes.

    Args:
        settings: from `read_train_settings`, or made by hand.
        progress: show a bar.

    Returns:
        The folder of the saved model, in Transformers' layout: `output`/model. `output` also has log.csv (a row for
        each step), validation.csv, images/ (image, truth and prediction at each validation) and checkpoints/.

    Raises:
        ConfigError: the settings do not fit each other or the devices.
        WeightsError: the checkpoint to start from cannot be loaded.
        JobError: the loss is not finite, or a state cannot be written or read.
    """
    config, params = start(settings.model, settings.seed)
    _check_loss(settings, config)
    model = DepthAnything(config, dtype=jnp.dtype(settings.model.dtype), remat=settings.model.remat)
    optimizer = make_optimizer(
        params,
        steps=max(settings.steps // settings.optimizer.accumulate, 1),
        learning_rate=settings.optimizer.learning_rate,
        encoder_learning_rate=settings.optimizer.encoder_learning_rate,
        warmup=settings.optimizer.warmup,
        power=settings.optimizer.power,
        weight_decay=settings.optimizer.weight_decay,
        clip_norm=settings.optimizer.clip_norm,
        accumulate=settings.optimizer.accumulate,
    )
    frozen = ("backbone",) if settings.optimizer.encoder_learning_rate == 0 else ()
    train_step = make_train_step(
        model, optimizer, LOSSES[settings.loss], ema_decay=settings.ema_decay or None, freeze=frozen
    )
    placement = Placement(settings.data.batch_size)
    state = placement.put_whole(TrainState.create(params, optimizer, ema=settings.ema_decay > 0))
    batch_of = SceneBatches(settings.data, is_metric=config.is_metric, rows=placement.rows)
    output = Path(settings.output)
    validation = Validation(model, settings.data, output, placement)
    # optax promotes types by itself, which jax's strict mode would forbid.
    with jax.numpy_dtype_promotion("standard"):
        state = run_training_loop(
            train_step,
            state,
            lambda number: placement.put_rows(batch_of(number)),
            output,
            steps=settings.steps,
            save_every=settings.save_every,
            validate_every=settings.validate_every,
            validate=lambda state, done: validation(state.params if state.ema is None else state.ema, done),
            keep=settings.keep,
            progress=progress,
        )
    trained = jax.device_get(state.params if state.ema is None else state.ema)
    as_saved = jax.tree.map(lambda leaf: leaf.astype(settings.save_dtype), trained)
    if jax.process_index() == 0:
        try:
            save(output / "model", model, as_saved, processor=DepthImageProcessor(config.style, settings.data.size))
        except WeightsError as error:
            raise JobError(f"{error}; the saved states are whole") from error
    if jax.process_count() > 1:
        # No process says that it is done before the model is there.
        multihost_utils.sync_global_devices("the model is saved")
    return output / "model"


def start(settings: ModelSettings, seed: int) -> tuple[DepthAnythingConfig, dict[str, Any]]:
    """Return the config and the float32 params that a run starts from.

    Raises:
        ConfigError: the settings' config is none of a Depth Anything model, or does not fit the checkpoint.
        WeightsError: the checkpoint cannot be loaded.
    """
    if not settings.start:
        config = DepthAnythingConfig.from_dict(settings.config)
        return config, fresh_params(config, seed)
    model, params = load(settings.start, dtype="float32", style=settings.style or None, **_load_options(settings))
    config = DepthAnythingConfig.from_dict(merged(model.config.to_dict(), settings.config))
    if settings.encoder_only:
        if config.backbone_config != model.config.backbone_config:
            raise ConfigError(f"model.encoder_only needs the encoder of {settings.start}: leave backbone_config out")
        return config, encoder_only(params, fresh_params(config, seed))
    if parameter_shapes(config) != parameter_shapes(model.config):
        raise ConfigError(
            f"the params of {settings.start} do not fit model.config; encoder_only takes the encoder alone"
        )
    return config, params


def _load_options(settings: ModelSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "revision": settings.revision or None,
        "local_files_only": settings.local_files_only,
    }
    if settings.kind:
        options["config"] = released_config(settings.start, settings.kind, **options)
    elif settings.weights_config:
        options["config"] = DepthAnythingConfig.from_pretrained(settings.weights_config)
    return options


def fresh_params(config: DepthAnythingConfig, seed: int = 0) -> dict[str, Any]:
    """Return freshly initialised params, drawn as Transformers draws them, but for the last bias.

    The last thing in a relative model is a ReLU: where it begins at zero for all pixels, nothing has a gradient. In a
    metric model it is a sigmoid, which would begin at half of the largest depth: many times what images show. There
    it begins at an eighth.
    """
    pixels = jnp.zeros((1, 2 * config.patch_size, 2 * config.patch_size, 3))
    variables: Mapping[str, Any] = jax.jit(DepthAnything(config).init)(jax.random.key(seed), pixels)
    flat = flatten_dict(variables["params"], sep="/")
    bias = -2.0 if config.is_metric else 1.0
    return unflatten_dict(flat | {_LAST_BIAS: jnp.full_like(flat[_LAST_BIAS], bias)}, sep="/")


def _check_loss(settings: TrainSettings, config: DepthAnythingConfig) -> None:
    metric = settings.loss == "silog"
    if metric != config.is_metric:
        kind = "metric" if config.is_metric else "relative"
        fitting = "silog" if config.is_metric else " or ".join(name for name in LOSSES if name != "silog")
        raise ConfigError(f"loss = {settings.loss!r} is not for a {kind} model: use {fitting}")
