"""CSV files to which a run appends rows, and which it cuts back when it continues from an earlier state."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dajax.errors import JobError
from dajax.files import flush_to_disk, replacing


class CsvLog:
    """A CSV file (RFC 4180: a line of names, then lines of values, each ended by CR LF) with one row for each step.

    Rows of steps after `last_step`, which a stopped run may have left, are removed.

    Args:
        path: the file; it is made if it does not exist.
        last_step: the step of the state from which the run continues.

    Raises:
        JobError: the file cannot be written; `write` and `sync` raise it too.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        self._empty = True
        kept = [row for row in read_log(path) if row["step"] <= last_step]
        with self._errors():
            with replacing(path) as file:
                file.write(b"".join(self._encoded(row) for row in kept))
                flush_to_disk(file)
            self._file = path.open("ab", buffering=0)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; the keys of the first row become the header."""
        data = self._encoded(row)
        with self._errors():
            while data:
                data = data[self._file.write(data) :]

    def _encoded(self, row: Mapping[str, float]) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text)
        if self._empty:
            writer.writerow(row)
            self._empty = False
        writer.writerow(int(value) if name == "step" else repr(value) for name, value in row.items())
        return text.getvalue().encode()

    def sync(self) -> None:
        """Wait until all rows are on disk."""
        with self._errors():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JobError(f"{self._path} cannot be written ({error.strerror}); the saved states are whole") from error


class NoLog:
    """Takes the place of a `CsvLog` in all processes but the first, and writes nothing."""

    def write(self, row: Mapping[str, float]) -> None:
        """Write nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def read_log(path: str | os.PathLike[str]) -> Iterator[dict[str, float]]:
    """Yield the rows of log.csv or validation.csv, each as a dict from column to value.

    Nothing is yielded if the file does not exist. An incomplete row, which a killed process leaves at the end, is
    skipped.
    """
    path = Path(path)
    if not path.exists():
        return
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                yield {name: float(value) for name, value in row.items()}
            except (TypeError, ValueError):  # a missing cell is None, and surplus cells are a list
                continue
