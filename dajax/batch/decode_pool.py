"""A pool of processes that read images, each of which can be killed."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import numpy as np

from dajax.batch.items import Item
from dajax.batch.parquet_tables import ParquetImages
from dajax.errors import ImageError, JobError
from dajax.files import is_of_the_machine
from dajax.preprocessing.buckets import ProcessedImage

# Seconds that a process may take to import what it needs, perhaps from a slow network disk.
_START_S = 120.0
# Seconds until a killed process must be gone.
_END_S = 5.0


@dataclass(frozen=True)
class Decoded:
    """An image that was read, or why it was not.

    Attributes:
        item: the item.
        image: the image as the network takes it, or None.
        notes: what the reader said about the image.
        reason: Why there is no image.
        stamp: what tells whether the image changes after it was read; "" if not known.
    """

    item: Item
    image: ProcessedImage | None = None
    notes: tuple[str, ...] = ()
    reason: str = ""
    stamp: str = ""


class Decoders:
    """Reads items ahead, in order, in several processes.

    Args:
        count: how many processes.
        options: the options of the `Buckets` that they process images with, see `Buckets.options`.
        timeout: seconds that one image may take; after that its process is killed and the image is left out.
        ahead: how many items may be read before the first of them is taken.
        reading: arguments of `read_image`, `value_range` and `allow_truncated`.
    """

    def __init__(
        self,
        count: int,
        options: dict[str, Any],
        *,
        timeout: float,
        ahead: int,
        reading: dict[str, Any] | None = None,
    ) -> None:
        self._reading = reading or {}
        self._options, self._timeout, self._ahead = json.dumps(options), timeout, ahead
        self._tasks: SimpleQueue[tuple[Item, bytes | None, Future[Decoded]] | None] = SimpleQueue()
        self._in_parquet = ParquetImages()
        self._workers: set[_Process] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def read(self, items: Iterable[Item]) -> Iterator[Decoded]:
        """Yield what became of each item, in order.

        Raises:
            JobError: the machine lacks what reading needs (open files, memory, processes, the network).
        """
        waiting: deque[Future[Decoded]] = deque()
        for item in items:
            future: Future[Decoded] = Future()
            waiting.append(future)
            try:
                self._tasks.put((item, self._data(item), future))
            except ImageError as error:
                future.set_result(Decoded(item, reason=str(error), stamp=item.stamp))
            if len(waiting) >= self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _data(self, item: Item) -> bytes | None:
        """Return the bytes of an image in a Parquet file, which is quick for one reader only. None for other images.

        Raises:
            ImageError: the image cannot be read.
            JobError: the disk or bucket does not answer.
        """
        if item.problem:
            raise ImageError(item.problem)
        location = item.location
        if not location.column:
            return None
        try:
            return self._in_parquet.read(location.path, location.column, location.row)
        except Exception as error:  # pyarrow raises errors of many types for damaged files
            if is_of_the_machine(error):
                raise JobError(f"images cannot be read: {location.path}: {error}") from error
            raise ImageError(f"{item.key!r}: cannot be read out of the Parquet file ({error})") from error

    def close(self) -> None:
        """Kill the processes."""
        self._in_parquet.close()
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for worker in list(self._workers):
            self._drop(worker)

    def _serve(self) -> None:
        worker = None
        while (task := self._tasks.get()) is not None:
            item, data, future = task
            if self._closed:
                future.cancel()
                continue
            try:
                worker, decoded = self._decode(worker, item, data)
                future.set_result(decoded)
            except BaseException as error:
                future.set_exception(error)

    def _decode(self, worker: _Process | None, item: Item, data: bytes | None) -> tuple[_Process | None, Decoded]:
        location = item.location
        # A part of a file has no path of its own.
        name = location.path if location.size is None and not location.column else item.key
        request = {"name": name, "path": location.path, "offset": location.offset, "size": location.size}
        request |= {"has_data": data is not None, "needs_stamp": not item.stamp, "reading": self._reading}
        for attempt in (1, 2):
            if worker is None:
                worker = self._start()
            try:
                answer, pixels = worker.ask(json.dumps(request).encode(), data, self._timeout)
            except TimeoutError:
                self._drop(worker)
                reason = f"it was not read within {self._timeout:g} seconds"
                return None, Decoded(item, reason=reason, stamp=item.stamp)
            except (EOFError, OSError):
                status = self._drop(worker)
                worker = None
                # It is tried once more, because the image may not be the cause: memory may have been short.
                if attempt == 2:
                    reason = f"the process that reads images died on it, twice ({_ended(status)})"
                    return None, Decoded(item, reason=reason, stamp=item.stamp)
                continue
            break
        if "error" in answer:
            if answer["machine"]:
                raise JobError(f"images cannot be read: {answer['error']}")
            return worker, Decoded(item, reason=answer["error"], stamp=item.stamp or answer["stamp"])
        assert pixels is not None
        image = ProcessedImage(pixels, tuple(answer["size"]), tuple(answer["content"]))
        return worker, Decoded(item, image, tuple(answer["notes"]), stamp=item.stamp or answer["stamp"])

    def _start(self) -> _Process:
        try:
            worker = _Process(self._options)
        except OSError as error:
            raise JobError(f"no process to read images can be started ({error.strerror})") from error
        with self._lock:
            self._workers.add(worker)
            if self._closed:
                worker.kill()
        try:
            worker.begin()
        except TimeoutError as error:
            self._drop(worker)
            raise JobError(f"a process to read images was not ready within {_START_S:g} seconds") from error
        except (EOFError, OSError) as error:
            ended = _ended(self._drop(worker))
            raise JobError(f"a process to read images ended before it was ready ({ended})") from error
        return worker

    def _drop(self, worker: _Process) -> int:
        with self._lock:
            self._workers.discard(worker)
        return worker.end()


def _ended(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


class _Process:
    """A decoder, and the pipe to it."""

    def __init__(self, options: str) -> None:
        mine, its = socket.socketpair()
        with mine, its:
            # A fork of a process that runs jax deadlocks, and multiprocessing's spawn would run the caller's script.
            self._process = subprocess.Popen(
                # -P: Python must not import a random.py that lies beside the images.
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "dajax.batch.decoder_process",
                    str(its.fileno()),
                    str(os.getpid()),
                    options,
                ],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
            self._connection = Connection(mine.detach())

    def ask(self, request: bytes, data: bytes | None, timeout: float) -> tuple[dict[str, Any], np.ndarray | None]:
        """Return the answer and the pixels; `data` is the encoded image, if the process need not read it.

        Raises:
            TimeoutError: it took too long.
            EOFError, OSError: the process has ended.
        """
        self._connection.send_bytes(request)
        if data is not None:
            self._connection.send_bytes(data)
        self._wait(timeout)
        answer = json.loads(self._connection.recv_bytes())
        if "error" in answer:
            return answer, None
        pixels = bytearray(4 * math.prod(answer["shape"]))
        self._connection.recv_bytes_into(pixels)
        return answer, np.frombuffer(pixels, np.float32).reshape(answer["shape"])

    def begin(self) -> None:
        """Wait until the process is ready.

        Raises:
            TimeoutError: it took too long.
            EOFError, OSError: the process has ended.
        """
        self._wait(_START_S)
        self._connection.recv_bytes()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> int:
        """Kill it and free everything; return its exit status."""
        self._process.kill()
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            # It hangs in the kernel, on a file system that does not answer, and ends when that answers.
            status = -signal.SIGKILL
        self._connection.close()
        return status

    def _wait(self, timeout: float) -> None:
        """Wait for a message, in slices: of the time in which all stood still (Ctrl-Z), only one slice is counted."""
        slice_s = min(1.0, timeout / 10)
        waited = 0.0
        while not self._connection.poll(slice_s):
            waited += slice_s
            if waited + slice_s / 2 > timeout:
                raise TimeoutError
