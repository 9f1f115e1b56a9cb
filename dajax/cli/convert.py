"""`dajax convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from dajax.cli.arguments import UsageError
from dajax.cli.model_options import CheckpointOptions, loading, loading_options
from dajax.files import in_the_way_of

INTERRUPTED = "interrupted; no checkpoint was written"


def convert(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    /,
    options: Annotated[CheckpointOptions, tyro.conf.arg(help="")],
    format: Literal["flax", "hf", "official"] = "flax",
) -> int:
    """Convert a checkpoint from the Hub, Transformers or the authors' .pth to Flax, Transformers or a .pth again.

    Example: dajax convert small converted --format flax

    PyTorch is not needed, and nothing in a .pth is run. Without --dtype, parameters keep their type.

    Exit status: 0 converted, 1 failed, 2 bad usage, 130 interrupted.

    Args:
        source: an alias (see `dajax models`), a Hub id, a checkpoint folder, or a .safetensors, .pth or .bin file.
        directory: the folder for the result; made if need be. A checkpoint of the same format in it is replaced.
        options: what the weights are, and what they are converted to.
        format: flax (params.safetensors keyed by Flax path), hf (Transformers opens it) or official (a .pth for the
            authors' code).
    """
    from dajax.weights.conversion import convert as run
    from dajax.weights.saving import weights_name

    if problem := in_the_way_of(directory):
        raise UsageError(problem)
    with loading(source, "SOURCE"):
        model = run(
            source,
            directory,
            format=format,
            dtype=options.dtype,
            style=options.style,
            input_size=options.input_size,
            **loading_options(options, source),
        )
    kind = f"metric, up to {model.config.max_depth:g} m" if model.config.is_metric else "relative"
    layers, width = model.config.backbone_config.num_hidden_layers, model.config.backbone_config.hidden_size
    print(f"wrote {directory / weights_name(format, model.config)} ({kind}; {layers} layers of width {width})")
    return 0
