"""Where a job writes: each file appears whole under its name, or not at all.

Local: written to a folder of unfinished files, flushed to the disk (fsync), renamed; then the folder is flushed, which
makes the name last. Only after that does a manifest row say that the file is there.

Remote (fsspec): one put of the whole object, which object stores do atomically. Files that only one process may make
are made with a put that fails where there is one already (on S3: `If-None-Match: *`). Run against fsspec's memory and
local file systems and an S3-shaped server (moto) alone: never against a bucket.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import secrets
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dajax.errors import ImageError, JobError

from .naming import OWN_FOLDER
from .remote import file_system, is_remote

UNFINISHED = f"{OWN_FOLDER}/unfinished"
LOCK = f"{OWN_FOLDER}/lock"
# Seconds to wait for a lock. A process killed while it starts a decoder leaves a child that has its lock until exec
# closes it, and whoever verifies has one for a moment.
_PATIENCE = 2.0
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

_NO_LINKS = {errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
# What driver of a file system cannot flush a folder says.
_NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


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
        text = os.fspath(output)
        storage = RemoteStorage(text) if is_remote(text) else LocalStorage(Path(text))
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


class LocalStorage(Storage):
    """A folder on this machine. Its primitives are methods of their own, so that tests can make each one fail."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._broken = False

    def __str__(self) -> str:
        return str(self.root)

    def stage(self, data: bytes) -> str:
        """See `Storage`."""
        name = f"{UNFINISHED}{self.share}/{secrets.token_hex(8)}"
        self._write_new(name, data, name)
        return name

    def commit(self, files: Sequence[tuple[Any, str]]) -> dict[str, ImageError]:
        """See `Storage`."""
        folders: set[Path] = set()
        refused = {}
        for staged, name in files:
            try:
                with _faults(self, name):
                    folders |= self._make_folder(self.root / name)
                    self._rename(self.root / staged, self.root / name)
            except ImageError as error:
                refused[name] = error
        for folder in sorted(folders):
            with _faults(self, str(folder)):
                self._sync_folder(folder)
        return refused

    def remove(self, name: str) -> None:
        """See `Storage`."""
        with _faults(self, name):
            (self.root / name).unlink(missing_ok=True)

    def discard(self, staged: Any) -> None:
        """See `Storage`."""
        (self.root / staged).unlink(missing_ok=True)

    def create(self, name: str, data: bytes) -> bool:
        """See `Storage`."""
        staged = self.stage(data)
        try:
            with _faults(self, name):
                self._make_folder(self.root / name)
                try:
                    # Unlike a rename this fails where there is one already.
                    os.link(self.root / staged, self.root / name)
                except FileExistsError:
                    return False
                except OSError as error:
                    # Not every file system has links. What is left is no guard against two that begin at once.
                    if error.errno not in _NO_LINKS:
                        raise
                    if self.exists(name):
                        return False
                    self._rename(self.root / staged, self.root / name)
                self._sync_folder((self.root / name).parent)
        finally:
            self.discard(staged)
        return True

    def replace(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        temporary = f"{UNFINISHED}{self.share}/{secrets.token_hex(8)}"
        with _faults(self, name):
            self._make_folder(self.root / temporary)
            (self.root / temporary).write_bytes(data)
            os.replace(self.root / temporary, self.root / name)

    def append(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        if self._broken:
            raise JobError(f"{name}: an earlier row could not be written; nothing is put behind it")
        with _faults(self, name):
            path = self.root / name
            is_new = not path.exists()
            folders = self._make_folder(path)
            descriptor = self._open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                before = os.fstat(descriptor).st_size
                try:
                    self._write(descriptor, data)
                    self._sync(descriptor)
                except BaseException:
                    # Half a row may stand only at the end of a file.
                    self._broken = True
                    os.ftruncate(descriptor, before)
                    raise
            finally:
                os.close(descriptor)
            if is_new:
                for folder in folders:
                    self._sync_folder(folder)

    def list(self, folder: str) -> list[str]:
        """See `Storage`."""
        with _faults(self, folder):
            try:
                return sorted(f"{folder}/{entry.name}" for entry in os.scandir(self.root / folder) if entry.is_file())
            except FileNotFoundError:
                return []

    def open(self, name: str) -> IO[bytes]:
        """See `Storage`."""
        with _faults(self, name):
            return (self.root / name).open("rb")

    def size(self, name: str) -> int:
        """See `Storage`."""
        with _faults(self, name):
            return (self.root / name).stat().st_size

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        return (self.root / name).is_file()

    def clean(self) -> None:
        """See `Storage`."""
        with _faults(self, UNFINISHED):
            # Its own, and that of a process that did all: there is none beside this one. Not those of other shares,
            # which may be at work: there are file systems on which locks hold on one machine only.
            for share in {self.share, ""}:
                shutil.rmtree(self.root / f"{UNFINISHED}{share}", ignore_errors=True)
            if not self.share:
                for folder in (self.root / OWN_FOLDER).glob(f"{Path(UNFINISHED).name}-*"):
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working on the same share, or on any where this one does all.

        Raises:
            JobError: one does.
        """
        with self._lock(LOCK, fcntl.LOCK_SH if self.share else fcntl.LOCK_EX):
            if self.share:
                with self._lock(f"{LOCK}{self.share}", fcntl.LOCK_EX):
                    yield
            else:
                yield

    @contextmanager
    def _lock(self, name: str, kind: int) -> Iterator[None]:
        with _faults(self, name):
            self._make_folder(self.root / name)
            descriptor = os.open(self.root / name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            until = time.monotonic() + _PATIENCE
            while True:
                try:
                    # The system takes it back when the process ends, however that happens.
                    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                except OSError as error:
                    if isinstance(error, BlockingIOError) and time.monotonic() < until:
                        time.sleep(0.05)
                        continue
                    # There are file systems without locks.
                    if isinstance(error, BlockingIOError):
                        raise JobError(f"{self.root}: another process works on this job{_what(self.share)}") from error
                break
            yield
        finally:
            os.close(descriptor)

    def _write_new(self, place: str, data: bytes, name: str) -> None:
        path = self.root / place
        with _faults(self, name):
            self._make_folder(path)
            try:
                descriptor = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                try:
                    self._write(descriptor, data)
                    self._sync(descriptor)
                finally:
                    os.close(descriptor)
            except BaseException:
                path.unlink(missing_ok=True)
                raise

    def _make_folder(self, path: Path) -> set[Path]:
        """Return the folders whose entries have to be flushed for this file to be found again."""
        folder = path.parent
        changed = {folder}
        missing = folder
        while not missing.is_dir():
            missing = missing.parent
            changed.add(missing)
        folder.mkdir(parents=True, exist_ok=True)
        return changed

    # --- what can fail ----------------------------------------------------------------------------------------------

    def _open(self, path: Path, flags: int) -> int:
        return os.open(path, flags, 0o666)

    def _write(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def _sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def _rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def _sync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_FLUSH:
                raise
        finally:
            os.close(descriptor)


class RemoteStorage(Storage):
    """An address of fsspec. Staged bytes wait in memory: an object is put when it is whole."""

    def __init__(self, address: str) -> None:
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
            with _faults(self, name):
                self._system.rm_file(self._path(name))

    def discard(self, staged: Any) -> None:
        """See `Storage`."""

    def create(self, name: str, data: bytes) -> bool:
        """See `Storage`."""
        with _faults(self, name):
            self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            try:
                self._system.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        with _faults(self, name):
            self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._system.pipe_file(self._path(name), data)

    def append(self, name: str, data: bytes) -> None:
        """Put a further object: those of object stores cannot grow."""
        self._count += 1
        stem, suffix = os.path.splitext(name)
        if not self.create(f"{stem}-{self._count:08}{suffix}", data):
            raise JobError(f"{self._address}: {name} is written by another process, too")

    def list(self, folder: str) -> list[str]:
        """See `Storage`."""
        with _faults(self, folder):
            try:
                found = self._system.ls(self._path(folder), detail=False, refresh=True)
            except FileNotFoundError:
                return []
            except TypeError:  # file systems without a cache of listings
                found = self._system.ls(self._path(folder), detail=False)
            return sorted(f"{folder}/{name.rpartition('/')[2]}" for name in found)

    def open(self, name: str) -> IO[bytes]:
        """See `Storage`."""
        with _faults(self, name):
            return io.BytesIO(self._system.cat_file(self._path(name)))

    def size(self, name: str) -> int:
        """See `Storage`."""
        with _faults(self, name):
            return int(self._system.size(self._path(name)))

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        return bool(self._system.isfile(self._path(name)))

    def clean(self) -> None:
        """See `Storage`."""

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def _what(share: str) -> str:
    return f", on all of it or on share {share[1:].replace('-of-', '/')}" if share else ""


class _faults:
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
