"""A job's output folder on this machine.

A file is written to a folder of unfinished files, flushed to the disk (fsync) and renamed; then its folder is flushed,
so that the name survives a crash. Only after that a row of the manifest says that the file is there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dajax.batch.storage import Storage, faults
from dajax.depth_maps.naming import OWN_FOLDER
from dajax.errors import ImageError, JobError

UNFINISHED = f"{OWN_FOLDER}/unfinished"
LOCK = f"{OWN_FOLDER}/lock"
# Seconds to wait for a lock. A process that is killed while it starts a decoder leaves a child that holds the lock
# until exec closes it, and --verify holds it for a moment.
_PATIENCE = 2.0
_NO_LINKS = {errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
# Errors of file systems that cannot flush a folder.
_NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class LocalStorage(Storage):
    """A folder on this machine. Its primitives are methods of their own, so that tests can make each one fail."""

    def __init__(self, root: Path, suffix: str = "") -> None:
        super().__init__(suffix)
        self.root = root
        self._broken = False

    def __str__(self) -> str:
        return str(self.root)

    def stage(self, data: bytes) -> str:
        """See `Storage`."""
        name = f"{UNFINISHED}{self.suffix}/{secrets.token_hex(8)}"
        self._write_new(name, data, name)
        return name

    def commit(self, files: Sequence[tuple[Any, str]]) -> dict[str, ImageError]:
        """See `Storage`."""
        folders: set[Path] = set()
        refused = {}
        for staged, name in files:
            try:
                with faults(self, name):
                    folders |= self._make_folder(self.root / name)
                    self._rename(self.root / staged, self.root / name)
            except ImageError as error:
                refused[name] = error
        for folder in sorted(folders):
            with faults(self, str(folder)):
                self._sync_folder(folder)
        return refused

    def remove(self, name: str) -> None:
        """See `Storage`."""
        with faults(self, name):
            (self.root / name).unlink(missing_ok=True)

    def discard(self, staged: Any) -> None:
        """See `Storage`."""
        (self.root / staged).unlink(missing_ok=True)

    def create(self, name: str, data: bytes) -> bool:
        """See `Storage`."""
        staged = self.stage(data)
        try:
            with faults(self, name):
                self._make_folder(self.root / name)
                try:
                    # Unlike a rename, this fails if the file exists.
                    os.link(self.root / staged, self.root / name)
                except FileExistsError:
                    return False
                except OSError as error:
                    # Not every file system has links. Without them, two processes that begin at once are not noticed.
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
        temporary = f"{UNFINISHED}{self.suffix}/{secrets.token_hex(8)}"
        with faults(self, name):
            self._make_folder(self.root / temporary)
            (self.root / temporary).write_bytes(data)
            os.replace(self.root / temporary, self.root / name)

    def append(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        if self._broken:
            raise JobError(f"{name}: an earlier row could not be written; nothing may follow it")
        with faults(self, name):
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
                    # Half a row is recognised at the end of a file only, so nothing may follow it.
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
        with faults(self, folder, "read"):
            try:
                return sorted(f"{folder}/{entry.name}" for entry in os.scandir(self.root / folder) if entry.is_file())
            except FileNotFoundError:
                return []

    def open(self, name: str) -> IO[bytes]:
        """See `Storage`."""
        with faults(self, name, "read"):
            return (self.root / name).open("rb")

    def size(self, name: str) -> int:
        """See `Storage`."""
        with faults(self, name, "read"):
            return (self.root / name).stat().st_size

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        return (self.root / name).is_file()

    def clean(self) -> None:
        """See `Storage`."""
        with faults(self, UNFINISHED):
            # This process's folder, and that of a process that did the whole job: no such process is at work now. Not
            # those of the other processes: they may be at work, because some file systems lock on one machine only.
            for suffix in {self.suffix, ""}:
                shutil.rmtree(self.root / f"{UNFINISHED}{suffix}", ignore_errors=True)
            if not self.suffix:
                for folder in (self.root / OWN_FOLDER).glob(f"{Path(UNFINISHED).name}-*"):
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """See `Storage`."""
        with self._lock(LOCK, fcntl.LOCK_SH if self.suffix else fcntl.LOCK_EX):
            if self.suffix:
                with self._lock(f"{LOCK}{self.suffix}", fcntl.LOCK_EX):
                    yield
            else:
                yield

    @contextmanager
    def _lock(self, name: str, kind: int) -> Iterator[None]:
        with faults(self, ""):
            self._make_folder(self.root / name)
            descriptor = os.open(self.root / name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            until = time.monotonic() + _PATIENCE
            while True:
                try:
                    # The operating system releases it when the process ends, however that happens.
                    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                except OSError as error:
                    if isinstance(error, BlockingIOError) and time.monotonic() < until:
                        time.sleep(0.05)
                        continue
                    # Other errors come from file systems without locks.
                    if isinstance(error, BlockingIOError):
                        raise JobError(f"{self.root}: another process works on this job{self._which()}") from error
                break
            yield
        finally:
            os.close(descriptor)

    def _which(self) -> str:
        if not self.suffix:
            return ""
        index, count = self.suffix[1:].split("-of-")
        return f", either on all of it or as process {index} of {count} too (they count from 0)"

    def _write_new(self, place: str, data: bytes, name: str) -> None:
        path = self.root / place
        with faults(self, name):
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
        """Make the folder of a file; return the folders that have to be flushed so that the file survives a crash."""
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
