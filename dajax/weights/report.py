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
    room = limits.MAX_MESSAGE_LENGTH - len(summary) - len(advice)
    shown, used = 0, 0
    while shown < len(listed) and (shown == 0 or used + len(listed[shown]) + 3 <= room):
        used += len(listed[shown]) + 3
        shown += 1
    lines = listed[:shown]
    if len(listed) > shown:
        lines.append(f"… and {len(listed) - shown:,} more")
    raise WeightsError("\n  ".join([f"{summary}:", *lines]) + (f"\n{advice}" if advice else ""))


def some_of(names: Sequence[str], most: int = 4) -> str:
    """Return a few names, and how many more there are."""
    listed = ", ".join(repr(name[:100])[1:-1] for name in names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most:,} more"
