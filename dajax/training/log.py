"""CSV files that a run appends to, and cuts back when it goes on from an earlier state."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


class CsvLog:
    """Rows with a "step"; those of steps beyond `last_step`, which a stopped run may have left, are taken away.

    `sync` puts on disk what was written before.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        kept = [row for row in read_rows(path) if row["step"] <= last_step]
        temporary = path.with_suffix(".tmp")
        self._file = temporary.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._empty = True
        for row in kept:
            self.write(row)
        self.sync()
        temporary.replace(path)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; the first one's keys are the header."""
        if self._empty:
            self._writer.writerow(row)
            self._empty = False
        self._writer.writerow(int(value) if name == "step" else repr(value) for name, value in row.items())
        self._file.flush()  # for those who look on

    def sync(self) -> None:
        """Return when all rows are on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._file.close()


def read_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, float]]:
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
