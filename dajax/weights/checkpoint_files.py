"""Finds the files that the name of a checkpoint means."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from dajax.checkpoints import ORIGINALS, alias_of_file, embedded_folder
from dajax.errors import WeightsError, shown
from dajax.hub import HubOptions, is_hub_id, locate, locate_first
from dajax.json_fields import read_json
from dajax.weights.report import raise_problems

# In order of preference, as in Transformers: a folder may hold the same weights in both formats.
TRANSFORMERS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# What `save` writes. They do not load without their config.json, so an interrupted save is never taken for a whole one.
FLAX_FILE = "params.safetensors"
UNNAMED_FILE = "model.pth"
LONE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# model-00001-of-00003.safetensors
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)")


class Files(NamedTuple):
    """The files that a name means.

    Attributes:
        weights: the file of weights, or the index of its shards.
        config: its config.json, or None.
        alias: the released checkpoint that the name of a lone file says, or None.
    """

    weights: Path
    config: Path | None
    alias: str | None


def find_files(name: str | os.PathLike[str], hub_options: HubOptions) -> Files:
    """Return the files of a checkpoint.

    Args:
        name: as for `dajax.load`.
        hub_options: see `dajax.hub.HubOptions`.

    Raises:
        WeightsError: there are no weights, or several files that could be meant.
        HubError: the files cannot be downloaded from the Hub.
    """
    if is_hub_id(name):
        return _find_on_hub(str(name), hub_options)
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise WeightsError(f"the name of a checkpoint must be an alias, a Hub id or a path, got {shown(name)}")
    path = embedded_folder(name) or Path(name)
    try:
        return _find_local(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error


def _find_on_hub(name: str, hub_options: HubOptions) -> Files:
    if name in ORIGINALS:
        return Files(locate(name, ORIGINALS[name].filename, **hub_options), None, ORIGINALS[name].alias)
    config = locate(name, "config.json", **hub_options)
    # All files come from one commit, even if someone pushes meanwhile. Cached files of a commit need no connection.
    if config.parent.parent.name == "snapshots":
        hub_options = {**hub_options, "revision": config.parent.name}
    weights = locate_first(name, TRANSFORMERS_FILES, **hub_options)
    if weights.name.endswith(".index.json"):
        for shard in _shard_names(weights):
            locate(name, shard, **hub_options)
    return Files(weights, config, None)


def _find_local(path: Path) -> Files:
    if path.is_dir():
        return _find_in_folder(path)
    if not path.exists():
        raise WeightsError(
            f"{path} is neither an alias (dajax.list_models()), nor a Hub id (owner/name), nor a file or folder here"
        )
    return _lone(path)


def _find_in_folder(folder: Path) -> Files:
    known = [folder / name for name in (*TRANSFORMERS_FILES, FLAX_FILE, UNNAMED_FILE)]
    found = [path for path in known if path.exists() or path.is_symlink()]
    if found:
        if len(found) > 1 and found[-1].name in (FLAX_FILE, UNNAMED_FILE):
            names = " and ".join(path.name for path in found)
            raise WeightsError(f"{folder} holds {names}: name the one that is meant as a file")
        return Files(found[0], folder / "config.json", None)
    others = sorted(path for path in folder.iterdir() if path.suffix in LONE_SUFFIXES and not path.is_dir())
    if not others:
        raise WeightsError(
            f"{folder} holds no weights: expected one of {', '.join((*TRANSFORMERS_FILES, FLAX_FILE))}, "
            f"or one file {', '.join(f'*{suffix}' for suffix in LONE_SUFFIXES)}"
        )
    shards = [_SHARD.fullmatch(path.name) for path in others]
    if all(shard is not None and int(shard["count"]) > 1 for shard in shards):
        index = _SHARD.sub(r"\g<stem>\g<suffix>.index.json", others[0].name)
        raise WeightsError(f"{folder} holds {len(others)} shards without their index: {index} is missing; copy it, too")
    if len(others) > 1:
        names = ", ".join(path.name for path in others[:10])
        raise WeightsError(f"{folder} holds several files of weights ({names}): name the one that is meant")
    return _lone(others[0])


def _lone(path: Path) -> Files:
    config = path.parent / "config.json"
    return Files(path, config if config.exists() or config.is_symlink() else None, alias_of_file(path.name))


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index} must have a weight_map from tensor names to files")
    suffix = ".safetensors" if index.name.startswith("model.safetensors") else ".bin"
    names = sorted({str(file) for file in weight_map.values()})
    for file in names:
        # A bare file name cannot leave the folder, on any system.
        if not re.fullmatch(rf"[A-Za-z0-9_-][A-Za-z0-9_.-]{{0,200}}\{suffix}", file):
            raise WeightsError(f"{index} names {shown(file)}: a shard must be a {suffix} file in the same folder")
    return names


def find_shards(weights: Path) -> list[Path]:
    """Return the files of weights: the given file, or those that an index names.

    Raises:
        WeightsError: a shard is missing, or lies (or links) outside of the folder.
    """
    if not weights.name.endswith(".index.json"):
        return [weights]
    folder = weights.parent
    shards = [folder / name for name in _shard_names(weights)]
    allowed = {folder.resolve()}
    if folder.resolve().parent.name == "snapshots":  # the Hub cache's own layout
        allowed.add((folder.resolve().parent.parent / "blobs").resolve())
    problems = []
    for shard in shards:
        if not shard.exists():
            problems.append(f"missing: {shard.name}")
        elif shard.is_symlink() and shard.resolve().parent not in allowed:
            problems.append(f"leaves the folder: {shard.name} links to {shard.resolve()}")
    raise_problems(f"{weights} names shards that cannot be used", problems)
    return shards
