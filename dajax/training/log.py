"""CSV files that a run appends to, and cuts back when it goes on from an earlier state."""

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
    """Rows with a "step"; those of steps beyond `last_step`, which a stopped run may have left, are taken away.

    `sync` puts on disk what was written before. What cannot be written is a JobError.
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
        """Append a row; the first one's keys are the header."""
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
        """Return when all rows are on disk."""
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
    """What a process has instead of a `CsvLog` where another one writes it."""

    def write(self, row: Mapping[str, float]) -> None:
        """Leave it to the other."""

    def sync(self) -> None:
        """Return at once."""

    def close(self) -> None:
        """Return at once."""


def read_log(path: str | os.PathLike[str]) -> Iterator[dict[str, float]]:
    """Yield the rows of such a file; half a row at the end, of a process that was killed, is passed over."""
    path = Path(path)
    if not path.exists():
        return
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                yield {name: float(value) for name, value in row.items()}
            except (TypeError, ValueError):  # None for a missing cell, a list for those beyond the header
                continue
