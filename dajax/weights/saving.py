"""Writes params as checkpoint directories."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict

from dajax.checkpoints import ALIASES, official_stem
from dajax.config import DepthAnythingConfig
from dajax.errors import WeightsError
from dajax.files import flush_to_disk, in_the_way_of, replacing
from dajax.hub import PROCESSOR_FILE
from dajax.weights.checkpoint_files import FLAX_FILE, LONE_SUFFIXES, TRANSFORMERS_FILES, UNNAMED_FILE
from dajax.weights.mapping import sources, targets, torch_shape
from dajax.weights.report import raise_problems
from dajax.weights.safetensors_io import dtype_code, write_safetensors
from dajax.weights.shapes import parameter_shapes
from dajax.weights.torch_files.torch_write import write_torch

if TYPE_CHECKING:
    from dajax.model.depth_anything import DepthAnything
    from dajax.preprocessing.processor import DepthImageProcessor

# Maps each format to its table of names.
FORMATS = {"hf": "huggingface", "flax": "flax", "official": "official"}


def save(
    directory: str | os.PathLike[str],
    model: DepthAnything,
    params: Mapping[str, Any],
    format: str = "hf",
    *,
    processor: DepthImageProcessor | None = None,
) -> None:
    """Save a model so that `dajax.load` (both formats) and Transformers ("hf") open it.

    Parameters keep their type: float32 files come back bit for bit, half-precision ones too. Tensors that the network
    does not use are kept. An interrupted save leaves the old checkpoint, the new one, or (where their configs differ)
    one that does not load; never a mixture.

    Args:
        directory: made if need be; a checkpoint in it is replaced.
        model: gives the config.
        params: nested dict of arrays (jax or numpy), as from `dajax.load` or `model.init(...)["params"]`.
        format: "hf" writes model.safetensors with Transformers' names and layout; "flax" writes params.safetensors
            keyed by Flax path; "official" writes a .pth that the authors' code loads, under their name for it
            (depth_anything_v2_vits.pth; model.pth for what they never released). All write config.json and
            preprocessor_config.json.
        processor: goes into preprocessor_config.json. None: that which came with the weights
            (`model.config.preprocessing`), else that of the released checkpoints.

    Raises:
        WeightsError: unknown format; params do not fit the model (everything that is wrong is listed); the directory
            cannot be written.
    """
    # Imported here, because it needs Pillow, and loading and the network do not.
    from dajax.preprocessing.processor import own_processor

    if format not in FORMATS:
        raise WeightsError(f"format must be one of {list(FORMATS)}, got {format!r}")
    filename = weights_name(format, model.config)
    directory = Path(directory)
    if not isinstance(params, dict | FrozenDict):
        raise WeightsError(f"params must be a nested dict, got {type(params).__name__}")
    flat = flatten_dict(params, sep="/")
    shapes = parameter_shapes(model.config)
    _check(flat, shapes)
    if format == "official":
        _check_official(model.config)
    infos, get = _tensors(flat, shapes, FORMATS[format])
    config = model.config.to_dict()
    dtypes = {dtype for dtype, _ in infos.values()}
    if len(dtypes) == 1:
        config["torch_dtype"] = dtypes.pop().name
    if problem := in_the_way_of(directory):
        raise WeightsError(problem)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if left := _other_weights(directory, filename):
            raise WeightsError(f"{directory} already holds {', '.join(left)}: save to another folder, or remove it")
        config_path = directory / "config.json"
        contents = {
            directory / PROCESSOR_FILE: (processor or own_processor(model.config)).to_dict(),
            config_path: config,
        }
        if in_the_way := [path.name for path in (directory / filename, *contents) if path.is_dir()]:
            raise WeightsError(f"{directory} has folders where files are to be written: {', '.join(in_the_way)}")
        with replacing(directory / filename) as file:
            if format == "official":
                write_torch(file, infos, get)
            else:
                write_safetensors(file, infos, get, metadata={"format": "flax" if format == "flax" else "pt"})
            flush_to_disk(file)
            # A directory does not load without its config, so the config is away while the files belong to two models.
            if not all(path.is_file() and path.read_bytes() == _json_bytes(value) for path, value in contents.items()):
                config_path.unlink(missing_ok=True)
        for path, value in contents.items():
            with replacing(path) as file:
                file.write(_json_bytes(value))
                flush_to_disk(file)
    except WeightsError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise WeightsError(f"{directory} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def _tensors(
    flat: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], table_name: str
) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...]]], Callable[[str], np.ndarray]]:
    """Return type and shape of every tensor that is to be written, by name, and a function that makes one."""
    table = sources(table_name, shapes)
    parts = targets(table)
    raise_problems(
        "parameters that become one tensor must be of one type",
        [" and ".join(paths) for paths in parts.values() if len({np.dtype(flat[path].dtype) for path in paths}) > 1],
    )

    def get(name: str) -> np.ndarray:
        arrays = [table[path].transform.to_torch(np.asarray(jax.device_get(flat[path]))) for path in parts[name]]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    infos = {
        name: (np.dtype(flat[paths[0]].dtype), torch_shape(table[paths[0]], shapes[paths[0]]))
        for name, paths in parts.items()
    }
    return infos, get


def weights_name(format: str, config: DepthAnythingConfig) -> str:
    """Return the name of the file of weights that `save` writes."""
    if format != "official":
        return FLAX_FILE if format == "flax" else TRANSFORMERS_FILES[0]
    plain = config.with_style("huggingface")
    released = (alias for alias in ALIASES if DepthAnythingConfig.from_pretrained(alias) == plain)
    alias = next(released, None)
    return f"{official_stem(alias)}.pth" if alias else UNNAMED_FILE


def _check_official(config: DepthAnythingConfig) -> None:
    """Refuse a neck that the authors' code cannot have: its four levels are fixed there."""
    if tuple(config.reassemble_factors) != (4, 2, 1, 0.5):
        raise WeightsError(
            f"reassemble_factors {list(config.reassemble_factors)} cannot be saved for the authors' code, which has "
            "[4, 2, 1, 0.5]: save with format='hf'"
        )


def _other_weights(directory: Path, filename: str) -> list[str]:
    known = {*TRANSFORMERS_FILES, FLAX_FILE, UNNAMED_FILE}
    lone = {path.name for path in directory.iterdir() if path.suffix in LONE_SUFFIXES and not path.name.startswith(".")}
    # Loading prefers files with these names. Beside a .pth there may be no other lone file.
    others = {name for name in known if (directory / name).exists()} | (lone if filename.endswith(".pth") else set())
    return sorted(others - {filename})


def _check(flat: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing: {path} {list(shape)}" for path, shape in shapes.items() if path not in flat]
    problems += [f"not in the model: {path}" for path in flat if path not in shapes]
    for path, leaf in flat.items():
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            problems.append(f"not an array: {path} is {type(leaf).__name__}")
        elif path in shapes and tuple(leaf.shape) != shapes[path]:
            problems.append(f"wrong shape: {path}: the model has {list(shapes[path])}, params {list(leaf.shape)}")
    raise_problems("params do not fit the model", problems)
    for leaf in flat.values():
        dtype_code(np.dtype(leaf.dtype))


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
