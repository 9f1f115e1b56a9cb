"""Lists of image files from files, folders and patterns."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from dajax.errors import ImageError
from dajax.files import reason
from dajax.images.urls import is_url, redacted

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "jif", "png", "apng", "webp", "avif", "tif", "tiff", "bmp", "dib", "gif"),
        # Cameras of Canon, Fujifilm and Sony name their HEIC files .HIF.
        *("ppm", "pgm", "pbm", "pnm", "mpo", "heic", "heif", "hif"),
    )
)
# What operating systems and storage devices put beside images: copies, thumbnails, wastebaskets. In lower case.
_SYSTEM_NAMES = frozenset(
    (
        *(
            ".dajax",
            ".ds_store",
            ".appledouble",
            ".documentrevisions-v100",
            ".fseventsd",
            ".spotlight-v100",
            ".temporaryitems",
        ),
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "recycled"),
        *("system volume information", ".thumbnails", ".thumbs", ".trash", ".trashes", "lost+found", ".snapshot"),
        # Network storage of Synology and QNAP.
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", ".@__thumb", ".ipynb_checkpoints"),
    )
)
_SYSTEM_KIND = "system files (._*, @eaDir, #recycle and the like)"
# So many kinds are named; the rest is counted together.
_KINDS_SAID = 8


@dataclass
class Found:
    """What a search has found.

    Attributes:
        paths: the images, in the order given, each once.
        passed_over: how many files and folders were passed over, by kind: a suffix such as ".jp2", or words.
        unlisted: the folders that could not be listed, and why. The images below them are not known.
    """

    paths: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    unlisted: dict[str, OSError] = field(default_factory=dict)


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List image files from files, folders and glob patterns.

    Files that are named are kept whatever their suffix. Folders are searched recursively for the suffixes of images,
    in sorted order, without following links to folders. A pattern (`*`, `?`, `[...]`, `**`) stands for the files that
    it matches, sorted; a file whose name merely looks like a pattern is that file. In folders and patterns, system
    files (`._*`, thumbnails, wastebaskets) are left out. Nothing is opened: pipes and dangling links are listed, and
    reading them is what fails.

    Args:
        paths: one path or several.

    Returns:
        Paths in the order given, each once.

    Raises:
        ImageError: a path does not exist, a folder cannot be listed, or a folder or pattern yields nothing.
    """
    found = search_images(paths)
    for folder, error in found.unlisted.items():
        raise ImageError(f"{folder!r}: {unlisted_reason(error)}") from error
    return found.paths


def search_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Found:
    """Do what `find_images` does; also say what was passed over, and name the folders that could not be listed.

    Raises:
        ImageError: a path does not exist, a folder that was named cannot be listed, or a folder or pattern yields
            nothing.
    """
    entries = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found = Found()
    kept: dict[Path, None] = {}
    for entry in entries:
        text = os.fspath(entry)
        if is_url(text):
            raise ImageError(f"{redacted(text)}: URLs are not listed here. Download the images first.")
        before = found.passed_over.copy()
        if os.path.isdir(text):
            matches = list(_in_folder(text, found))
            nothing = "no images in this folder"
        elif os.path.lexists(text):
            matches, nothing = [text], ""
        elif glob.has_magic(text):
            matches = _matching(text, found)
            nothing = "no file matches this pattern"
        else:
            matches, nothing = [], "no such file or folder"
        if not matches and not found.unlisted:
            raise ImageError(f"{text!r}: {nothing}{and_passed_over(found.passed_over - before)}")
        kept.update(dict.fromkeys(Path(match) for match in matches))
    found.paths = list(kept)
    return found


def unlisted_reason(error: OSError) -> str:
    """Return why the images of a folder are not known."""
    return f"the folder cannot be listed ({reason(error)})"


def kind_passed_over(name: str) -> str:
    """Return the kind of a file that is no image by its name, or "" for the name of an image.

    Args:
        name: the path of the file, with / between its parts. All its parts are looked at, except the first ones that a
            caller has named: give the path below them.
    """
    folder, _, last = name.lower().rpartition("/")
    if _is_system_name(last) or _is_in_system_folder(folder):
        return _SYSTEM_KIND
    suffix = os.path.splitext(last)[1]
    if suffix in IMAGE_SUFFIXES:
        return ""
    if last in IMAGE_SUFFIXES:
        return f"files named {last}"
    return suffix if suffix.isprintable() and suffix not in ("", ".") else "files without a suffix"


@lru_cache
def _is_in_system_folder(folder: str) -> bool:
    return any(map(_is_system_name, folder.split("/")))


def is_system_name(name: str) -> bool:
    """Return whether a file or folder of this name belongs to an operating system or a storage device."""
    return _is_system_name(name.lower())


def _is_system_name(lower: str) -> bool:
    # AppleDouble (RFC 1740) puts the metadata of x into ._x; freedesktop.org's wastebasket of a user is .Trash-1000.
    return lower.startswith(("._", ".trash-")) or lower in _SYSTEM_NAMES


def passed_over_text(kinds: Mapping[str, int]) -> str:
    """Return how many files of which kinds were passed over, the most frequent first: "12 .jp2, 3 linked folders"."""
    ordered = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    said = [f"{count:,} {kind}" for kind, count in ordered[:_KINDS_SAID]]
    rest = ordered[_KINDS_SAID:]
    if rest:
        said.append(f"{sum(count for _, count in rest):,} of {len(rest)} other kinds")
    return ", ".join(said)


def and_passed_over(kinds: Mapping[str, int]) -> str:
    """Return the end of a message that nothing was found; "" if nothing was passed over."""
    return f" (passed over: {passed_over_text(kinds)})" if kinds else ""


def _matching(pattern: str, found: Found) -> list[str]:
    """Return the files that match, without system files unless the pattern names them."""
    named = set(Path(pattern).parts)
    kept = []
    for match in sorted(_expand(pattern)):
        is_system = any(is_system_name(part) for part in Path(match).parts if part not in named)
        if not os.path.isdir(match):
            if is_system:
                found.passed_over[_SYSTEM_KIND] += 1
            else:
                kept.append(match)
        elif not is_system and os.path.islink(match):
            found.passed_over["linked folders"] += 1
        elif not is_system and "**" not in pattern:
            found.passed_over["folders"] += 1
    found.unlisted.update(_unlisted_in(pattern))
    return kept


def _unlisted_in(pattern: str) -> dict[str, OSError]:
    """Return the folders that a pattern would have searched if they could be listed: globbing passes them over."""
    unlisted: dict[str, OSError] = {}

    def note(error: OSError) -> None:
        unlisted[str(error.filename)] = error

    searched = [folder for folder in Path(pattern).parents if glob.has_magic(str(folder)) and "**" not in str(folder)]
    for folder in (path for part in searched for path in glob.glob(str(part)) if os.path.isdir(path)):
        try:
            os.scandir(folder).close()
        except OSError as error:
            note(error)
    if "**" in pattern:
        fixed = next(folder for folder in Path(pattern).parents if not glob.has_magic(str(folder)))
        for _, folders, _ in os.walk(fixed, onerror=note):
            folders[:] = [name for name in folders if not is_system_name(name)]
    return unlisted


def _expand(pattern: str) -> list[str]:
    if "**" not in pattern:
        return glob.glob(pattern)
    # glob.glob would follow links to folders here, and two that point upwards keep it busy for ever.
    path = Path(pattern, "*") if pattern.endswith("**") else Path(pattern)
    return [str(match) for match in Path(path.anchor).glob(str(path.relative_to(path.anchor)))]


def _in_folder(folder: str, found: Found) -> Iterator[str]:
    def note(error: OSError) -> None:
        # The folder that the user named is the whole search; one below it costs its own images alone.
        if error.filename == folder:
            raise ImageError(f"{folder!r}: {unlisted_reason(error)}") from error
        found.unlisted[str(error.filename)] = error

    for parent, folders, files in os.walk(folder, onerror=note):
        system = [name for name in folders if is_system_name(name)]
        linked = [name for name in folders if name not in system and os.path.islink(os.path.join(parent, name))]
        for kind, names in ((_SYSTEM_KIND, system), ("linked folders", linked)):
            if names:
                found.passed_over[kind] += len(names)
        folders[:] = sorted(set(folders) - {*system, *linked})
        for name in sorted(files):
            kind = kind_passed_over(name)
            if kind:
                found.passed_over[kind] += 1
            else:
                yield os.path.join(parent, name)
