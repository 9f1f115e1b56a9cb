"""Remote file systems, by fsspec; the only module that imports it."""

from __future__ import annotations

import re
from typing import Any

from dajax.errors import ConfigError, missing_extra

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
