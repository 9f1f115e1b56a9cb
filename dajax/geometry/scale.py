"""From relative depth to metres, by a few points whose depth is known."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dajax.errors import ConfigError, ImageError


class Fit(NamedTuple):
    """The scale and shift that make metric depth of inverse depth.

    Attributes:
        scale, shift: 1 / metres = scale * inverse + shift.
        inliers: bool for each point: it took part.
    """

    scale: float
    shift: float
    inliers: np.ndarray

    def metres(self, inverse: Any, *, max_depth: float = math.inf) -> Any:
        """Return the depth of a depth map, see `depth_of_inverse`."""
        return depth_of_inverse(inverse, self.scale, self.shift, max_depth=max_depth)


def depth_of_inverse(inverse: Any, scale: Any, shift: Any, *, max_depth: float = math.inf) -> Any:
    """Return 1 / (scale * inverse + shift), at most `max_depth`: what is zero or negative lies beyond infinity.

    Args:
        inverse: affine-invariant inverse depth, of any shape; numpy or jax.
        scale: from `fit_scale_and_shift`, or known otherwise.
        shift: the same.
        max_depth: what is farther becomes this.
    """
    aligned = scale * inverse + shift
    xp: Any = np
    if not isinstance(aligned, np.ndarray | float | np.floating):
        import jax.numpy as xp
    beyond = aligned * max_depth <= 1 if max_depth < math.inf else aligned <= 0
    return xp.where(beyond, max_depth, 1 / xp.where(beyond, 1, aligned))


def inverse_of_depth(depth: Any) -> Any:
    """Return 1 / depth, and 0 where the depth is infinite."""
    return 1 / depth


def fit_scale_and_shift(
    inverse: np.ndarray,
    pixels: np.ndarray,
    metres: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    ransac: bool = False,
    tolerance: float = 0.05,
    trials: int = 500,
    seed: int = 0,
) -> Fit:
    """Fit a relative depth map to points whose depth is known, from a laser, a marker or structure from motion.

    Least squares in inverse depth, where the relation is linear (MiDaS, Ranftl et al. 2020, arXiv:1907.01341, section
    5). With `ransac` (Fischler and Bolles 1981) lines through two points each are tried, the one that most points agree
    with is kept, and least squares runs over those.

    Args:
        inverse: affine-invariant inverse depth [height, width], bigger is nearer.
        pixels: (column, row) of each point [n, 2]; the middle of the first pixel is (0.5, 0.5). Between pixels the
            depth map is interpolated.
        metres: depth of each point [n].
        weights: of each point [n], at least 0; None: the same.
        ransac: some points may be wrong.
        tolerance: with `ransac`, which difference from its depth, as a share of it, a point may have.
        trials: with `ransac`.
        seed: with `ransac`.

    Raises:
        ImageError: the depth map is not finite [height, width].
        ConfigError: the points do not fit each other or the image; fewer than two are usable; they all have the same
            inverse depth, or the best scale is not positive.
    """
    inverse = np.asarray(inverse, np.float64)
    if inverse.ndim != 2 or not np.isfinite(inverse).all():
        raise ImageError(f"inverse depth must be finite [height, width], got {inverse.dtype} {list(inverse.shape)}")
    pixels, metres = np.asarray(pixels, np.float64), np.asarray(metres, np.float64)
    weights = np.ones(len(metres)) if weights is None else np.asarray(weights, np.float64)
    if metres.ndim != 1 or pixels.shape != (len(metres), 2) or weights.shape != metres.shape:
        raise ConfigError(
            "pixels must be [n, 2], metres [n] and weights [n]; got "
            f"{list(pixels.shape)}, {list(metres.shape)} and {list(weights.shape)}"
        )
    height, width = inverse.shape
    inside = (pixels >= 0).all(-1) & (pixels[:, 0] <= width) & (pixels[:, 1] <= height)
    if not inside.all():
        raise ConfigError(f"{(~inside).sum()} points are outside of the image, such as {pixels[~inside][0]}")
    usable = np.isfinite(metres) & (metres > 0) & np.isfinite(weights) & (weights > 0)
    if usable.sum() < 2:
        raise ConfigError(f"two points of positive depth and weight are needed, got {usable.sum()} of {len(metres)}")
    x, y, w = sampled(inverse, pixels[usable]), 1 / metres[usable], weights[usable]
    chosen = np.ones(len(x), bool)
    if ransac:
        chosen = _consensus(x, y, w, tolerance, trials, seed)
    scale, shift = _line(x[chosen], y[chosen], w[chosen])
    if not scale > 0:
        raise ConfigError(
            f"the best scale is {scale:.3g}: nearer points would be farther in the depth map. Are the depths metres, "
            "and do the points belong to this image?"
        )
    inliers = np.zeros(len(metres), bool)
    inliers[np.flatnonzero(usable)[chosen]] = True
    return Fit(scale, shift, inliers)


def thinned(depth: np.ndarray) -> np.ndarray:
    """Return a few thousand values of a depth map, float64 [n]: they determine scale and shift as well as all do."""
    step = max(int(math.sqrt(depth.size / 4000)), 1)
    return depth[::step, ::step].ravel().astype(np.float64)


def robust_line(values: np.ndarray, goal: np.ndarray, *, with_shift: bool = True) -> tuple[float, float]:
    """Return (scale, shift) that bring scale * values + shift nearest to a goal with fewer errors, such as a mean.

    Least squares, repeated with weights that are smaller the farther off a value is, which comes to least absolute
    differences. The values are explained by the goal, not the goal by the values: explaining by what has errors makes
    scales too small. Values that say nothing of the goal (constant, or the other way around) stay as they are: (1, 0).

    Args:
        values: [n].
        goal: [n].
        with_shift: False: a scale alone.
    """
    weight = np.ones_like(values)
    scale, shift = 1.0, 0.0
    for _ in range(5):
        total = weight.sum()
        mean, mean_goal = (weight @ values / total, weight @ goal / total) if with_shift else (0.0, 0.0)
        spread = float(weight @ (goal - mean_goal) ** 2)
        common = float(weight @ ((goal - mean_goal) * (values - mean)))
        if not (math.isfinite(common) and common > 1e-6 * spread > 1e-18 * total * mean_goal**2):
            return 1.0, 0.0
        scale = spread / common
        shift = float(mean_goal - scale * mean)
        error = np.abs(scale * values + shift - goal)
        weight = 1 / np.maximum(error, 0.3 * np.median(error) + 1e-9 * (1 + np.abs(goal).max()))
    return scale, shift


def _line(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    total = w.sum()
    mean_x, mean_y = (w * x).sum() / total, (w * y).sum() / total
    spread = (w * (x - mean_x) ** 2).sum()
    if spread <= 1e-18 * total * max(np.abs(x).max(), 1e-300) ** 2:
        raise ConfigError(
            "all points have the same inverse depth in the depth map: their depths do not determine its scale"
        )
    scale = (w * (x - mean_x) * (y - mean_y)).sum() / spread
    return float(scale), float(mean_y - scale * mean_x)


def _consensus(x: np.ndarray, y: np.ndarray, w: np.ndarray, tolerance: float, trials: int, seed: int) -> np.ndarray:
    if not 0 < tolerance < math.inf:
        raise ConfigError(f"tolerance must be positive, got {tolerance}")
    if trials < 1:
        raise ConfigError(f"trials must be at least 1, got {trials}")
    rng = np.random.default_rng(seed)
    best, most = np.zeros(len(x), bool), 0.0
    for _ in range(trials):
        first, second = rng.choice(len(x), 2, replace=False)
        if x[first] == x[second]:
            continue
        scale = (y[first] - y[second]) / (x[first] - x[second])
        if not 0 < scale < math.inf:
            continue
        # Of the depths themselves: |1 / predicted - 1 / y| <= tolerance / y.
        predicted = scale * x + (y[first] - scale * x[first])
        agree = (predicted > 0) & (np.abs(y - predicted) <= tolerance * predicted)
        if (agreement := float(w[agree].sum())) > most:
            best, most = agree, agreement
    if best.sum() >= 2:
        # The line of all that agree is better than that of two, and others may agree with it.
        scale, shift = _line(x[best], y[best], w[best])
        predicted = scale * x + shift
        agree = (predicted > 0) & (np.abs(y - predicted) <= tolerance * predicted)
        best = agree if w[agree].sum() >= most else best
    else:
        raise ConfigError(
            f"no two of {len(x)} points agree on a positive scale with a third or each other within {tolerance:.0%}; "
            "allow a larger tolerance, or look at the points"
        )
    return best


def sampled(inverse: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the values at (column, row) places [n, 2] between pixels, [n], interpolated bilinearly.

    Beyond the middle of the outermost pixels their value holds.
    """
    height, width = inverse.shape
    column = np.clip(pixels[:, 0] - 0.5, 0, width - 1)
    row = np.clip(pixels[:, 1] - 0.5, 0, height - 1)
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, down = column - left, row - top
    upper = (1 - across) * inverse[top, left] + across * inverse[top, right]
    lower = (1 - across) * inverse[bottom, left] + across * inverse[bottom, right]
    sampled: np.ndarray = (1 - down) * upper + down * lower
    return sampled
