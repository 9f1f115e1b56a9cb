"""Lists and tables of images, as editors and spreadsheets write them."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain

from dajax.batch.remote import open_to_read
from dajax.errors import ConfigError, JobRefusedError
from dajax.images.find import IMAGE_SUFFIXES

TEXT_TABLES = (".csv", ".tsv")
NO_ENTRY = "rows without an entry"
# A byte order mark says how text is encoded (Unicode Standard, section 23.8). UTF-32's begins like UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What separates columns; spreadsheets of countries with decimal commas write semicolons.
_SEPARATORS = (",", ";", "\t")


def list_lines(path: str) -> Iterator[str]:
    """Yield the lines of a list: without blanks around them, and without quotation marks around the whole line.

    Raises:
        JobError: the file cannot be opened.
        JobRefusedError: it is no text.
    """
    for line in _lines(path, newline=None):
        entry = line.strip(" \t\n")
        if len(entry) > 2 and entry[0] == entry[-1] == '"':
            entry = entry[1:-1]
        if entry:
            yield entry


def text_column(path: str, column: str | None, passed_over: Counter[str]) -> Iterator[str]:
    """Yield the entries of a column of a CSV or TSV file, without blanks around them.

    Args:
        path: the file. The first line has the names of its columns.
        column: the column; not needed if there is only one.
        passed_over: counts the rows that have no entry.

    Raises:
        ConfigError: the column is missing, or more than one could be meant.
        JobError: the file cannot be opened.
        JobRefusedError: it is no text, or no such table.
    """
    with closing(_lines(path, newline="")) as lines:
        head, separator = _head(lines, path, column)
        # Strict: a quotation mark that is not closed would silently swallow the lines behind it.
        rows = csv.reader(chain([head], lines), delimiter=separator, skipinitialspace=True, strict=True)
        try:
            names = [name.strip() for name in next(rows)]
            if column not in names:
                _check_are_names(names, path)
            place = names.index(column_named(column, names, path))
            for row in rows:
                if any(cell.strip() for cell in row[len(names) :]):
                    raise JobRefusedError(
                        f"{path}, line {rows.line_num}: has {len(row)} columns, and the first line has {len(names)}. "
                        f"An entry with {separator!r} in it needs quotation marks"
                    )
                entry = row[place].strip() if len(row) > place else ""
                if entry:
                    yield entry
                elif any(cell.strip() for cell in row):
                    passed_over[NO_ENTRY] += 1
        except csv.Error as error:
            raise JobRefusedError(f"{path}, line {rows.line_num}: is no CSV ({error})") from error


def _lines(path: str, newline: str | None) -> Generator[str]:
    """Yield lines of text in UTF-8, or in what its byte order mark says. They end with LF, CR LF or CR alone."""
    with open_to_read(path) as file:
        head = file.read(4)
        file.seek(0)
        encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
        # Bytes that are not UTF-8 are kept, because names of files may have any bytes.
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        try:
            with io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=newline) as text:
                for line in text:
                    if "\0" in line:
                        raise JobRefusedError(
                            f"{path}: is no text in UTF-8, because it has bytes of value 0 (UTF-16 without a byte "
                            "order mark has them). Save it as UTF-8"
                        )
                    yield line
        except UnicodeDecodeError as error:
            raise JobRefusedError(
                f"{path}: its first bytes say that it is text in {encoding.upper()}, and it is not ({error.reason}). "
                "Save it as UTF-8"
            ) from error


def _head(lines: Iterator[str], path: str, column: str | None) -> tuple[str, str]:
    """Return the line with the names of the columns, and what separates them."""
    head = next((line for line in lines if line.strip()), "")
    said = re.fullmatch(r"sep=(.)\s*", head)  # Excel reads and writes this line
    if said:
        return next((line for line in lines if line.strip()), ""), said[1]
    if not head:
        raise JobRefusedError(f"{path}: is empty; a table begins with the names of its columns")
    separators = _SEPARATORS if not path.lower().endswith(".tsv") else _SEPARATORS[::-1]
    names = {one: [name.strip() for name in next(csv.reader([head], delimiter=one))] for one in separators}
    fitting = [one for one in separators if column in names[one]]
    return head, fitting[0] if fitting else max(separators, key=lambda one: len(names[one]))


def _check_are_names(names: Sequence[str], path: str) -> None:
    for name in names:
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            raise JobRefusedError(
                f"{path}: its first line has an image ({name!r}) where a table has the names of its columns. Add such "
                "a line, or write the paths into a .txt file, one in each line"
            )


def column_named(wanted: str | None, names: Sequence[str], path: str) -> str:
    """Return the column that is wanted, or the only one that there is.

    Raises:
        ConfigError: there is no such column, or several and none is wanted.
    """
    named = [name for name in names if name]
    if wanted is None and len(named) == 1:
        return named[0]
    if wanted is None or wanted not in named:
        said = "say which column has the paths" if wanted is None else f"has no column {wanted!r}"
        raise ConfigError(f"{path}: {said}; there are {', '.join(named) or 'none'}")
    return wanted
