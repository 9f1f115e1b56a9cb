"""Lists of image files from files, folders and patterns."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from dajax.errors import ImageError
from dajax.images.urls import is_url, redacted

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "avif", "tif", "tiff", "bmp", "dib", "gif"),
        *("ppm", "pgm", "pbm", "pnm", "mpo", "heic", "heif"),
    )
)


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List image files from files, folders and glob patterns.

    Files that are named are kept whatever their suffix. Folders are searched recursively for the suffixes of images,
    in sorted order, without following links to folders. A pattern (`*`, `?`, `[...]`, `**`) stands for the files that
    it matches, sorted; a file whose name merely looks like a pattern is that file. Nothing is opened: pipes and
    dangling links are listed, and reading them is what fails.

    Args:
        paths: one path or several.

    Returns:
        Paths in the order given, each once.

    Raises:
        ImageError: a path does not exist, a folder cannot be listed, or a folder or pattern yields nothing.
    """
    entries = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: dict[Path, None] = {}
    for entry in entries:
        text = os.fspath(entry)
        if is_url(text):
            raise ImageError(f"{redacted(text)}: URLs are not listed here. Download the images first.")
        if os.path.isdir(text):
            matches = _in_folder(text)
            nothing = "no images in this folder"
        elif os.path.lexists(text):
            matches, nothing = [text], ""
        elif glob.has_magic(text):
            matches = sorted(match for match in _expand(text) if not os.path.isdir(match))
            nothing = "no file matches this pattern"
        else:
            matches, nothing = [], "no such file or folder"
        if not matches:
            raise ImageError(f"{text!r}: {nothing}")
        found.update(dict.fromkeys(Path(match) for match in matches))
    return list(found)


def _expand(pattern: str) -> list[str]:
    if "**" not in pattern:
        return glob.glob(pattern)
    # glob.glob would follow links to folders here, and two that point upwards keep it busy for ever.
    path = Path(pattern, "*") if pattern.endswith("**") else Path(pattern)
    return [str(match) for match in Path(path.anchor).glob(str(path.relative_to(path.anchor)))]


def _in_folder(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename!r}: the folder cannot be listed ({error.strerror})") from error

    matches = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders.sort()
        matches += [os.path.join(parent, f) for f in sorted(files) if os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES]
    return matches
