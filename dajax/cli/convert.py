"""`dajax convert`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro


def convert(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    /,
    format: Literal["flax", "hf", "official"] = "flax",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        tyro.conf.arg(metavar="TYPE", help_behavior_hint="(default: the source's)"),
    ] = None,
    config: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the source's)")] = None,
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: main)")] = None,
    local_files_only: bool = False,
) -> int:
    """Convert a checkpoint: from the Hub, Transformers or the authors' .pth; to Flax, Transformers or a .pth again.

    PyTorch is not needed, and nothing in a .pth is run.

    Exit status: 0 converted, 1 failed, 2 bad usage.

    Args:
        source: an alias (see `dajax models`), a Hub id, a checkpoint folder, or a .safetensors, .pth or .bin file.
        directory: folder for the result; made if need be. A checkpoint of the same format in it is replaced.
        format: flax (params.safetensors keyed by Flax path), hf (Transformers opens it) or official (a .pth for the
            authors' code).
        dtype: float32, bfloat16 or float16.
        config: what a lone file is: an alias such as large-metric-indoor, or a config.json.
        revision: branch, tag or commit on the Hub.
        local_files_only: take only what the Hub's cache has.
    """
    from dajax.config import DepthAnythingConfig
    from dajax.errors import DajaxError
    from dajax.weights.conversion import convert as run
    from dajax.weights.saving import weights_name

    try:
        given = None if config is None else DepthAnythingConfig.from_pretrained(config)
    except DajaxError as error:
        print(f"dajax convert: --config: {error}", file=sys.stderr)
        return 2
    options = {"dtype": dtype, "config": given, "revision": revision, "local_files_only": local_files_only}
    try:
        model = run(source, directory, format=format, **options)
    except DajaxError as error:
        print(f"dajax convert: {error}", file=sys.stderr)
        return 1
    kind = f"metric, up to {model.config.max_depth:g} m" if model.config.is_metric else "relative"
    layers, width = model.config.backbone_config.num_hidden_layers, model.config.backbone_config.hidden_size
    print(f"wrote {directory / weights_name(format, model.config)} ({kind}; {layers} layers of width {width})")
    return 0
