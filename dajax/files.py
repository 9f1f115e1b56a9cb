"""Files of every kind: how they are opened, recognised and written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from dajax.errors import ImageError


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write` on a new file in the same folder, then give it its name; on failure nothing is left behind.

    Args:
        path: The file; an existing one is replaced.
        write: Writes the content to a binary stream.

    Raises:
        ImageError: The folder does not exist or cannot be written to.
    """
    path = Path(path)
    # A short random name: the final one may already be as long as the file system allows.
    temporary = path.parent / f".dajax-{secrets.token_hex(8)}.tmp"
    try:
        try:
            with temporary.open("xb") as stream:
                write(stream)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{str(path)!r}: cannot be written ({reason}). Does the folder exist?") from error
