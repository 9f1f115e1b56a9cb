"""Opens a job's output folder, wherever it is."""

from __future__ import annotations

import os
from pathlib import Path

from dajax.batch.local_storage import LocalStorage
from dajax.batch.remote import is_remote
from dajax.batch.remote_storage import RemoteStorage
from dajax.batch.storage import Storage
from dajax.errors import ConfigError
from dajax.files import in_the_way_of


def open_storage(output: str | os.PathLike[str], process_index: int = 0, process_count: int = 1) -> Storage:
    """Return the storage of a local folder or a remote address.

    Args:
        output: the folder or fsspec address; it need not exist.
        process_index: which of the processes of the job this is, counted from 0.
        process_count: how many processes do the job together.

    Raises:
        ConfigError: the folder is a file or below one; or fsspec, or what it needs for this kind of address, is not
            installed.
    """
    suffix = f"-{process_index}-of-{process_count}" if process_count > 1 else ""
    text = os.fspath(output)
    if is_remote(text):
        return RemoteStorage(text, suffix)
    if problem := in_the_way_of(Path(text)):
        raise ConfigError(problem)
    return LocalStorage(Path(text), suffix)
