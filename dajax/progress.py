"""How far a long piece of work is: a bar in a terminal, and elsewhere (a pipe, a log) a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

# Seconds between two lines where no terminal shows a bar.
LINE_EVERY_S = 10.0


class ProgressBar:
    """Counts finished pieces of work and shows the count on standard error.

    Args:
        name: the command that works, such as "dajax predict"; each line begins with it.
        total: how many pieces there are; None if that is not known.
        initial: how many of them earlier runs have finished.
        unit: the name of one piece.
        show: False shows neither bar nor lines of the count.
    """

    def __init__(
        self, name: str, total: int | None, *, initial: int = 0, unit: str = "image", show: bool = True
    ) -> None:
        self._name, self._unit = name, unit
        self._total, self._initial, self._done = total, initial, 0
        self._shown = show and sys.stderr is not None
        self._began = self._said = time.monotonic()
        self._notes: dict[str, Any] = {}
        self._bar: Any = None
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=initial, unit=unit)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, total: int | None) -> None:
        """Start to count, now that the total is known; None if it is not."""
        self._total, self._done = total, 0
        self._began = self._said = time.monotonic()
        if self._bar is not None:
            self._bar.reset(total)

    def advance(self, count: int = 1) -> None:
        """Count finished pieces."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown and time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def note(self, **notes: Any) -> None:
        """Set what is shown beside the count, such as loss="0.12"."""
        self._notes = notes
        if self._bar is not None:
            self._bar.set_postfix(notes, refresh=False)

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(f"{self._name}: {text}", file=sys.stderr)
        elif sys.stderr is not None:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()

    def _line(self) -> str:
        finished = self._initial + self._done
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        count = f"{finished} {self._unit}s" if not self._total else f"{finished} of {self._total} {self._unit}s"
        parts = [count, f"{rate:.3g} a second"]
        if self._total and rate:
            parts.append(f"about {_duration((self._total - finished) / rate)} left")
        parts += [f"{name} {value}" for name, value in self._notes.items()]
        return f"{self._name}: {', '.join(parts)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
