"""A plain loop over a training step: log, checkpoints, validation; stopped at any moment, it goes on where it was."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dajax.errors import JobError
from dajax.progress import ProgressBar
from dajax.training.log import CsvLog, NoLog
from dajax.training.run_checkpoints import RunCheckpoints
from dajax.training.step import TrainState

Batch = Mapping[str, Any]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def run_training_loop(
    step: Step,
    state: TrainState,
    batch_of: Callable[[int], Batch],
    output: str | os.PathLike[str],
    *,
    steps: int,
    save_every: int = 500,
    validate_every: int = 500,
    validate: Callable[[TrainState, int], Mapping[str, float]] | None = None,
    keep: int = 2,
    progress: bool = True,
) -> TrainState:
    """Train until `steps`, from the newest state in `output` if there is one.

    A run that was killed and started again gives the logs and the params of one that was not: batches are a function of
    the step, and what the logs say of steps after the restored state is taken away and written anew.

    Several processes, joined by `jax.distributed`, all call this, with one folder and a state and batches that lie on
    the devices of all. The first one writes the logs and shows the bar.

    Args:
        step: from `make_train_step`; it is put through `jax.jit`, which reuses the memory of the state.
        state: before the first step.
        batch_of: from the number of a step, counted from 0, to its batch. The next one is made while a step runs.
        output: folder of checkpoints/, log.csv, validation.csv and, if it comes to that, not_finite.npz.
        steps: batches in all.
        save_every: steps between states that are saved; the last is saved as well.
        validate_every: steps between validations; there is one after the last as well.
        validate: called with the state and the number of steps; what it returns is a row of validation.csv.
        keep: how many states stay.
        progress: show a bar.

    Raises:
        JobError: the loss is not finite: its batch is saved, and the newest state is from before; or a state cannot be
            saved or restored, or the log not be written.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        checkpoints = RunCheckpoints(output / "checkpoints", keep)
        stack.callback(checkpoints.close)
        first = 0
        if checkpoints.latest() is not None:
            state, data = checkpoints.restore(state)
            first = int(data["next_step"])
        leads = jax.process_index() == 0
        log, validations = (
            CsvLog(output / name, first) if leads else NoLog() for name in ("log.csv", "validation.csv")
        )
        stack.callback(log.close)
        stack.callback(validations.close)
        bar = stack.enter_context(
            ProgressBar("dajax train", steps, initial=first, unit="step", show=progress and leads)
        )
        batches = ThreadPoolExecutor(1)
        stack.callback(batches.shutdown, cancel_futures=True)
        compiled = jax.jit(step, donate_argnums=0)
        coming = batches.submit(batch_of, first) if first < steps else None
        for number in range(first, steps):
            assert coming is not None
            batch, done = coming.result(), number + 1
            if done < steps:
                coming = batches.submit(batch_of, done)
            if number == first and progress and leads:
                bar.say("compiling the training step (seconds on a GPU, up to some minutes on a CPU)")
            state, metrics = compiled(state, batch)
            row = {"step": done, **{name: float(value) for name, value in metrics.items()}}
            if not math.isfinite(row["loss"]):
                raise _not_finite(output, batch, row, checkpoints.latest())
            log.write(row)
            bar.note(loss=f"{row['loss']:.4f}")
            bar.advance()
            if validate is not None and (done % validate_every == 0 or done == steps):
                validations.write({"step": done, **validate(state, done)})
            if done % save_every == 0 or done == steps:
                # Before the state: it is from there that a later run goes on.
                log.sync()
                validations.sync()
                checkpoints.save(state, {"next_step": done})
        return state


def _not_finite(output: Path, batch: Batch, row: Mapping[str, float], latest: int | None) -> JobError:
    saved = output / "not_finite.npz"
    arrays: dict[str, Any] = {name: _on_host(value) for name, value in batch.items()}
    if jax.process_index() == 0:
        np.savez(saved, step=int(row["step"]), **arrays)
    return JobError(
        f"step {row['step']}: the loss is {row['loss']} (norm of the gradients: {row['grad_norm']}); its batch is in "
        f"{saved}. "
        + (f"The state after {latest} steps is whole" if latest else "No state was saved before")
        + ". A smaller learning rate, clip_norm, or a look at the labels may help"
    )


def _on_host(value: Any) -> np.ndarray:
    """Return an array whole, whatever processes have parts of it."""
    if getattr(value, "is_fully_addressable", True):
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))
