"""Where images come from: folders, patterns, lists, tables, tar shards, remote file systems.

A source is listed first, in a fixed order. Each item has a key, which names it in the manifest and from which its
output name is made, and a location, from which a decoder process reads it.
"""

from __future__ import annotations

import csv
import glob
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dajax.batch.remote import file_system, is_remote
from dajax.errors import ConfigError, ImageError, JobError, JobRefusedError, missing_extra
from dajax.images.find import IMAGE_SUFFIXES, find_images


@dataclass(frozen=True)
class Location:
    """Where the bytes of an image are.

    Attributes:
        path: a local path or the address of a remote file.
        offset: the byte at which the image begins in that file.
        size: how many bytes it has; None for the whole file.
    """

    path: str
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True)
class Item:
    """An image of a source.

    Attributes:
        key: its name in the source: unique, and the same in every run.
        location: where it is.
    """

    key: str
    location: Location


@dataclass(frozen=True)
class Source:
    """What a job reads.

    Attributes:
        items: the images, sorted by key.
        repeated: how many entries named an item once more.
        kind: "folder", "pattern", "list", "table" or "tar".
    """

    items: list[Item]
    repeated: int
    kind: str


def find_items(source: str | os.PathLike[str], *, column: str | None = None, leave_out: Path | None = None) -> Source:
    """List the images of a source. It opens lists, tables and the indices of tar files, but no image.

    - a folder: all files below it with the suffix of an image; the key is the path below the folder.
    - a pattern (`images/**/*.jpg`): the files that match; the key is the path below the part without wildcards.
    - `list.txt`: a path in each line; the key is the line.
    - `table.csv`, `table.parquet`: paths in the column `column`; the key is the entry.
    - `name.tar`, or a pattern of tar files: the images in them (WebDataset); the key is FILE/MEMBER.
    - any of these as an fsspec address (`gs://bucket/images`).

    Args:
        source: one of these.
        column: the column of a table that has the paths; not needed if there is only one.
        leave_out: a folder below which nothing is an input: the job's own output folder.

    Raises:
        ImageError: there is no image, or a folder cannot be listed.
        ConfigError: a column is missing, or the address needs a package that is not installed.
        JobError: a list, table or tar file cannot be read.
    """
    text = os.fspath(source)
    if text.startswith(("http://", "https://")):
        raise ConfigError(
            f"{text}: a job does not read web pages; download the images first, or give a bucket's address"
        )
    suffix = os.path.splitext(text)[1].lower()
    if column is not None and suffix not in (".csv", ".parquet"):
        raise ConfigError(f"column = {column!r} goes with a .csv or .parquet source, not with {text}")
    if suffix == ".tar" and (os.path.exists(text) or is_remote(text) or glob.has_magic(text)):
        return _made(_in_tars(text), "tar", text)
    if suffix == ".txt":
        return _made(_entries(_lines(text)), "list", text)
    if suffix in (".csv", ".parquet"):
        read = _csv_column if suffix == ".csv" else _parquet_column
        return _made(_entries(read(text, column)), "table", text)
    if is_remote(text):
        return _made(_remote(text), "folder", text)
    if os.path.isdir(text):
        return _made(_in_folder(text, leave_out), "folder", text)
    if os.path.lexists(text):
        return _made([(os.path.basename(text), Location(text))], "pattern", text)
    if not glob.has_magic(text):
        raise ImageError(f"{text!r}: no such file or folder")
    return _made(_matching(text, leave_out), "pattern", text)


def _made(found: Iterable[tuple[str, Location]], kind: str, name: str) -> Source:
    items: dict[str, Location] = {}
    count = 0
    for key, location in found:
        items.setdefault(key, location)
        count += 1
    if not items:
        raise ImageError(f"{name!r}: has no images")
    return Source([Item(key, items[key]) for key in sorted(items)], count - len(items), kind)


def _in_folder(folder: str, leave_out: Path | None) -> Iterator[tuple[str, Location]]:
    for path in _apart(find_images(folder), leave_out):
        yield path.relative_to(folder).as_posix(), Location(str(path))


def _matching(pattern: str, leave_out: Path | None) -> Iterator[tuple[str, Location]]:
    fixed = next(folder for folder in Path(pattern).parents if not glob.has_magic(str(folder)))
    for path in _apart(find_images(pattern), leave_out):
        yield path.relative_to(fixed).as_posix(), Location(str(path))


def _apart(paths: Iterable[Path], folder: Path | None) -> Iterator[Path]:
    if folder is None:
        yield from paths
        return
    folder = folder.resolve()
    for path in paths:
        # The path itself counts, not the target of a link: a link to an output is an input.
        if folder not in (path.parent.resolve() / path.name).parents:
            yield path


def _entries(entries: Iterable[str]) -> Iterator[tuple[str, Location]]:
    for entry in entries:
        yield entry, Location(entry)


def _lines(path: str) -> Iterator[str]:
    with _opened(path) as file:
        for line in file:
            # Bytes that are not UTF-8 are kept, because names of files may have any bytes.
            text = os.fsdecode(line.rstrip(b"\r\n"))
            if text.strip():
                yield text


def _csv_column(path: str, column: str | None) -> Iterator[str]:
    with _opened(path) as file:
        rows = csv.DictReader(os.fsdecode(line) for line in file)
        name = _column(column, list(rows.fieldnames or []), path)
        try:
            for row in rows:
                if row[name]:
                    yield row[name]
        except csv.Error as error:
            raise JobRefusedError(f"{path}, line {rows.line_num}: is no CSV ({error})") from error


def _parquet_column(path: str, column: str | None) -> Iterator[str]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(missing_extra("parquet", f"{path} needs pyarrow")) from error
    with _opened(path) as file:
        try:
            table = pq.ParquetFile(file)
            name = _column(column, table.schema_arrow.names, path)
            for batch in table.iter_batches(columns=[name]):
                for entry in batch.column(0).to_pylist():
                    if not isinstance(entry, str | None):
                        raise JobRefusedError(f"{path}: column {name!r} has {type(entry).__name__}, not text")
                    if entry:
                        yield entry
        except pa.ArrowException as error:
            raise JobRefusedError(f"{path}: cannot be read as Parquet ({error})") from error


def _column(wanted: str | None, names: list[str], path: str) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None or wanted not in names:
        said = "say which column has the paths" if wanted is None else f"has no column {wanted!r}"
        raise ConfigError(f"{path}: {said}; there are {', '.join(names) or 'none'}")
    return wanted


def _in_tars(pattern: str) -> Iterator[tuple[str, Location]]:
    if is_remote(pattern):
        system, path = file_system(pattern)
        tars = sorted(system.glob(path)) if glob.has_magic(path) else [path]
        tars = [system.unstrip_protocol(tar) for tar in tars]
    else:
        tars = [pattern] if os.path.exists(pattern) else sorted(map(str, find_images(pattern)))
    if not tars:
        raise ImageError(f"{pattern!r}: no file matches this pattern")
    for tar in tars:
        name = tar.replace(os.sep, "/").rsplit("/", 1)[-1]
        try:
            with _opened(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.isreg() and os.path.splitext(member.name)[1].lower() in IMAGE_SUFFIXES:
                        yield f"{name}/{member.name}", Location(tar, member.offset_data, member.size)
        except tarfile.TarError as error:
            raise JobRefusedError(f"{tar}: cannot be read as an uncompressed tar file ({error})") from error


def _remote(address: str) -> Iterator[tuple[str, Location]]:
    system, path = file_system(address)
    try:
        found = system.glob(path) if glob.has_magic(path) else system.find(path)
    except (FileNotFoundError, PermissionError) as error:
        raise ImageError(f"{address}: cannot be listed ({error})") from error
    except OSError as error:  # a fault of the network: it may work another time
        raise JobError(f"{address}: cannot be listed ({error})") from error
    fixed = path
    while glob.has_magic(fixed):
        fixed = fixed.rpartition("/")[0]
    for name in found:
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            key = name.removeprefix(fixed).lstrip("/") or name.rpartition("/")[2]
            yield key, Location(system.unstrip_protocol(name))


def _opened(path: str) -> IO[Any]:
    try:
        if is_remote(path):
            system, inside = file_system(path)
            file: IO[Any] = system.open(inside, "rb")
            return file
        return open(path, "rb")
    except OSError as error:
        raise JobError(f"{path!r}: cannot be opened ({error.strerror or error})") from error
