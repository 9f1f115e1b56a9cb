"""Where a job writes: each file appears whole under its name, or not at all."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from dajax.batch.remote import is_remote
from dajax.errors import ImageError, JobError

# These are faults of one file's name; anything else (a full disk, no permission, a dead disk) would befall all of them.
_FAULTS_OF_A_NAME = {
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EILSEQ,
    errno.EINVAL,
    errno.ENOTEMPTY,
    errno.EEXIST,
}


class Storage(ABC):
    """An output folder. Names are relative to it, with / between their parts.

    All methods raise JobError where the folder cannot be written or read, and ImageError where only this one name is
    at fault.
    """

    # What this process's own files are told apart by, where several work on shares: "-2-of-8".
    share = ""

    @staticmethod
    def of(output: str | os.PathLike[str], share: tuple[int, int] | None = None) -> Storage:
        """Return the storage of a local folder or a remote address, for a process that does all or a share (k, n)."""
        from dajax.batch.local_storage import LocalStorage
        from dajax.batch.remote_storage import RemoteStorage

        text = os.fspath(output)
        storage: Storage = RemoteStorage(text) if is_remote(text) else LocalStorage(Path(text))
        if share is not None:
            storage.share = f"-{share[0]}-of-{share[1]}"
        return storage

    @abstractmethod
    def stage(self, data: bytes) -> Any:
        """Put bytes where they survive, under no final name."""

    @abstractmethod
    def commit(self, files: Sequence[tuple[Any, str]]) -> dict[str, ImageError]:
        """Give staged bytes their names; when this returns they are there to stay. Return the names that cannot be."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""

    @abstractmethod
    def discard(self, staged: Any) -> None:
        """Take away what was staged."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a file that must not be there yet; return False, and leave it, if it is."""

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Write a small file of no lasting worth, such as progress: whole, but not flushed."""

    @abstractmethod
    def append(self, name: str, data: bytes) -> None:
        """Append to a file of this process alone. When this returns the bytes are there to stay."""

    @abstractmethod
    def list(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open a file to read."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return a file's size in bytes."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Return whether there is a file of this name."""

    @abstractmethod
    def clean(self) -> None:
        """Remove what killed processes left unfinished."""

    @abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from working on the same share, or on any where this one does all.

        Raises:
            JobError: one does.
        """


class faults:
    """Turns errors of the system into those of `Storage`."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError) or isinstance(error, ImageError | JobError):
            return
        reason = error.strerror or str(error)
        if error.errno in _FAULTS_OF_A_NAME:
            raise ImageError(f"{self._name!r} cannot be written ({reason})") from error
        raise JobError(
            f"{self._storage}: {self._name!r} cannot be written ({reason}). What the manifest records is whole: "
            "the same command goes on from there"
        ) from error
