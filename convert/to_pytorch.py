"""Flax params back to PyTorch: for Transformers, or for the authors' code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from dajax.weights.conversion import convert


def to_pytorch(
    source: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    format: Literal["hf", "official"] = "hf",
    **load_options: Any,
) -> Path:
    """Write a checkpoint that PyTorch opens; PyTorch itself is not needed for it.

    Args:
        source: a folder of Flax params, or anything else that `dajax.load` reads.
        directory: made if need be; a checkpoint of the same format in it is replaced.
        format: "hf" writes model.safetensors, which Transformers' `from_pretrained` opens; "official" writes a .pth
            under the authors' file name, whose tensors their `load_state_dict` takes with strict=True.
        load_options: `config`, `dtype`, `revision`, `token`, `cache_dir`, `local_files_only` of `dajax.load`.

    Returns:
        The directory.

    Raises:
        WeightsError, ConfigError, HubError: see `dajax.load` and `dajax.save`.
    """
    convert(source, directory, format=format, **load_options)
    return Path(directory)
