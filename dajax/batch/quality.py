"""Figures of a depth map by which pseudo-labels are filtered."""

from __future__ import annotations

import numpy as np

# All figures that there are.
FIGURES = ("mean", "spread", "at_low", "at_high", "flip_disagreement")
# A pixel is at an end of the range if it is nearer to it than this share of the range.
_AT_END = 1e-3


def quality(depth: np.ndarray, max_depth: float | None, flip_disagreement: float | None = None) -> dict[str, float]:
    """Return the quality of a depth map.

    - `mean` and `spread`: mean and standard deviation of its values, in their unit. A spread of nearly 0 is a plane in
      front of the camera, or a failure.
    - `at_low` and `at_high`: the share of its pixels, 0 to 1, that are at the lower and at the upper end of the range,
      within a thousandth of it. The range begins at 0. For metric models it ends at the model's largest depth; relative
      models have no largest value, so there it ends at the largest value of this depth map. Many pixels at an end were
      cut off there: the sky, or a room deeper than the model knows.
    - `flip_disagreement`: see `dajax.inference.confidence.disagreement`, the mean over the pixels; only if it is given.

    Args:
        depth: float32 [height, width], at least 0 everywhere.
        max_depth: the largest depth of a metric model in metres, or None for a relative model.
        flip_disagreement: the mean disagreement with the depth of the mirror image.

    Returns:
        Each figure with six digits.
    """
    values = np.asarray(depth, np.float64)
    end = float(values.max()) if max_depth is None else max_depth
    found = {
        "mean": float(values.mean()),
        "spread": float(values.std()),
        "at_low": float((values <= _AT_END * end).mean()),
        "at_high": float((values >= (1 - _AT_END) * end).mean()),
    }
    if flip_disagreement is not None:
        found["flip_disagreement"] = flip_disagreement
    return {name: float(f"{value:.6g}") for name, value in found.items()}
