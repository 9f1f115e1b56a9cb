"""`dajax train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import tyro

from dajax.cli.arguments import UsageError
from dajax.cli.messages import say
from dajax.cli.model_options import ModelOptions, loading
from dajax.cli.options import Flag, unset, value_of

INTERRUPTED = "interrupted; the same command goes on from the newest saved state"


def train(
    settings: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SETTINGS")],
    /,
    model: Annotated[ModelOptions, tyro.conf.arg(help="")],
    output: Annotated[Path | None, value_of(Path), unset("DIR", "the file's", aliases=("-o",))] = None,
    distributed: Flag = False,
) -> int:
    """Train or fine-tune on synthetic scenes, as a TOML file says; go on where an earlier run was stopped.

    Example: dajax train settings.toml --model small

    OUTPUT/model is the result, which dajax and Transformers open. OUTPUT/log.csv has the loss of each step,
    OUTPUT/validation.csv the scores on scenes that are held out, OUTPUT/images what they look like. Options replace
    what the file says: --model its start, --dtype and --style those of its [model] table, --input-size its data.size.

    Exit status: 0 trained, 1 stopped (a loss that is not finite, a full disk), 2 bad usage, 130 interrupted.

    Args:
        settings: a TOML file; docs/training.md lists the settings.
        model: what replaces the file's [model] table.
        output: the folder of everything that is written; made if need be.
        distributed: This is one of several processes that train together, started on all hosts of a TPU pod, or by
            Slurm, Open MPI or Kubernetes, through which jax finds the others. All must see the output folder.
    """
    import jax

    from dajax.cli import status_of
    from dajax.errors import DajaxError
    from dajax.inference.compilation_cache import enable_compilation_cache
    from dajax.training.log import read_log
    from dajax.training.train_settings import read_train_settings
    from dajax.training.trainer import train as run

    found = read_train_settings(settings, _changes(model, output))
    if model.cache:
        enable_compilation_cache()
    try:
        if distributed:
            _join()
        if found.model.start:
            with loading(found.model.start, "--model" if model.model else "model.start"):
                result = run(found)
        else:
            result = run(found)
    except DajaxError as error:
        if jax.process_count() == 1:
            raise
        # Python's own end would wait for the other processes, and they wait for what this one would have computed.
        say("train", str(error))
        os._exit(status_of(error))
    if jax.process_index() > 0:
        return 0
    last = list(read_log(Path(found.output) / "validation.csv"))[-1]
    print(
        f"{found.steps} steps; {found.data.validation} held-out scenes: AbsRel {last['abs_rel']:.3f}, "
        f"delta1 {last['delta1']:.3f}, order right in {last['ordinal']:.1%} of pairs; wrote {result}"
    )
    return 0


def _changes(options: ModelOptions, output: Path | None) -> dict[str, Any]:
    """Return what the options replace of the settings file, in its own tables."""
    if options.config is not None and options.kind is not None:
        raise UsageError("--config and --kind both say what the weights are: give one of them")
    model = {
        "start": options.model,
        "weights_config": options.config if options.kind is None else "",
        "kind": options.kind if options.config is None else "",
        "prefix": options.prefix,
        "revision": options.revision,
        "local_files_only": options.local_files_only or None,
        "style": options.style,
        "dtype": options.dtype,
    }
    if options.config is None and options.kind is None:
        model |= {"weights_config": None, "kind": None}
    changes: dict[str, Any] = {"model": {name: value for name, value in model.items() if value is not None}}
    if options.input_size is not None:
        changes["data"] = {"size": options.input_size}
    if output is not None:
        changes["output"] = str(output)
    return changes


def _join() -> None:
    import jax

    try:
        jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"--distributed: jax finds no other processes ({str(error).strip().splitlines()[0]}); without it, training "
            "takes all devices of this one"
        ) from error
