"""The scheduling of batches: which images run together, and in which order results are returned."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np

from dajax.errors import JobRefusedError
from dajax.preprocessing.buckets import ProcessedImage

# An image waits for others of its size until this many batches' worth of images have come after it. Then a smaller
# batch runs.
_WAITING_BATCHES = 4

Rows = Literal["fewest", "whole", "single", "first"]
Result = TypeVar("Result")


class _Queued(NamedTuple):
    """A processed image, and its place in the order."""

    place: int
    image: ProcessedImage


def possible_rows(batch_size: int, devices: int, rows: Rows) -> list[int]:
    """Return every number of rows that batches of up to `batch_size` images may have; see `BatchScheduler`."""
    return sorted({_rows_for(count, batch_size, devices, rows) for count in range(1, batch_size + 1)})


def _rows_for(count: int, batch_size: int, devices: int, rows: Rows) -> int:
    if rows in ("single", "first"):
        return devices
    most = -(-batch_size // devices)
    on_each = most if rows == "whole" else min(1 << (-(-count // devices) - 1).bit_length(), most)
    return devices * on_each


class BatchScheduler:
    """Runs images of many sizes in batches of one size.

    It knows no network: `run` may be any function. If a batch does not fit into the memory of the devices, the
    scheduler halves it and all batches that follow.

    Args:
        run: a function that starts a batch of pixels, float32 [rows, height, width, 3]. It returns an array [rows, …],
            which the devices may still be computing.
        finish: a function that makes a result from an image and its row of that array.
        batch_size: the largest number of images of one size that run together.
        devices: the number of devices that a batch is divided over. The number of rows is a multiple of it.
        rows: the number of rows of a batch that lacks images. "fewest" is the smallest power of two on each device that
            holds the images. "whole" is the number of rows of every other batch. With "single", every batch consists
            of runs of one image on each device. "first" has as many rows as "single", and an image in the first alone.
        device: the name of the devices in error messages.
        on_smaller_batch: a function that is called with the new batch size if memory was short. None gives a warning.

    Attributes:
        batch_size: the current batch size.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], Any],
        finish: Callable[[ProcessedImage, np.ndarray], Result],
        *,
        batch_size: int,
        devices: int = 1,
        rows: Rows = "fewest",
        device: str = "the device",
        on_smaller_batch: Callable[[int], None] | None = None,
    ) -> None:
        self.batch_size = batch_size
        self._run, self._finish = run, finish
        self._devices, self._rows, self._device = devices, rows, device
        self._on_smaller_batch = on_smaller_batch
        self._waiting: dict[tuple[int, int], list[_Queued]] = {}
        self._running: deque[tuple[list[_Queued], list[Any]]] = deque()
        self._done: dict[int, Any] = {}
        self._added = self._given = 0

    def add(self, image: ProcessedImage) -> None:
        """Add an image. This may start a batch, and wait for an earlier batch."""
        size = (image.pixels.shape[0], image.pixels.shape[1])
        self._waiting.setdefault(size, []).append(_Queued(self._added, image))
        if len(self._waiting[size]) >= self.batch_size:
            self._run_size(size)
        # The first of `_waiting` waits longest. However rare its size is, it must not hold up the images behind it.
        oldest = next(iter(self._waiting), None)
        if oldest is not None and self._added - self._waiting[oldest][0].place >= _WAITING_BATCHES * self.batch_size:
            self._run_size(oldest)
        self._added += 1

    def flush(self) -> None:
        """Run the images that still wait, and finish all batches."""
        for size in list(self._waiting):
            self._run_size(size)
        while self._running:
            self._collect()

    def results(self) -> Iterator[Any]:
        """Yield the next results in the order of the images, as far as they are finished."""
        while self._given in self._done:
            yield self._done.pop(self._given)
            self._given += 1

    def _run_size(self, size: tuple[int, int]) -> None:
        queued = self._waiting.pop(size)
        while queued:  # more than a batch if batches have become smaller since
            batch, queued = queued[: self.batch_size], queued[self.batch_size :]
            try:
                self._running.append((batch, self._start(batch)))
            except jax.errors.JaxRuntimeError as error:
                self._run_smaller(batch, error)
        # One batch stays on the device while the host prepares the next.
        while len(self._running) > 1:
            self._collect()

    def _start(self, batch: list[_Queued]) -> list[Any]:
        rows = _rows_for(len(batch), self.batch_size, self._devices, self._rows)
        images = 1 if self._rows == "first" else rows
        runs = []
        for first in range(0, len(batch), images):
            pixels = np.zeros((rows, *batch[0].image.pixels.shape), np.float32)
            for row, queued in enumerate(batch[first : first + images]):
                pixels[row] = queued.image.pixels
            runs.append(self._run(pixels))
        return runs

    def _collect(self) -> None:
        batch, runs = self._running.popleft()
        try:
            self._finish_batch(batch, runs)
        except jax.errors.JaxRuntimeError as error:
            self._run_smaller(batch, error)

    def _finish_batch(self, batch: list[_Queued], runs: list[Any]) -> None:
        arrays = [np.asarray(run)[: 1 if self._rows == "first" else None] for run in runs]
        rows = (row for array in arrays for row in array)
        for queued, row in zip(batch, rows, strict=False):  # the last rows may be filled up
            self._done[queued.place] = self._finish(queued.image, row)

    def _run_smaller(self, batch: list[_Queued], error: Exception) -> None:
        """Run a batch that did not fit into memory in smaller parts."""
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise error
        if len(batch) <= self.batch_size:  # else it was started before batches became smaller
            self._halve(batch, error)
        # The other batches on the device take memory as well.
        while self._running:
            self._collect()
        while batch:
            part, batch = batch[: self.batch_size], batch[self.batch_size :]
            try:
                self._finish_batch(part, self._start(part))
            except jax.errors.JaxRuntimeError as failed:
                self._run_smaller(part, failed)

    def _halve(self, batch: list[_Queued], error: Exception) -> None:
        """Make batches half as large from here on, and say so."""
        if self.batch_size <= self._devices:
            height, width, _ = batch[0].image.pixels.shape
            raise JobRefusedError(
                f"an image of {height}x{width} does not fit into the memory of {self._device}, even alone: use a "
                "smaller input_size, or half precision"
            ) from error
        self.batch_size = max(self.batch_size // 2, self._devices)
        if self._on_smaller_batch is None:
            warnings.warn(f"out of device memory: batches of {self.batch_size} from here on", UserWarning, stacklevel=2)
        else:
            self._on_smaller_batch(self.batch_size)
