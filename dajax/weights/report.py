"""Reports what is wrong with a checkpoint in one error that a terminal has room for."""

from __future__ import annotations

from collections.abc import Sequence

from dajax import limits
from dajax.errors import WeightsError


def raise_problems(summary: str, problems: Sequence[str], advice: str = "") -> None:
    """Raise one error that lists the problems, as many as fit; the others are counted. Without problems, do nothing.

    Raises:
        WeightsError: there is at least one problem.
    """
    if not problems:
        return
    # Names come from files: each is shortened and put on one line.
    listed = [repr(line[:500])[1:-1] for line in problems]
    room = limits.MAX_MESSAGE_BYTES - len(f"{summary}{advice}".encode())
    lines: list[str] = []
    for line in listed:
        room -= len(line.encode()) + 3
        if lines and room < 0:
            lines.append(f"… and {len(listed) - len(lines):,} more")
            break
        lines.append(line)
    raise WeightsError("\n  ".join([f"{summary}:", *lines]) + (f"\n{advice}" if advice else ""))


def some_of(names: Sequence[str], most: int = 4) -> str:
    """Return a few names, and how many more there are."""
    listed = ", ".join(repr(name[:100])[1:-1] for name in names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most:,} more"
