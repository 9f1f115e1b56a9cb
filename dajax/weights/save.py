"""Params to checkpoint directories."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import jax
import numpy as np

from dajax.errors import WeightsError

from .mapping import sources, torch_shape
from .report import raise_problems
from .safetensors_io import dtype_code, write_safetensors
from .shapes import parameter_shapes
from .tree import flatten

if TYPE_CHECKING:
    from dajax.model.depth_anything import DepthAnything

# What a directory is called by: file of weights, table of names, metadata of the file.
FORMATS = {
    "hf": ("model.safetensors", "huggingface", {"format": "pt"}),
    "flax": ("params.safetensors", "flax", {"format": "flax"}),
}


def save(
    directory: str | os.PathLike[str], model: DepthAnything, params: Mapping[str, Any], format: str = "hf"
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
            keyed by Flax path. Both write config.json and preprocessor_config.json.

    Raises:
        WeightsError: unknown format; params do not fit the model (everything that is wrong is listed); the directory
            cannot be written.
    """
    # Imported here: it brings Pillow, which loading needs as little as the network does.
    from dajax.images.processor import DepthImageProcessor

    if format not in FORMATS:
        raise WeightsError(f"format must be one of {list(FORMATS)}, got {format!r}")
    filename, table, metadata = FORMATS[format]
    directory = Path(directory)
    flat = flatten(params)
    shapes = parameter_shapes(model.config)
    _check(flat, shapes)
    table_sources = sources(table, shapes)

    # Several Flax parameters never share a tensor in these tables, and each has exactly one.
    owner = {source.names[0]: path for path, source in table_sources.items()}
    infos = {
        name: (np.dtype(flat[path].dtype), torch_shape(table_sources[path], shapes[path]))
        for name, path in owner.items()
    }

    def get(name: str) -> np.ndarray:
        return table_sources[owner[name]].transform.to_torch(np.asarray(jax.device_get(flat[owner[name]])))

    config = model.config.to_dict()
    dtypes = {dtype for dtype, _ in infos.values()}
    if len(dtypes) == 1:
        config["torch_dtype"] = dtypes.pop().name
    others = {name for name, _, _ in FORMATS.values()} - {filename}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if left := sorted(name for name in others | {"model.safetensors.index.json"} if (directory / name).exists()):
            raise WeightsError(f"{directory} already holds {', '.join(left)}: save to another folder, or remove it")
        config_path = directory / "config.json"
        with _staged(directory / filename) as file:
            write_safetensors(file, infos, get, metadata=metadata)
            _to_disk(file)
            # Without its config a directory does not load: so it is gone while weights and config are of two models.
            if not (config_path.is_file() and config_path.read_bytes() == _json_bytes(config)):
                config_path.unlink(missing_ok=True)
        for path, value in (
            (directory / "preprocessor_config.json", DepthImageProcessor().to_dict()),
            (config_path, config),
        ):
            with _staged(path) as file:
                file.write(_json_bytes(value))
                _to_disk(file)
    except OSError as error:
        raise WeightsError(f"{directory} cannot be written: {error.strerror or error}") from error


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


@contextmanager
def _staged(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` that takes its place at the end, or is removed if anything fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
