"""Files of every kind: how they are opened, recognised and written.

Callers say which class of error they raise, because the same fault means another thing in another room.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from dajax.errors import DajaxError

# Errors that are not the fault of one file: others would fail as well. EIO is not among them: a bad spot of a disk
# stays bad, and concerns one file.
_OF_THE_MACHINE = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    # A network disk or a bucket cannot be reached.
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ESHUTDOWN,
}


def is_of_the_machine(error: BaseException | None) -> bool:
    """Return whether an error is that of the machine, a network disk or a bucket, so that other files fail as well."""
    return isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in _OF_THE_MACHINE


def open_regular(
    path: str | os.PathLike[str], *, error: type[DajaxError], name: str | None = None, hint: str = ""
) -> BufferedReader:
    """Open a regular file for reading; a pipe or device, on which reading could wait forever, is refused.

    Args:
        path: the file.
        error: the class of the error to raise.
        name: what the message calls the file; its path if None.
        hint: the end of the message: what to try.

    Raises:
        error: there is no such file, it is not a regular file, or it cannot be opened.
    """
    try:
        _check_regular(os.stat(path).st_mode)
        # Between stat and open the path may have become a pipe, on which a plain open would wait.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            _check_regular(os.fstat(descriptor).st_mode)
        except OSError:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the path
        message = f"{os.fspath(path) if name is None else name} cannot be read: {reason(problem)}"
        raise error(message + (f". {hint}" if hint else "")) from problem


def wrong_download(head: bytes, expected: str) -> str:
    """Say what a file is that downloads often leave in place of the wanted one; "" if it is none of these.

    Args:
        head: the first bytes of the file; 64 are enough.
        expected: what the file should be, such as "an image".

    Returns:
        The end of a sentence, such as "is a git-LFS pointer, not an image: run `git lfs pull` in its repository".
    """
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return f"is a git-LFS pointer, not {expected}: run `git lfs pull` in its repository"
    if text.startswith(b"<") and b"<svg" not in text:
        return f"is an HTML or XML page, not {expected}: the download failed or needs a login"
    return ""


def write_atomically(path: str | os.PathLike[str], data: bytes | Iterable[bytes], *, error: type[DajaxError]) -> None:
    """Write a file that appears whole or not at all; an existing file is replaced.

    Args:
        path: the file.
        data: its content, or the parts of it one after the other.
        error: the class of the error to raise.

    Raises:
        error: the folder does not exist or cannot be written to.
    """
    try:
        with replacing(Path(path)) as file:
            file.writelines([data] if isinstance(data, bytes) else data)
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the path
        raise error(f"{str(path)!r}: cannot be written ({reason(problem)}). Does the folder exist?") from problem


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the name `path` at the end of the block, and is removed if the block fails.

    Raises:
        OSError: the file cannot be made or renamed.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_path(path: Path, suffix: str = ".tmp") -> Path:
    """Return a new hidden name in the folder of `path`, for a file that is not finished."""
    # Random and short: the final name may already be as long as the file system allows.
    return path.parent / f".dajax-{secrets.token_hex(8)}{suffix}"


def flush_to_disk(file: BinaryIO) -> None:
    """Return when everything that was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def in_the_way_of(folder: Path) -> str:
    """Say what is where a folder has to be, or one above it; "" if the folder is there or can be made.

    Returns:
        A sentence such as "'maps' is a file: name another folder".
    """
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), None)
    if there is None or there.is_dir():
        return ""
    what = "a file" if there.is_file() else "a link to nothing" if there.is_symlink() else "no folder"
    below = "" if there == folder else f", so {str(folder)!r} cannot be a folder"
    return f"{str(there)!r} is {what}{below}: name another folder"


def reason(problem: Exception) -> str:
    """Return what the system says about a failure, without the number and the path of an OSError."""
    return getattr(problem, "strerror", None) or str(problem)


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, socket or device")
