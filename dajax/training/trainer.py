"""Training from settings to a saved model, on synthetic scenes. The command `dajax train` calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError, JobError, WeightsError
from dajax.files import in_the_way_of
from dajax.model.depth_anything import DepthAnything
from dajax.preprocessing.processor import DepthImageProcessor
from dajax.training.batches import SceneBatches
from dajax.training.loop import Step, run_training_loop
from dajax.training.optimizer import encoder_only, make_optimizer
from dajax.training.placement import Placement
from dajax.training.run_checkpoints import import_orbax
from dajax.training.step import TrainState, make_train_step
from dajax.training.train_settings import LOSSES, ModelSettings, TrainSettings, merged
from dajax.training.validation import Validation
from dajax.weights.loading import load, load_encoder, released_config
from dajax.weights.saving import save
from dajax.weights.shapes import parameter_shapes

_LAST_BIAS, _LAST_KERNEL = "head/conv3/bias", "head/conv3/kernel"


def train(settings: TrainSettings, *, progress: bool = True) -> Path:
    """Train as the settings say, and save the model.

    If an earlier call was stopped, this one continues from the newest state in the output folder. It ends with the same
    params as a run that was not stopped.

    Where `jax.distributed` has joined several processes, all of them call this function with the same settings and an
    output folder that all of them see. Batches are split over all devices; process 0 writes.

    Args:
        settings: From `read_train_settings`, or made in Python.
        progress: Show a bar in a terminal, and elsewhere a line every ten seconds, on standard error.

    Returns:
        The folder of the saved model, `output`/model, in Transformers' layout. `output` also contains log.csv (a row
        for each step), validation.csv, images/ (image, truth and prediction at each validation) and checkpoints/.

    Raises:
        ConfigError: the settings do not fit each other or the devices, orbax is not installed, or there is a file where
            the output folder has to be.
        WeightsError: the checkpoint to start from cannot be loaded.
        JobError: the loss is not finite, or a state cannot be written or read.
    """
    import_orbax()  # before anything that takes long
    if problem := in_the_way_of(Path(settings.output)):
        raise ConfigError(f"output: {problem}")
    config, params = starting_point(settings.model, settings.seed)
    _check_loss(settings, config)
    model = DepthAnything(config, dtype=jnp.dtype(settings.model.dtype), remat=settings.model.remat)
    optimizer = _optimizer(settings, params)
    placement = Placement(settings.data.batch_size)
    state = placement.put_whole(TrainState.create(params, optimizer, ema=settings.ema_decay > 0))
    batch_of = SceneBatches(settings.data, is_metric=config.is_metric, rows=placement.rows)
    output = Path(settings.output)
    validation = Validation(model, settings.data, output, placement)
    # optax promotes dtypes, which jax's strict mode forbids.
    with jax.numpy_dtype_promotion("standard"):
        state = run_training_loop(
            _step(settings, model, optimizer),
            state,
            lambda number: placement.put_rows(batch_of(number)),
            output,
            steps=settings.steps,
            save_every=settings.save_every,
            validate_every=settings.validate_every,
            validate=lambda state, done: validation(_trained(state), done),
            keep=settings.keep,
            progress=progress,
        )
    _save(settings, model, _trained(state))
    return output / "model"


def _optimizer(settings: TrainSettings, params: Mapping[str, Any]) -> Any:
    chosen = settings.optimizer
    updates = max(settings.steps // chosen.accumulate, 1)
    return make_optimizer(params, steps=updates, **asdict(chosen))


def _step(settings: TrainSettings, model: DepthAnything, optimizer: Any) -> Step:
    return make_train_step(
        model,
        optimizer,
        LOSSES[settings.loss].function,
        ema_decay=settings.ema_decay or None,
        freeze=("backbone",) if settings.optimizer.encoder_learning_rate == 0 else (),
    )


def _trained(state: TrainState) -> Any:
    """Return the params that are validated and saved: the running mean if there is one."""
    return state.params if state.ema is None else state.ema


def _save(settings: TrainSettings, model: DepthAnything, params: Any) -> None:
    """Save the model in the output folder; return when it is there, in every process."""
    as_saved = jax.tree.map(lambda leaf: leaf.astype(settings.save_dtype), jax.device_get(params))
    if jax.process_index() == 0:
        processor = DepthImageProcessor(model.config.style, settings.data.size)
        try:
            save(Path(settings.output) / "model", model, as_saved, processor=processor)
        except WeightsError as error:
            raise JobError(f"{error}; the saved states are whole") from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the model is saved")


def starting_point(settings: ModelSettings, seed: int) -> tuple[DepthAnythingConfig, dict[str, Any]]:
    """Return the config and the float32 params with which a run starts.

    Raises:
        ConfigError: the config is not one of a Depth Anything model, or does not fit the checkpoint.
        WeightsError: the checkpoint cannot be loaded.
    """
    if not settings.start:
        config = DepthAnythingConfig.from_dict(settings.config)
        return config, fresh_params(config, seed)
    options = {"style": settings.style or None, **_load_options(settings)}
    if settings.encoder_only:
        own, encoder = load_encoder(settings.start, **options)
        config = DepthAnythingConfig.from_dict(merged(own.to_dict(), settings.config))
        if config.backbone_config != own.backbone_config:
            raise ConfigError(
                f"model.encoder_only takes the encoder of {settings.start}, so that model.config must not change "
                "backbone_config: leave backbone_config out"
            )
        return config, encoder_only(encoder, fresh_params(config, seed))
    model, params = load(settings.start, dtype="float32", **options)
    config = DepthAnythingConfig.from_dict(merged(model.config.to_dict(), settings.config))
    if parameter_shapes(config) != parameter_shapes(model.config):
        raise ConfigError(
            f"the params of {settings.start} do not fit model.config; with encoder_only = true only its encoder is used"
        )
    return config, params


def _load_options(settings: ModelSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "prefix": settings.prefix or None,
        "revision": settings.revision or None,
        "local_files_only": settings.local_files_only,
    }
    if settings.kind:
        options["config"] = released_config(settings.start, settings.kind, **options)
    elif settings.weights_config:
        options["config"] = DepthAnythingConfig.from_pretrained(settings.weights_config)
    return options


def fresh_params(config: DepthAnythingConfig, seed: int = 0) -> dict[str, Any]:
    """Return new params, initialised as Transformers does it, except for the last convolution.

    A relative model ends with a ReLU: if its output were zero at every pixel, nothing would have a gradient. So the
    last bias is 1 and the last kernel is not negative; its inputs are not either, because they come from a ReLU. Then
    the output is at least 1 for every image, seed and encoder. A metric model ends with a sigmoid, which would begin at
    half of the largest depth, many times the depth of most images. So its last bias is -2, and its output begins at
    about an eighth of the largest depth.

    Args:
        config: the config of the model.
        seed: the seed of the random values.

    Returns:
        A nested dict of float32 arrays.
    """
    flat = flatten_dict(_initialised(config, jax.random.key(seed)), sep="/")
    flat[_LAST_BIAS] = jnp.full_like(flat[_LAST_BIAS], -2.0 if config.is_metric else 1.0)
    if not config.is_metric:
        flat[_LAST_KERNEL] = jnp.abs(flat[_LAST_KERNEL])
    return unflatten_dict(flat, sep="/")


@partial(jax.jit, static_argnums=0)
def _initialised(config: DepthAnythingConfig, key: jax.Array) -> Any:
    pixels = jnp.zeros((1, 2 * config.patch_size, 2 * config.patch_size, 3))
    return DepthAnything(config).init(key, pixels)["params"]


def _check_loss(settings: TrainSettings, config: DepthAnythingConfig) -> None:
    kind = "metric" if config.is_metric else "relative"
    if LOSSES[settings.loss].kind != kind:
        fitting = " or ".join(name for name, loss in LOSSES.items() if loss.kind == kind)
        raise ConfigError(f"loss = {settings.loss!r} is not for a {kind} model: use {fitting}")
