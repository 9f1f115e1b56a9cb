"""A job's output folder at an address of fsspec.

A file is one put of a whole object, which object stores do atomically. A file that only one process may make is a put
that fails if the object exists (on S3: `If-None-Match: *`). This was run against fsspec's memory and local file systems
and a server that imitates S3 (moto), but never against a real bucket.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any

from dajax.batch.remote import file_system
from dajax.batch.storage import Storage, faults
from dajax.errors import ImageError, JobError


class RemoteStorage(Storage):
    """An address of fsspec. Staged bytes wait in memory, because an object is put when it is whole."""

    def __init__(self, address: str, suffix: str = "") -> None:
        super().__init__(suffix)
        self._system, self._root = file_system(address)
        self._address = address
        self._count = 0

    def __str__(self) -> str:
        return self._address

    def stage(self, data: bytes) -> bytes:
        """See `Storage`."""
        return data

    def commit(self, files: Sequence[tuple[Any, str]]) -> dict[str, ImageError]:
        """See `Storage`."""
        refused = {}
        for data, name in files:
            try:
                self.replace(name, data)
            except ImageError as error:
                refused[name] = error
        return refused

    def remove(self, name: str) -> None:
        """See `Storage`."""
        if self.exists(name):
            with faults(self, name):
                self._system.rm_file(self._path(name))

    def discard(self, staged: Any) -> None:
        """See `Storage`."""

    def create(self, name: str, data: bytes) -> bool:
        """See `Storage`."""
        with faults(self, name):
            self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            try:
                self._system.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        with faults(self, name):
            self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._system.pipe_file(self._path(name), data)

    def append(self, name: str, data: bytes) -> None:
        """Put a further object: objects cannot grow."""
        self._count += 1
        stem, suffix = os.path.splitext(name)
        if not self.create(f"{stem}-{self._count:08}{suffix}", data):
            raise JobError(f"{self._address}: another process writes {name} as well")

    def list(self, folder: str) -> list[str]:
        """See `Storage`."""
        with faults(self, folder, "read"):
            try:
                found = self._system.ls(self._path(folder), detail=False, refresh=True)
            except FileNotFoundError:
                return []
            except TypeError:  # file systems without a cache of listings
                found = self._system.ls(self._path(folder), detail=False)
            return sorted(f"{folder}/{name.rpartition('/')[2]}" for name in found)

    def open(self, name: str) -> IO[bytes]:
        """See `Storage`."""
        with faults(self, name, "read"):
            return io.BytesIO(self._system.cat_file(self._path(name)))

    def size(self, name: str) -> int:
        """See `Storage`."""
        with faults(self, name, "read"):
            return int(self._system.size(self._path(name)))

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        return bool(self._system.isfile(self._path(name)))

    def clean(self) -> None:
        """See `Storage`."""

    def locked(self) -> AbstractContextManager[None]:
        """Do nothing: object stores have no locks. The caller must start one process for each process index."""
        return nullcontext()

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"
