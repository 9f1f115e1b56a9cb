"""Tables in Parquet: paths of images, or the images themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from dajax.batch.remote import open_to_read
from dajax.batch.tables import NO_ENTRY, column_named
from dajax.errors import ConfigError, JobRefusedError, missing_extra

PARQUET = ".parquet"


class Cell(NamedTuple):
    """An entry of a Parquet table.

    Attributes:
        column: the name of its column.
        row: its row, counted from 0.
        path: the path that the entry is or has; "" if it has none.
        has_bytes: whether the encoded image itself is in the table.
    """

    column: str
    row: int
    path: str
    has_bytes: bool


def parquet_cells(path: str, column: str | None, passed_over: Counter[str]) -> Iterator[Cell]:
    """Yield the entries of a column of a Parquet file; the images in it are not read.

    The column may have paths, encoded images, or both: the struct {bytes, path} that the data sets of the Hugging Face
    Hub have for images.

    Args:
        path: the file.
        column: the column; not needed if there is only one, or only one of images.
        passed_over: counts the rows that have no entry.

    Raises:
        ConfigError: the column is missing, or pyarrow is not installed.
        JobError: the file cannot be opened.
        JobRefusedError: it is no Parquet, or the column has neither paths nor images.
    """
    pa, pq = _pyarrow(path)
    with open_to_read(path) as file:
        try:
            table = pq.ParquetFile(file)
            schema = table.schema_arrow
            images = [field.name for field in schema if _is_struct(pa, field.type)]
            name = column if column is not None or len(images) != 1 else images[0]
            name = column_named(name, schema.names, path)
            kind = schema.field(name).type
            if _is_struct(pa, kind):
                yield from _image_cells(table, name, f"{name}.bytes", f"{name}.path", passed_over)
            elif _is_any(pa, kind, "binary", "large_binary", "binary_view", "fixed_size_binary"):
                yield from _image_cells(table, name, name, "", passed_over)
            elif _is_any(pa, getattr(kind, "value_type", kind), "string", "large_string", "string_view", "null"):
                yield from _path_cells(table, name, passed_over)
            else:
                raise JobRefusedError(
                    f"{path}: column {name!r} has {kind}, not text, bytes of images, or {{bytes, path}}"
                )
        except pa.ArrowException as error:
            raise JobRefusedError(f"{path}: cannot be read as Parquet ({error})") from error


def _path_cells(table: Any, name: str, passed_over: Counter[str]) -> Iterator[Cell]:
    row = -1
    for batch in table.iter_batches(columns=[name]):
        for entry in batch.column(0).to_pylist():
            row += 1
            path = (entry or "").strip()
            if path:
                yield Cell(name, row, path, False)
            else:
                passed_over[NO_ENTRY] += 1


def _image_cells(table: Any, name: str, of_bytes: str, of_paths: str, passed_over: Counter[str]) -> Iterator[Cell]:
    """Yield the cells of a column of images; `of_bytes` and `of_paths` are its parts, as Parquet names them."""
    row = -1
    for group in range(table.num_row_groups):
        there = _are_there(table, group, of_bytes)
        paths = [None] * len(there)
        if of_paths:
            column = table.read_row_group(group, columns=[of_paths]).column(0)
            paths = [None if one is None else one["path"] for one in column.to_pylist()]
        for has_bytes, path in zip(there, paths, strict=True):
            row += 1
            if has_bytes or path:
                yield Cell(name, row, path or "", has_bytes)
            else:
                passed_over[NO_ENTRY] += 1


def _are_there(table: Any, group: int, column: str) -> list[bool]:
    """Return which rows of a row group have bytes; the bytes are read only if the file's statistics do not say it."""
    about = table.metadata.row_group(group)
    chunks = [about.column(place) for place in range(about.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
    nulls = chunk.statistics.null_count if chunk.is_stats_set and chunk.statistics.has_null_count else -1
    if nulls in (0, about.num_rows):
        return [nulls == 0] * about.num_rows
    entries = table.read_row_group(group, columns=[column]).column(0).combine_chunks()
    entries = entries.field("bytes") if hasattr(entries, "field") else entries
    valid: list[bool] = entries.is_valid().to_pylist()
    return valid


class ParquetImages:
    """Reads encoded images out of Parquet files. It is quick for rows in ascending order."""

    def __init__(self) -> None:
        self._place: tuple[str, str] | None = None
        self._rows: Iterator[bytes | None] = iter(())
        self._next = 0
        self._file: IO[Any] | None = None

    def read(self, path: str, column: str, row: int) -> bytes:
        """Return the bytes of an image.

        Raises:
            OSError, ValueError: the file or this part of it cannot be read, or it has no such row any more.
        """
        if self._place != (path, column) or row < self._next:
            self._open(path, column, row)
        try:
            for data in self._rows:
                self._next += 1
                if self._next > row:
                    if data is None:
                        break
                    return data
        except Exception:
            self.close()  # what comes behind a damaged part is looked for anew
            raise
        self.close()
        raise ValueError(f"there is no image in row {row} of {path} any more")

    def close(self) -> None:
        """Close the open file."""
        if self._file is not None:
            self._file.close()
        self._place, self._rows, self._file = None, iter(()), None

    def _open(self, path: str, column: str, row: int) -> None:
        """Go to the row group that has this row."""
        self.close()
        _, pq = _pyarrow(path)
        self._file = open_to_read(path)
        table = pq.ParquetFile(self._file)
        groups, before = [], 0
        self._next = 0
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            if before + count > row:
                groups.append(group)
            else:
                self._next = before + count
            before += count
        self._place = (path, column)
        self._rows = _images(table, column, groups)


def _images(table: Any, column: str, groups: Sequence[int]) -> Iterator[bytes | None]:
    for group in groups:  # one by one, so that a damaged one costs its own rows
        for batch in table.iter_batches(batch_size=16, row_groups=[group], columns=[column]):
            entries = batch.column(0)
            for entry in entries.field("bytes") if hasattr(entries, "field") else entries:
                yield entry.as_py()


def _pyarrow(path: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(missing_extra("parquet", f"{path} needs pyarrow")) from error
    return pa, pq


def _is_struct(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_struct(kind)) and {"bytes", "path"} <= {field.name for field in kind}


def _is_any(pa: Any, kind: Any, *names: str) -> bool:
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)
