"""How far a job is: a bar or lines on standard error, and a file that can be read from elsewhere."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from types import TracebackType

from dajax.batch.storage import Storage
from dajax.errors import DajaxError
from dajax.progress import ProgressBar

PROGRESS = ".dajax/progress{suffix}.json"
_EVERY = 5.0


class Progress:
    """Counts finished items.

    Args:
        storage: the output folder; this process's progress file is written there every few seconds.
        total: how many items this process does.
        earlier: how many of them earlier runs have finished.
        show: Show a bar on standard error.
    """

    def __init__(self, storage: Storage, total: int, earlier: int, *, show: bool) -> None:
        self._storage, self._total, self._earlier = storage, total, earlier
        self._done = self._rejected = 0
        self._notes: list[str] = []
        self._began = time.monotonic()
        self._written = -_EVERY
        self._bar = ProgressBar("dajax batch", total, initial=earlier, show=show)

    def __enter__(self) -> Progress:
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        # If the storage has failed, that error is the one to report.
        with suppress(DajaxError) if error else nullcontext():
            self._write(ended=True)

    def advance(self, count: int, rejected: int) -> None:
        """Count finished items, of which `rejected` were left out."""
        self._done += count
        self._rejected += rejected
        self._bar.advance(count)
        if self._rejected:
            self._bar.note(rejected=self._rejected)
        if time.monotonic() - self._written >= _EVERY:
            self._write()

    def say(self, text: str, *, show: bool) -> None:
        """Print a remark, if the job shows how far it is."""
        if show:
            self._bar.say(text)

    def note(self, text: str) -> None:
        """Print and record a remark about the whole job."""
        self._notes.append(text)
        self._bar.say(text)
        self._write()

    def _write(self, ended: bool = False) -> None:
        seconds = time.monotonic() - self._began
        rate = self._done / seconds if seconds > 0 else 0.0
        left = self._total - self._earlier - self._done
        about = {
            "total": self._total,
            "finished": self._earlier + self._done,
            "rejected_in_this_run": self._rejected,
            "images_per_second": round(rate, 3),
            "seconds_left": round(left / rate, 1) if rate else None,
            "running": not ended,
            "notes": self._notes,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        name = PROGRESS.format(suffix=self._storage.suffix)
        self._storage.replace(name, json.dumps(about, indent=2).encode("ascii") + b"\n")
        self._written = time.monotonic()
