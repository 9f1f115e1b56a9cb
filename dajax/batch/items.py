"""Where images come from: folders, patterns, lists, tables, tar shards, remote file systems.

A source is listed first, in a fixed order. Each item has a key, which names it in the manifest and from which its
output name is made, and a location, from which a decoder process reads it.
"""

from __future__ import annotations

import gc
import glob
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from dajax.batch.parquet_tables import PARQUET, parquet_cells
from dajax.batch.remote import file_system, is_remote, open_to_read
from dajax.batch.stamps import stamp_of, stamp_of_info
from dajax.batch.tables import TEXT_TABLES, list_lines, text_column
from dajax.errors import ConfigError, ImageError, JobError, JobRefusedError
from dajax.files import is_of_the_machine
from dajax.images.find import Found, and_passed_over, kind_passed_over, search_images, unlisted_reason


class Location(NamedTuple):
    """Where the bytes of an image are.

    Attributes:
        path: a local path or the address of a remote file.
        offset: the byte at which the image begins in that file.
        size: how many bytes it has; None for the whole file.
        column: the column of a Parquet file that has the image; "" for other files.
        row: its row, counted from 0.
    """

    path: str
    offset: int = 0
    size: int | None = None
    column: str = ""
    row: int = 0


class Item(NamedTuple):
    """An image of a source.

    Attributes:
        key: its name in the source: unique, and the same in every run.
        location: where it is.
        stamp: what tells whether it has changed, if the listing said it; see `dajax.batch.stamps`.
        problem: Why it cannot be read, if the listing said it: it is a folder that could not be listed.
    """

    key: str
    location: Location
    stamp: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Source:
    """What a job reads.

    Attributes:
        items: the images, sorted by key. A folder that could not be listed is an item whose key ends with /.
        repeated: how many entries named an item once more.
        kind: "folder", "pattern", "list", "table" or "tar".
        passed_over: how many files and folders were passed over, by kind.
    """

    items: list[Item]
    repeated: int
    kind: str
    passed_over: Counter[str] = field(default_factory=Counter)


def find_items(source: str | os.PathLike[str], *, column: str | None = None, leave_out: Path | None = None) -> Source:
    """List the images of a source. It opens lists, tables and the indices of tar files, but no image.

    - a folder: all files below it with the suffix of an image; the key is the path below the folder.
    - a pattern (`images/**/*.jpg`): the files that match; the key is the path below the part without wildcards.
    - `list.txt`: a path in each line; the key is the line.
    - `table.csv`, `table.tsv`, `table.parquet`: paths in the column `column`; the key is the entry.
    - `table.parquet`, or a pattern of such files, with the images themselves in the column (as bytes, or as the struct
      {bytes, path} of the Hugging Face Hub's data sets): the key is FILE/ROW, or FILE/ROW-NAME.
    - `name.tar`, or a pattern of tar files: the images in them (WebDataset); the key is FILE/MEMBER.
    - any of these as an fsspec address (`gs://bucket/images`).

    Args:
        source: one of these.
        column: the column of a table that has the paths; not needed if there is only one.
        leave_out: a folder below which nothing is an input: the job's own output folder.

    Raises:
        ImageError: there is no image, or the folder cannot be listed.
        ConfigError: a column is missing, or the address needs a package that is not installed.
        JobError: a list, table or tar file cannot be read, or a disk does not answer.
    """
    text = os.fspath(source)
    if text.startswith(("http://", "https://")):
        raise ConfigError(
            f"{text}: a job does not read web pages; download the images first, or give a bucket's address"
        )
    suffix = "" if os.path.isdir(text) else os.path.splitext(text)[1].lower()
    if column is not None and suffix not in (*TEXT_TABLES, PARQUET):
        raise ConfigError(f"column = {column!r} goes with a .csv, .tsv or .parquet source, not with {text}")
    passed_over: Counter[str] = Counter()
    found, kind = _listed(text, suffix, column, leave_out, passed_over)
    with _no_garbage():
        # The sort is stable, and quick for what is sorted already: the first one of several items with one key stays.
        every = sorted(found, key=itemgetter(0))
        items = every[:1] + [item for before, item in pairwise(every) if item.key != before.key]
    if not items:
        raise ImageError(f"{text!r}: has no images{and_passed_over(passed_over)}")
    return Source(items, len(every) - len(items), kind, passed_over)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Let Python not look for garbage: millions of new items have none, and looking takes half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _listed(
    text: str, suffix: str, column: str | None, leave_out: Path | None, passed_over: Counter[str]
) -> tuple[Iterator[Item], str]:
    """Return the items of a source, and of which kind it is."""
    if suffix == ".tar" and (os.path.exists(text) or is_remote(text) or glob.has_magic(text)):
        return _in_tars(text, passed_over), "tar"
    if suffix == ".txt":
        return _entries(list_lines(text)), "list"
    if suffix in TEXT_TABLES:
        return _entries(text_column(text, column, passed_over)), "table"
    if suffix == PARQUET:
        return _in_parquet(text, column, passed_over), "table"
    if is_remote(text):
        return _remote(text, passed_over), "folder"
    if os.path.lexists(text) and not os.path.isdir(text):
        return iter([Item(os.path.basename(text), Location(text))]), "pattern"
    if not os.path.isdir(text) and not glob.has_magic(text):
        raise ImageError(f"{text!r}: no such file or folder")
    return _searched(text, leave_out, passed_over), "folder" if os.path.isdir(text) else "pattern"


def _searched(source: str, leave_out: Path | None, passed_over: Counter[str]) -> Iterator[Item]:
    """Yield the images of a folder or a pattern, and the folders below it that could not be listed."""
    fixed = _fixed(source)
    found: Found = search_images(source)
    passed_over += found.passed_over
    for path in _apart(found.paths, leave_out):
        yield Item(path.relative_to(fixed).as_posix(), Location(str(path)))
    for folder, error in found.unlisted.items():
        if is_of_the_machine(error):
            raise JobError(f"{folder!r}: {unlisted_reason(error)}") from error
        key = f"{Path(folder).relative_to(fixed).as_posix()}/"
        yield Item(key, Location(folder), problem=unlisted_reason(error))


def _fixed(source: str) -> Path:
    """Return the folder itself, or the part of a pattern before its first wildcard."""
    if os.path.isdir(source):
        return Path(source)
    return next(folder for folder in Path(source).parents if not glob.has_magic(str(folder)))


def _apart(paths: Iterable[Path], folder: Path | None) -> Iterator[Path]:
    if folder is None:
        yield from paths
        return
    folder = folder.resolve()
    for path in paths:
        # The path itself counts, not the target of a link: a link to an output is an input.
        if folder not in (path.parent.resolve() / path.name).parents:
            yield path


def _entries(entries: Iterable[str]) -> Iterator[Item]:
    for entry in entries:
        yield _entry(entry)


def _entry(path: str) -> Item:
    # fsspec would download it, from whatever address a list has that someone else has made.
    is_page = path.lower().startswith(("http://", "https://"))
    return Item(path, Location(path), problem="a job does not read web pages: download the image first" * is_page)


def _in_parquet(pattern: str, column: str | None, passed_over: Counter[str]) -> Iterator[Item]:
    for path, name in _files(pattern):
        stamp = stamp_of(path)
        for cell in parquet_cells(path, column, passed_over):
            if not cell.has_bytes:
                yield _entry(cell.path)
                continue
            # The number tells rows apart that have one path, and keeps the order of the rows, in which they are read.
            last = cell.path.replace("\\", "/").rpartition("/")[2]
            key = f"{name}/{cell.row:08}{'-' if last else ''}{last}"
            yield Item(key, Location(path, column=cell.column, row=cell.row), stamp)


def _in_tars(pattern: str, passed_over: Counter[str]) -> Iterator[Item]:
    for path, name in _files(pattern):
        stamp = stamp_of(path)
        try:
            with open_to_read(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.isdir():
                        continue
                    kind = kind_passed_over(member.name) if member.isreg() else "links"
                    if not kind:
                        location = Location(path, member.offset_data, member.size)
                        yield Item(f"{name}/{member.name}", location, stamp)
                    else:
                        passed_over[kind] += 1
        except tarfile.TarError as error:
            raise JobRefusedError(f"{path}: cannot be read as an uncompressed tar file ({error})") from error


def _files(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield the tar or Parquet files of a pattern, and what each is called in keys: its path below the fixed part."""
    if is_remote(pattern):
        system, path = file_system(pattern)
        fixed = path.rpartition("/")[0]
        while glob.has_magic(fixed):
            fixed = fixed.rpartition("/")[0]
        found = sorted(system.glob(path)) if glob.has_magic(path) else [path]
        files = [(system.unstrip_protocol(one), one.removeprefix(fixed).lstrip("/")) for one in found]
    elif os.path.exists(pattern) or not glob.has_magic(pattern):
        files = [(pattern, os.path.basename(pattern))]
    else:
        fixed_part = _fixed(pattern)
        files = [(str(one), one.relative_to(fixed_part).as_posix()) for one in search_images(pattern).paths]
        files.sort()
    if not files:
        raise ImageError(f"{pattern!r}: no file matches this pattern")
    yield from files


def _remote(address: str, passed_over: Counter[str]) -> Iterator[Item]:
    system, path = file_system(address)
    try:
        found = system.glob(path, detail=True) if glob.has_magic(path) else system.find(path, detail=True)
    except (FileNotFoundError, PermissionError) as error:
        raise ImageError(f"{address}: cannot be listed ({error})") from error
    except OSError as error:  # a fault of the network: it may work another time
        raise JobError(f"{address}: cannot be listed ({error})") from error
    fixed = path
    while glob.has_magic(fixed):
        fixed = fixed.rpartition("/")[0]
    # All names get the same prefix; asking for it each time takes longer than all the rest.
    first = next(iter(found), "")
    protocol = system.unstrip_protocol(first).removesuffix(first)
    for name, about in found.items():
        key = name.removeprefix(fixed).lstrip("/") or name.rpartition("/")[2]
        kind = kind_passed_over(key)
        if not kind:
            yield Item(key, Location(protocol + name), stamp_of_info(about))
        elif about.get("type") != "directory":
            passed_over[kind] += 1
