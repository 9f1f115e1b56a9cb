"""A checkpoint of PyTorch to Flax params: fetch, read, map, write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dajax.weights.conversion import convert


def to_flax(source: str | os.PathLike[str], directory: str | os.PathLike[str], **load_options: Any) -> Path:
    """Write params.safetensors, keyed by Flax path, and config.json.

    It fetches `source` where that is a name on the Hub, reads it without PyTorch, brings its tensors to Flax's names
    and axes by the tables in dajax/weights/mapping.py, and writes them with `dajax.save`.

    Args:
        source: an alias, a Hub id, a checkpoint folder, or a .safetensors, .pth or .bin file: what `dajax.load` reads.
        directory: made if need be; Flax params in it are replaced.
        load_options: `config`, `dtype`, `revision`, `token`, `cache_dir`, `local_files_only` of `dajax.load`.

    Returns:
        The directory.

    Raises:
        WeightsError, ConfigError, HubError: see `dajax.load` and `dajax.save`.
    """
    convert(source, directory, format="flax", **load_options)
    return Path(directory)
