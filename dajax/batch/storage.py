"""What a job needs of the place where it writes: each file appears whole under its name, or not at all."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import IO, Any

from dajax.errors import ImageError, JobError

# These are faults of one file's name. Anything else (a full disk, no permission, a dead disk) is the fault of no image.
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

    All methods raise JobError if the folder cannot be written or read, and ImageError if only this one name is at
    fault.

    Args:
        suffix: what distinguishes the names of this process's own files, such as "-1-of-8"; "" if this process does
            the whole job.
    """

    def __init__(self, suffix: str = "") -> None:
        self.suffix = suffix

    @abstractmethod
    def stage(self, data: bytes) -> Any:
        """Put bytes where they survive, under no final name."""

    @abstractmethod
    def commit(self, files: Sequence[tuple[Any, str]]) -> dict[str, ImageError]:
        """Give staged bytes their names. On return they survive a crash. Return the names that could not be given."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    @abstractmethod
    def discard(self, staged: Any) -> None:
        """Remove what was staged."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a new file and return True; if there is one of this name, leave it and return False."""

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Write a small file of no lasting worth, such as the progress: whole, but not flushed to the disk."""

    @abstractmethod
    def append(self, name: str, data: bytes) -> None:
        """Append to a file that only this process writes. On return the bytes survive a crash."""

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
        """Keep out other processes with the same process index; keep out all others if this one does the whole job.

        Raises:
            JobError: Such a process is at work.
        """


class faults:
    """Turns errors of the operating system into those of `Storage`.

    Args:
        storage: the output folder.
        name: what is written or read: a name in the folder, or "" for the folder itself.
        done: "written" or "read".
    """

    def __init__(self, storage: Storage, name: str, done: str = "written") -> None:
        self._storage, self._name, self._done = storage, name, done

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError) or isinstance(error, ImageError | JobError):
            return
        reason = error.strerror or str(error)
        if error.errno in _FAULTS_OF_A_NAME and self._name:
            raise ImageError(f"{self._name!r} cannot be {self._done} ({reason})") from error
        # Who gave the folder knows nothing of the lock in it.
        what = f"{self._name!r}" if self._name else "the folder"
        raise JobError(
            f"{self._storage}: {what} cannot be {self._done} ({reason}). What the manifest records is whole: "
            "the same command goes on from there"
        ) from error
