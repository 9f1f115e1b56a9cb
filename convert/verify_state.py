"""Tensors of a file as PyTorch itself reads them."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dajax.errors import WeightsError, shown

# Under which name training scripts keep the model.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "params")


def read_state(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of all shards, by the names in the files.

    Raises:
        WeightsError: PyTorch does not open a file, or there are no weights in it.
    """
    return {name: tensor for path in paths for name, tensor in _read(path).items()}


def _read(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    try:
        if is_safetensors:
            return safetensors.torch.load_file(path)
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is not opened by PyTorch: {shown(str(error))}") from error
    state = _weights_in(tree)
    if state is None:
        raise WeightsError(f"{path}: PyTorch finds no weights of Depth Anything in it")
    return state


def _weights_in(tree: Any) -> dict[str, torch.Tensor] | None:
    """Return the dict that holds a class token: the tree itself or, of a training script's, the model in it."""
    for found in (tree, *(tree.get(name) for name in _WRAPPERS if isinstance(tree, Mapping))):
        if isinstance(found, Mapping) and any(str(name).endswith("cls_token") for name in found):
            return dict(found)
    return None
