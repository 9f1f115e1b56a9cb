"""Errors of stages, the bounds that they must keep, and how they are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dajax.errors import WeightsError

# By stage.
Outputs = Mapping[str, np.ndarray]

# Largest error that a stage of each kind may have, in deviations of PyTorch's stage.
#
# A number of float32 is off by up to 6e-8 of itself. A sum of K products is K roundings of partial sums that grow to
# the result: 6e-8 * sqrt(K / 6) of its deviation, 6e-7 for a patch (K = 588) and 1.6e-6 for Large's MLP (K = 4096). The
# worst of a million such sums is ten times that; and stages that follow add theirs like the steps of a random walk.
# So 5e-5 for the first two, and 2e-4 behind 12 to 24 layers. The blocks have more because trained transformers have
# single values of hundreds of deviations (Sun et al. 2024, arXiv:2402.17762), whose rounding grows with them; the norm
# at the taps takes them away.
# In metres the sigmoid's slope, up to a quarter of the largest depth, enlarges the last error: 5e-4 for depth.
# Measured with random weights: 6e-6 up to the neck, 1.5e-5 in inverse depth, 7.5e-5 in metres. A tensor at a wrong
# place makes 0.5 and more.
BOUNDS = {
    "patches": 5e-5,
    "embeddings": 5e-5,
    "block": 1e-3,
    "tap": 2e-4,
    "reassembled": 2e-4,
    "lateral": 2e-4,
    "fused": 2e-4,
    "depth": 5e-4,
}
# Where PyTorch computes in float32 its own rounding is compared too: measured, up to five times that of dajax.
FLOAT32_SLACK = 5.0


class StageError(NamedTuple):
    """How far Flax is from PyTorch after one stage.

    Attributes:
        stage: such as "block 3", counted from 0 as in the paths of params.
        shape: of PyTorch's output, channels last.
        max_error, mean_error: of the absolute difference, in deviations of PyTorch's output.
        bound: that `max_error` must not exceed.
    """

    stage: str
    shape: tuple[int, ...]
    max_error: float
    mean_error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its bound; NaN is not."""
        return self.max_error <= self.bound


def compare(stages: Sequence[str], found: Outputs, expected: Outputs, slack: float = 1.0) -> list[StageError]:
    """Return the errors of `found` from `expected`, stage by stage.

    Args:
        stages: their names, in the order in which they are computed.
        found: what Flax has computed, by stage.
        expected: what PyTorch has computed, by stage.
        slack: by what all bounds are multiplied.

    Raises:
        WeightsError: a stage has another shape on the two sides.
    """
    rows = []
    for stage in stages:
        mine, theirs = found[stage], expected[stage]
        bound = slack * BOUNDS[stage.split()[0]]
        if mine.shape != theirs.shape:
            raise WeightsError(f"{stage} has shape {list(mine.shape)} in Flax and {list(theirs.shape)} in PyTorch")
        with np.errstate(all="ignore"):  # a flat stage would agree with anything: dividing by 0 makes it fail
            difference = np.abs(mine - theirs) / theirs.std(dtype=np.float64)
        rows.append(StageError(stage, theirs.shape, float(difference.max()), float(difference.mean()), bound))
    return rows


def first_failure(rows: Sequence[StageError]) -> StageError | None:
    """Return the first stage over its bound: those after it have inherited its error."""
    return next((row for row in rows if not row.passed), None)


def table(rows: Sequence[StageError]) -> str:
    """Return the rows as text, and the verdict."""
    lines = [f"{'stage':15}{'shape':18}{'max error':>10}{'mean error':>12}{'bound':>9}"]
    lines += [
        f"{row.stage:15}{'x'.join(map(str, row.shape)):18}{row.max_error:10.1e}{row.mean_error:12.1e}{row.bound:9.0e}"
        f"{'' if row.passed else '  OVER'}"
        for row in rows
    ]
    if failure := first_failure(rows):
        lines.append(f"FAILED: {failure.stage} is the first stage over its bound")
    else:
        worst = max(rows, key=lambda row: row.max_error / row.bound)
        lines.append(
            f"all {len(rows)} stages are within their bounds; nearest to its own is {worst.stage}, "
            f"at {worst.max_error / worst.bound:.0%}"
        )
    return "\n".join(lines)
