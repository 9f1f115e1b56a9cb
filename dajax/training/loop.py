"""A plain loop over a training step, with a log, checkpoints and validation. A run that was stopped continues."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dajax.errors import JobError
from dajax.files import reason
from dajax.progress import ProgressBar
from dajax.training.log import CsvLog, NoLog
from dajax.training.placement import connect_processes
from dajax.training.run_checkpoints import RunCheckpoints
from dajax.training.step import TrainState

Batch = Mapping[str, Any]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
Validate = Callable[[TrainState, int], Mapping[str, float]]


def run_training_loop(
    step: Step,
    state: TrainState,
    batch_of: Callable[[int], Batch],
    output: str | os.PathLike[str],
    *,
    steps: int,
    save_every: int = 500,
    validate_every: int = 500,
    validate: Validate | None = None,
    keep: int = 2,
    progress: bool = True,
) -> TrainState:
    """Train until `steps` batches have been seen, from the newest state in `output` if there is one.

    A run that was killed and started again writes the same logs and params as a run that was not: a batch is a function
    of its number, and the loop removes the rows of the logs that are newer than the restored state and writes them
    again.

    Where `jax.distributed` has joined several processes, all of them call this function with the same folder, and with
    a state and batches that lie on the devices of all of them. Process 0 writes the logs and shows the progress.

    Args:
        step: a training step, for example from `make_train_step`. The loop compiles it with `jax.jit` and donates the
            state.
        state: the state before the first step.
        batch_of: Returns the batch of a number, counted from 0. The loop calls it in a thread, one batch ahead.
        output: the folder for checkpoints/, log.csv, validation.csv and, after a loss that is not finite,
            not_finite.npz.
        steps: how many batches the whole run has.
        save_every: Steps between two saved states. The state after the last step is saved too.
        validate_every: Steps between two validations. There is one after the last step too.
        validate: Receives the state and the number of steps done; returns a row of validation.csv.
        keep: how many of the newest states stay on disk.
        progress: Show a bar in a terminal, and elsewhere a line every ten seconds, on standard error.

    Returns:
        The state after the last step.

    Warns:
        UserWarning: every gradient of a batch with labels is exactly 0. It comes once.

    Raises:
        ConfigError: orbax is not installed.
        JobError: the loss is not finite (its batch is then saved, and the newest state is from before it), or a state
            or a log cannot be written or restored.
    """
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"{str(output)!r}: the output folder cannot be made ({reason(error)})") from error
    connect_processes()
    is_first_process = jax.process_index() == 0
    with ExitStack() as stack:
        records = stack.enter_context(closing(_Records(output, keep, save_every, validate_every, validate)))
        state, first = records.restore(state)
        bar = ProgressBar("dajax train", steps, initial=first, unit="step", show=progress and is_first_process)
        stack.enter_context(bar)
        batches = ThreadPoolExecutor(1)
        stack.callback(batches.shutdown, cancel_futures=True)
        compiled = jax.jit(step, donate_argnums=0)
        is_warned = False
        coming = batches.submit(batch_of, first) if first < steps else None
        if progress and first < steps:
            bar.say("compiling the training step (seconds on a GPU, up to some minutes on a CPU)")
        for number in range(first, steps):
            assert coming is not None
            batch, done = coming.result(), number + 1
            if done < steps:
                coming = batches.submit(batch_of, done)
            state, metrics = compiled(state, batch)
            row = {"step": done, **{name: float(value) for name, value in metrics.items()}}
            if not math.isfinite(row["loss"]):
                raise _not_finite(output, batch, row, records.latest())
            if not is_warned and _is_dead(row, batch):
                is_warned = True
                warnings.warn(_dead(row), UserWarning, stacklevel=2)
            records.write(row, state, is_last=done == steps)
            bar.note(loss=f"{row['loss']:.4f}")
            bar.advance()
        return state


class _Records:
    """What a run writes: the log, the validations and the states.

    Args:
        output: the folder of the run.
        keep: how many of the newest states stay.
        save_every: Steps between two saved states.
        validate_every: Steps between two validations.
        validate: see `run_training_loop`.
    """

    def __init__(
        self, output: Path, keep: int, save_every: int, validate_every: int, validate: Validate | None
    ) -> None:
        self._output = output
        self._save_every, self._validate_every, self._validate = save_every, validate_every, validate
        self._checkpoints = RunCheckpoints(output / "checkpoints", keep)
        self._logs: list[CsvLog | NoLog] = []

    def restore(self, state: TrainState) -> tuple[TrainState, int]:
        """Return the newest saved state and its number of steps, or the given state and 0; cut the logs back to it."""
        first = 0
        if self.latest() is not None:
            state, data = self._checkpoints.restore(state)
            first = int(data["next_step"])
        for name in ("log.csv", "validation.csv"):
            self._logs.append(CsvLog(self._output / name, first) if jax.process_index() == 0 else NoLog())
        return state, first

    def latest(self) -> int | None:
        """Return the number of steps of the newest state on disk."""
        return self._checkpoints.latest()

    def write(self, row: Mapping[str, float], state: TrainState, *, is_last: bool) -> None:
        """Write the row of a step and, if they are due, a validation and the state after it."""
        log, validations = self._logs
        done = int(row["step"])
        log.write(row)
        if self._validate is not None and (done % self._validate_every == 0 or is_last):
            validations.write({"step": done, **self._validate(state, done)})
        if done % self._save_every == 0 or is_last:
            # The logs come first: a later run continues from the state and expects all rows before it.
            log.sync()
            validations.sync()
            self._checkpoints.save(state, {"next_step": done})

    def close(self) -> None:
        """Close all files."""
        for log in self._logs:
            log.close()
        self._checkpoints.close()


def _is_dead(row: Mapping[str, float], batch: Batch) -> bool:
    """Whether nothing can be learned from a batch that has labels and an error."""
    return row.get("grad_norm") == 0 and row["loss"] != 0 and bool(jnp.any(batch.get("mask", True)))


def _dead(row: Mapping[str, float]) -> str:
    return (
        f"step {int(row['step'])}: every gradient is exactly 0, although the mask is not empty and the loss is "
        f"{row['loss']:g}. If this goes on, nothing is learned: the model's depth is 0 everywhere, behind its last "
        "ReLU, or all of its labels are equal. dajax.training.fresh_params makes params that begin above 0"
    )


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
    """Return a whole array as numpy, even if several processes hold parts of it."""
    if getattr(value, "is_fully_addressable", True):
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))
