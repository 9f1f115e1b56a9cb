"""Stamps: texts that tell whether a file has changed, without reading it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dajax.batch.remote import file_system, is_remote

# What file systems of fsspec say about a file, the surest first: S3's ETag and Google's generation change with every
# write.
_VERSIONS = [
    (name, name.lower())
    for name in ("ETag", "generation", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
]


def stamp_of(path: str) -> str:
    """Return the stamp of a file: its size with its modification time or, in a bucket, its ETag.

    Returns:
        A text such as "size=20345 mtime_ns=1767225600123456789"; "" if nothing is known of the file.
    """
    if is_remote(path):
        try:
            system, inside = file_system(path)
            return stamp_of_info(system.info(inside))
        except Exception:  # an error class of the client; who reads the file meets it, too
            return ""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"size={found.st_size} mtime_ns={found.st_mtime_ns}"


def stamp_of_info(info: Mapping[str, Any]) -> str:
    """Return the stamp of a remote file, of what a listing of fsspec says about it."""
    for name, said in _VERSIONS:
        version = info.get(name)
        if version:
            return f"size={info.get('size')} {said}={version}"
    return ""
