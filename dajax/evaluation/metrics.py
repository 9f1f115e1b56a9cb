"""The standard metrics of depth maps, for one image at a time, computed in float64 for inputs of any dtype.

A pixel is valid where the mask is True and the target is finite and positive. The metrics of an image without valid
pixels are NaN, its count is 0, and averages leave it out; this is not an error, because datasets have such images.
Predictions must be usable at every valid pixel: if unusable ones were left out, the score would get better.

The crop, the cap and the split of an evaluation can change results several times over. Nothing here chooses them: the
mask of the caller is the crop, and `max_depth` is the cap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dajax.errors import ConfigError, ImageError
from dajax.losses import scale_and_shift


class DepthMetrics(NamedTuple):
    """Metrics of a predicted depth map p and the true depth map t, both in metres, over the valid pixels.

    Attributes:
        abs_rel: mean of `|p - t| / t`.
        sq_rel: mean of (p - t)^2 / t, in metres.
        rmse: root of the mean of (p - t)^2, in metres.
        rmse_log: root of the mean of g^2, with g = log p - log t.
        log10: mean of `|log10 p - log10 t|`.
        silog: 100 times the standard deviation of g, as in KITTI's benchmark. (The evaluation code of Depth
            Anything V2 uses this name for sqrt(mean(g^2) - mean(g)^2 / 2): sqrt((rmse_log^2 + (silog / 100)^2) / 2).)
        delta1: fraction of pixels where max(p / t, t / p) < 1.25.
        delta2: the same for 1.25^2.
        delta3: the same for 1.25^3.
        valid_pixels: the number of valid pixels.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    log10: float
    silog: float
    delta1: float
    delta2: float
    delta3: float
    valid_pixels: int


_METRICS = len(DepthMetrics._fields) - 1


class AverageMetrics(NamedTuple):
    """What `average_metrics` returns.

    Attributes:
        mean: the mean of each metric over images; `valid_pixels` is the sum.
        images: the number of images in the mean.
        empty_images: the number of images that have no valid pixel and are not in the mean.
    """

    mean: DepthMetrics
    images: int
    empty_images: int


class OrdinalAccuracy(NamedTuple):
    """What `ordinal_accuracy` returns.

    Attributes:
        accuracy: the fraction of pairs in the right order; NaN if there are no pairs.
        pairs: the number of pairs that count.
    """

    accuracy: float
    pairs: int


def depth_metrics(prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None) -> DepthMetrics:
    """Return the metrics of one predicted depth map.

    Args:
        prediction: depth [height, width] in metres, positive at every valid pixel: the output of a metric model, or of
            `align_inverse_depth` for a relative one. Most protocols clip it to their range of depths first.
        target: true depth [height, width] in metres; a value that is not finite or not positive means no depth.
        mask: bool [height, width], the pixels that count; None: all.

    Raises:
        ImageError: the arrays are not of one shape [height, width], the mask is not bool, or a prediction is not finite
            or not positive at a valid pixel.
    """
    prediction, target, valid = _checked(prediction, target, mask)
    _check_prediction(prediction, valid, positive=True)
    p, t = prediction[valid], target[valid]
    if not t.size:
        return DepthMetrics._make([*[math.nan] * _METRICS, 0])
    error = p - t
    g = np.log(p) - np.log(t)
    ratio = np.maximum(p / t, t / p)
    return DepthMetrics(
        abs_rel=float(np.mean(np.abs(error) / t)),
        sq_rel=float(np.mean(error**2 / t)),
        rmse=float(np.sqrt(np.mean(error**2))),
        rmse_log=float(np.sqrt(np.mean(g**2))),
        log10=float(np.mean(np.abs(g)) / math.log(10)),
        silog=float(100 * np.std(g)),
        delta1=float(np.mean(ratio < 1.25)),
        delta2=float(np.mean(ratio < 1.25**2)),
        delta3=float(np.mean(ratio < 1.25**3)),
        valid_pixels=t.size,
    )


def average_metrics(per_image: Iterable[DepthMetrics]) -> AverageMetrics:
    """Return the mean of the images' metrics: every image counts the same, however many valid pixels it has.

    The published numbers of MiDaS and Depth Anything are made in this way. In particular, their RMSE is the mean of
    roots, not the root of a mean. If no image has valid pixels, the mean is NaN.

    Args:
        per_image: the metrics of each image, from `depth_metrics`; any iterable.
    """
    rows = list(per_image)
    counted = [row for row in rows if row.valid_pixels]
    means = [math.fsum(row[i] for row in counted) / len(counted) if counted else math.nan for i in range(_METRICS)]
    pixels = sum(row.valid_pixels for row in counted)
    return AverageMetrics(DepthMetrics._make([*means, pixels]), len(counted), len(rows) - len(counted))


def align_inverse_depth(
    prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None, *, max_depth: float
) -> np.ndarray:
    """Return the depth map in metres that the output of a relative model gives with the best scale and shift.

    Scale and shift are fitted to the true inverse depth over all valid pixels, by least squares. The depth is one over
    the result, but at most `max_depth`. Aligned values that are zero or negative lie beyond infinity: they become
    `max_depth` too. This is the protocol of MiDaS (Ranftl et al. 2020, arXiv:1907.01341, section 6).

    The fit uses the truth of each image, so such numbers are comparable only with others that were made in this way. A
    prediction that is constant, or has fewer than two valid pixels, becomes the constant depth map that fits best.

    Args:
        prediction: affine-invariant inverse depth [height, width], bigger is nearer, finite at every valid pixel.
        target: true depth [height, width] in metres; a value that is not finite or not positive means no depth.
        mask: bool [height, width], the pixels that count; None: all. Protocols leave depths beyond their cap out.
        max_depth: the protocol's cap, in metres.

    Returns:
        float64 [height, width]. NaN where the prediction is not finite, and everywhere if there is no valid pixel.

    Raises:
        ImageError: the arrays are not of one shape [height, width], the mask is not bool, or a prediction is not finite
            at a valid pixel.
        ConfigError: `max_depth` is not positive and finite.
    """
    if not 0 < max_depth < math.inf:
        raise ConfigError(f"max_depth is the protocol's cap in metres, positive and finite; got {max_depth}")
    prediction, target, valid = _checked(prediction, target, mask)
    _check_prediction(prediction, valid, positive=False)
    if not valid.any():
        return np.full(prediction.shape, np.nan)
    inverse = 1 / np.where(valid, target, 1)
    scale, shift = scale_and_shift(prediction[None], inverse[None], valid[None])
    aligned = scale[0] * np.where(np.isfinite(prediction), prediction, np.nan) + shift[0]
    beyond = aligned <= 1 / max_depth
    return np.where(beyond, max_depth, 1 / np.where(beyond, 1, aligned))


def ordinal_accuracy(
    prediction: ArrayLike,
    target: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    ratio: float = 1.1,
    pairs: int = 20_000,
    seed: int = 0,
    nearer: str = "bigger",
) -> OrdinalAccuracy:
    """Return how often the prediction says correctly which of two pixels is nearer.

    numpy's default generator draws `pairs` pairs of valid pixels from `seed`, uniformly and with replacement. Pairs
    whose true depths differ by more than the factor `ratio` count. Equal predictions are wrong. Nothing is aligned.

    Args:
        prediction: depth or inverse depth [height, width], in any unit, finite at every valid pixel.
        target: true depth [height, width] in metres; a value that is not finite or not positive means no depth.
        mask: bool [height, width], the pixels that count; None: all.
        ratio: the factor by which the depths of a pair that counts differ, at least 1.
        pairs: the number of pairs that are drawn, at least 1; not all of them count.
        seed: the seed of the generator.
        nearer: "bigger" for inverse depth (relative models), "smaller" for depth.

    Raises:
        ImageError: the arrays are not of one shape [height, width], the mask is not bool, or a prediction is not finite
            at a valid pixel.
        ConfigError: `ratio`, `pairs` or `nearer` is out of its bounds.
    """
    if not 1 <= ratio < math.inf:
        raise ConfigError(f"ratio is the factor between the depths of a pair, at least 1; got {ratio}")
    if pairs < 1:
        raise ConfigError(f"pairs must be at least 1, got {pairs}")
    if nearer not in ("bigger", "smaller"):
        raise ConfigError(f'nearer must be "bigger" (inverse depth) or "smaller" (depth), got {nearer!r}')
    prediction, target, valid = _checked(prediction, target, mask)
    _check_prediction(prediction, valid, positive=False)
    p, t = prediction[valid], target[valid]
    if not t.size:
        return OrdinalAccuracy(math.nan, 0)
    first, second = np.random.default_rng(seed).integers(t.size, size=(2, pairs))
    apart = np.maximum(t[first], t[second]) > ratio * np.minimum(t[first], t[second])
    first, second = first[apart], second[apart]
    if not first.size:
        return OrdinalAccuracy(math.nan, 0)
    first_is_nearer = p[first] > p[second] if nearer == "bigger" else p[first] < p[second]
    right = (first_is_nearer == (t[first] < t[second])) & (p[first] != p[second])
    return OrdinalAccuracy(float(np.mean(right)), int(first.size))


def _checked(
    prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return prediction and target in float64, and the mask of valid pixels."""
    prediction, target = np.asarray(prediction), np.asarray(target)
    mask = np.ones(target.shape, bool) if mask is None else np.asarray(mask)
    if prediction.ndim != 2 or not prediction.shape == target.shape == mask.shape:
        raise ImageError(
            "prediction, target and mask must be of one shape [height, width], one image at a time; got "
            f"{prediction.shape}, {target.shape} and {mask.shape}. Resize the prediction to the target, or take a "
            "depth map out of its batch"
        )
    if mask.dtype != bool:
        raise ImageError(f"mask must be bool, got {mask.dtype}; pass a comparison, such as mask > 0")
    for name, depth in (("prediction", prediction), ("target", target)):
        if not (np.issubdtype(depth.dtype, np.integer) or np.can_cast(depth.dtype, np.float64)):
            raise ImageError(f"{name} must hold real numbers, got {depth.dtype}")
    prediction, target = prediction.astype(np.float64), target.astype(np.float64)
    return prediction, target, mask & np.isfinite(target) & (target > 0)


def _check_prediction(prediction: np.ndarray, valid: np.ndarray, *, positive: bool) -> None:
    bad = valid & ~(np.isfinite(prediction) & (prediction > 0) if positive else np.isfinite(prediction))
    if not bad.any():
        return
    row, column = (int(index[0]) for index in np.nonzero(bad))
    raise ImageError(
        f"prediction must be {'positive and finite' if positive else 'finite'} at every valid pixel; at {bad.sum()} of "
        f"{valid.sum()} it is not, the first being {prediction[row, column]} at row {row}, column {column}"
        + (
            ". Align the output of a relative model first, or clip to the range of depths of the protocol"
            if positive
            else ""
        )
    )
