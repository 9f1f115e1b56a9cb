"""Reads a checkpoint in any form and writes it in another."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from dajax.errors import HubError, WeightsError
from dajax.hub import HubOptions, hub_options_in, is_hub_id
from dajax.model.depth_anything import DepthAnything
from dajax.weights.loading import load
from dajax.weights.saving import save

if TYPE_CHECKING:
    from dajax.preprocessing.processor import DepthImageProcessor


def convert(
    source: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    format: str = "flax",
    style: str | None = None,
    input_size: int | tuple[int, int] | None = None,
    **load_options: Any,
) -> DepthAnything:
    """Read a checkpoint in any form that `dajax.load` reads, and write it as a directory.

    The params stay in main memory, on the CPU. If the source has a preprocessor_config.json, it is written too;
    a folder or repository without one gets that of the released checkpoints, with a warning.

    Args:
        source: as for `dajax.load`.
        directory: the folder to write. It is made if it does not exist. A checkpoint in it is replaced.
        format: "flax", "hf" or "official", see `dajax.save`.
        style: what the result is to be used with, see `dajax.load`; None: as the source.
        input_size: what the result's processor scales images to; None: as the source's, else 518.
        load_options: of `dajax.load`: `config`, `dtype`, `revision`, `token`, `cache_dir`, `local_files_only`,
            `check_finite`. Without `dtype` the params keep their type.

    Returns:
        The model, whose config describes what was converted.

    Raises:
        WeightsError, ConfigError, HubError: see `dajax.load` and `dajax.save`. Nothing is written before everything has
            been read.
    """
    if not is_hub_id(source):
        taken = {os.path.realpath(source), os.path.realpath(_folder(source))}
        if os.path.realpath(directory) in taken:
            raise WeightsError(f"{source} would be written over itself: choose another folder than {directory}")
    model, params = load(source, style=style, sharding=jax.devices("cpu")[0], **load_options)
    processor = _processor(source, model, input_size, hub_options_in(load_options))
    save(directory, model, params, format=format, processor=processor)
    return model


def _processor(
    source: str | os.PathLike[str], model: DepthAnything, input_size: int | tuple[int, int] | None, hub: HubOptions
) -> DepthImageProcessor:
    """Return the processor of the weights. Where nothing says it, a warning says that it is the released one."""
    from dajax.preprocessing.processor import DepthImageProcessor, own_processor  # here: it brings Pillow

    if model.config.preprocessing is None:
        try:
            return DepthImageProcessor.from_pretrained(source, style=model.config.style, input_size=input_size, **hub)
        except HubError as error:  # the weights are cached, and this file is not
            warnings.warn(f"{error}; the released checkpoints' processor is written", UserWarning, stacklevel=3)
    return own_processor(model.config, input_size)


def _folder(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    return path if path.is_dir() else path.parent
