"""Which files a checkpoint's name means."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dajax.errors import HubError, WeightsError, shown
from dajax.hub import is_hub_id, locate
from dajax.validation import read_json

from .report import raise_problems

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "params.safetensors")


def find_files(name: str | os.PathLike[str], hub_options: Mapping[str, Any]) -> tuple[Path, Path | None]:
    """Return the file of weights (or the index of its shards), and its config.json if there is one.

    Args:
        name: as for `dajax.load`.
        hub_options: as for `dajax.hub.locate`.

    Raises:
        WeightsError: there are no weights, or more than one kind of them.
        HubError: the Hub does not give the files.
    """
    if is_hub_id(name):
        config = locate(name, "config.json", **hub_options)
        try:
            return locate(name, "model.safetensors", **hub_options), config
        except HubError:
            try:
                index = locate(name, "model.safetensors.index.json", **hub_options)
            except HubError:
                index = None
            if index is None:
                raise
        for shard in _shard_names(index):
            locate(name, shard, **hub_options)
        return index, config
    path = Path(name)
    try:
        return _find_local(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error


def _find_local(path: Path) -> tuple[Path, Path | None]:
    if path.is_dir():
        found = [file for file in WEIGHT_FILES if (path / file).exists() or (path / file).is_symlink()]
        if not found:
            raise WeightsError(f"{path} holds no weights: expected one of {', '.join(WEIGHT_FILES)}")
        if len(found) > 1:
            raise WeightsError(f"{path} holds {' and '.join(found)}: name the one that is meant as a file")
        return path / found[0], path / "config.json"
    if not path.exists():
        raise WeightsError(
            f"{path} is neither an alias (dajax.list_models()), nor a Hub id (owner/name), nor a file or folder here"
        )
    config_path = path.parent / "config.json"
    return path, config_path if config_path.exists() else None


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index} must have a weight_map from tensor names to files")
    names = sorted({str(file) for file in weight_map.values()})
    for file in names:
        # A bare file name cannot leave the folder, on any system.
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,200}\.safetensors", file):
            raise WeightsError(f"{index} names {shown(file)}: a shard must be a .safetensors file in the same folder")
    return names


def find_shards(weights: Path) -> list[Path]:
    """Return the files of weights: the one that is given, or those that an index names.

    Raises:
        WeightsError: a shard is missing, or lies (or links) outside of the folder.
    """
    if not weights.name.endswith(".index.json"):
        return [weights]
    folder = weights.parent
    shards = [folder / name for name in _shard_names(weights)]
    allowed = {folder.resolve()}
    if folder.resolve().parent.name == "snapshots":  # the Hub cache's own layout
        allowed.add(folder.resolve().parent.parent / "blobs")
    problems = []
    for shard in shards:
        if not shard.exists():
            problems.append(f"missing: {shard.name}")
        elif shard.is_symlink() and shard.resolve().parent not in allowed:
            problems.append(f"leaves the folder: {shard.name} links to {shard.resolve()}")
    raise_problems(f"{weights} names shards that cannot be used", problems)
    return shards
