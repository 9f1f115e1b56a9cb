"""`dajax train`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import tyro


def train(
    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")],
    /,
    output: Annotated[
        Path | None, tyro.conf.arg(aliases=["-o"], metavar="DIR", help_behavior_hint="(default: the file's)")
    ] = None,
    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Train or fine-tune on synthetic scenes, as a TOML file says; go on where an earlier run was stopped.

    OUTPUT/model is the result, which dajax and Transformers open. OUTPUT/log.csv has the loss of each step,
    OUTPUT/validation.csv the scores on scenes that are held out, OUTPUT/images what they look like.

    Exit status: 0 trained, 1 stopped (a loss that is not finite, a full disk), 2 bad usage.

    Args:
        config: a TOML file; docs/training.md lists the settings.
        output: folder of everything that is written; made if need be.
        distributed: this is one of several processes that train together, started on all hosts of a TPU pod, or by
            Slurm, Open MPI or Kubernetes, of which jax finds the others. All must see the output folder.
    """
    from dataclasses import replace

    import jax

    from dajax.errors import DajaxError, HubError, JobError
    from dajax.training.log import read_log
    from dajax.training.train_settings import read_train_settings
    from dajax.training.trainer import train as run

    try:
        settings = read_train_settings(config)
        if output is not None:
            settings = replace(settings, output=str(output))
        if distributed:
            _join()
        model = run(settings)
    except DajaxError as error:
        print(f"dajax train: {error}", file=sys.stderr, flush=True)
        status = 1 if isinstance(error, JobError | HubError) else 2
        if jax.process_count() > 1:
            # Python's own end would wait for the other processes, and they wait for what this one would have computed.
            os._exit(status)
        return status
    if jax.process_index() > 0:
        return 0
    last = list(read_log(Path(settings.output) / "validation.csv"))[-1]
    print(
        f"{settings.steps} steps; {settings.data.validation} held-out scenes: AbsRel {last['abs_rel']:.3f}, "
        f"delta1 {last['delta1']:.3f}, order right in {last['ordinal']:.1%} of pairs; wrote {model}"
    )
    return 0


def _join() -> None:
    import jax

    from dajax.errors import ConfigError

    try:
        jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--distributed: jax finds no other processes ({str(error).strip().splitlines()[0]}); without it, training "
            "takes all devices of this one"
        ) from error
