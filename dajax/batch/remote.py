"""Files here and on remote file systems. Remote ones are fsspec's, and this module alone imports it."""

from __future__ import annotations

import re
from typing import IO, Any

from dajax.errors import ConfigError, JobError, missing_extra
from dajax.files import reason

# A single letter is a drive of Windows.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+(::|://)")


def is_remote(path: str) -> bool:
    """Return whether this is an address such as gs://bucket/folder."""
    return _ADDRESS.match(path) is not None


def file_system(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it.

    Raises:
        ConfigError: fsspec, or what it needs for this kind of address, is not installed.
    """
    extra, package = ("gs", "gcsfs") if address.startswith(("gs:", "gcs:")) else ("s3", "s3fs")
    is_bucket = address.startswith(("gs:", "gcs:", "s3:", "s3a:"))
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        if is_bucket:
            raise ConfigError(missing_extra(extra, f"{address} needs {package}")) from error
        raise ConfigError(f"{address} needs fsspec and its package for such addresses ({error})") from error
    except ValueError as error:
        raise ConfigError(f"{address}: {error}") from error
    return system, str(path)


def open_to_read(path: str) -> IO[Any]:
    """Open a local or remote file of bytes.

    Raises:
        JobError: it cannot be opened.
    """
    try:
        if is_remote(path):
            system, inside = file_system(path)
            file: IO[Any] = system.open(inside, "rb")
            return file
        return open(path, "rb")
    except OSError as error:
        raise JobError(f"{path!r}: cannot be opened ({reason(error)})") from error
