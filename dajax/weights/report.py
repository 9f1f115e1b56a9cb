"""Reports all problems of a checkpoint in one error."""

from __future__ import annotations

from collections.abc import Sequence

from dajax import limits
from dajax.errors import WeightsError


def raise_problems(summary: str, problems: Sequence[str], advice: str = "") -> None:
    """Raise one error that lists all problems. Without problems, do nothing.

    Raises:
        WeightsError: there is at least one problem.
    """
    if not problems:
        return
    # Names come from files: each is shortened and put on one line.
    listed = [repr(line[:500])[1:-1] for line in problems[: limits.MAX_LISTED_PROBLEMS]]
    if len(problems) > len(listed):
        listed.append(f"… and {len(problems) - len(listed):,} more")
    raise WeightsError("\n  ".join([f"{summary}:", *listed]) + (f"\n{advice}" if advice else ""))
