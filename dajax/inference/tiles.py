"""High resolution: overlapping parts of an image, each estimated on its own, in the order of the whole.

A network that has seen images of 518 pixels a side says less about large ones the larger they are processed: it loses
the whole from sight. Parts of an image at that size have the detail, but each has a scale and shift of its own, which
also vary within it. So the whole image is estimated as well, and each part's depth is fitted to it, by a line in each
neighbourhood (as in the guided filter: He et al. 2010, section 3): what is coarse comes from the whole, what is fine
from the parts, which are blended where they overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dajax.errors import ConfigError
from dajax.images.read import DecodedImage, read_image
from dajax.resample import resize_linear


@runtime_checkable
class Estimates(Protocol):
    """What tiles need of an estimator."""

    def __call__(self, images: Any, /) -> Any:
        """Return the depth map of an image."""

    def stream(self, images: Iterable[Any], /, *, batch_size: int | None, whole_batches: bool) -> Iterator[np.ndarray]:
        """Yield the depth map of each image, in order."""


# What neighbouring tiles share, of their side.
_OVERLAP = 0.3
# Fits are made on maps of so many values a side, over neighbourhoods of about this part of it.
_GRID = 48
_NEIGHBOURHOOD = 0.045
# How much a neighbourhood's own line counts against that of the whole tile where there is little to fit.
_PRIOR = 0.02
_MOST = 64


def tiled_depth(
    estimator: Estimates, image: Any, tiles: int | tuple[int, int], *, batch_size: int | None = None
) -> np.ndarray:
    """Return the depth of a large image, estimated in overlapping tiles.

    Beside a larger `input_size`, whose memory and time grow with the square of the number of patches, memory stays that
    of one batch of tiles.

    Args:
        estimator: its `input_size` is that of each tile and of the whole.
        image: anything the estimator takes.
        tiles: (rows, columns); or how many along the longer side, the shorter one getting as many as make them square.
        batch_size: instead of the estimator's.

    Returns:
        float32 [height, width] in the image's size, of the estimator's kind (inverse depth, or metres).

    Raises:
        ImageError: the image cannot be read.
        ConfigError: the tiles cannot be used.
    """
    pixels = read_image(image)
    height, width = pixels.shape[:2]
    rows, columns = _counted(tiles, (height, width))
    whole = estimator(DecodedImage(pixels))  # first: what is wrong with the image shows in it
    if (rows, columns) == (1, 1):
        return np.asarray(whole)
    boxes = [(top, left) for top in _spans(height, rows) for left in _spans(width, columns)]

    def parts() -> Iterator[DecodedImage]:
        for (top, bottom), (left, right) in boxes:
            yield DecodedImage(np.ascontiguousarray(pixels[top:bottom, left:right]))

    # Nowhere zero: every pixel has its tiles' mean.
    total, weights = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    fades: dict[tuple[int, int], np.ndarray] = {}
    depths = estimator.stream(parts(), batch_size=batch_size, whole_batches=True)
    for (down, across), depth in zip(boxes, depths, strict=True):
        place = (slice(*down), slice(*across))
        if depth.shape not in fades:
            fades[depth.shape] = np.outer(_fade(depth.shape[0]), _fade(depth.shape[1]))
        fade = fades[depth.shape]
        total[place] += fade * _fitted(depth, whole[place])
        weights[place] += fade
    total /= weights
    return total


def _counted(tiles: int | tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    if isinstance(tiles, int) and not isinstance(tiles, bool):
        longer = max(size)
        counts = (max(round(tiles * size[0] / longer), 1), max(round(tiles * size[1] / longer), 1))
    elif isinstance(tiles, tuple | list) and len(tiles) == 2:
        counts = (tiles[0], tiles[1])
    else:
        raise ConfigError(f"tiles must be a whole number or (rows, columns), got {tiles!r}")
    if (isinstance(tiles, int) and tiles < 1) or not all(isinstance(n, int) and 1 <= n <= _MOST for n in counts):
        raise ConfigError(f"there can be 1 to {_MOST} tiles along a side, got {tiles!r}")
    if any(side / count < 14 for side, count in zip(size, counts, strict=True)):
        raise ConfigError(f"{counts[0]}x{counts[1]} tiles of an image of {size[0]}x{size[1]} would be smaller than 14")
    return counts


def _spans(side: int, count: int) -> list[tuple[int, int]]:
    """Return first and last of `count` equal, overlapping, evenly spaced parts of a side."""
    length = min(round(side / (count - (count - 1) * _OVERLAP)) + 1, side)
    starts = np.rint(np.linspace(0, side - length, count)).astype(int)
    return [(int(start), int(start) + length) for start in starts]


def _fade(side: int) -> np.ndarray:
    """Return the weights along a tile's side: a hill with gentle ends, positive everywhere."""
    return np.asarray(np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 + 1e-4, np.float32)


def _fitted(depth: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return slope * depth + offset, with slopes and offsets that vary slowly and make it `goal` on the whole."""
    size = (min(_GRID, depth.shape[0]), min(_GRID, depth.shape[1]))
    x, y = _averaged(depth, size), _averaged(goal, size)
    spread, common = x.var(), ((x - x.mean()) * (y - y.mean())).mean()
    if not spread > 1e-12 * x.mean() ** 2:
        return goal  # a flat tile has no detail
    slope = max(common / spread, 0.0)
    smooth = _Smoothing(size)
    mean_x, mean_y = smooth(x), smooth(y)
    variance = smooth(x * x) - mean_x**2
    covariance = smooth(x * y) - mean_x * mean_y
    prior = _PRIOR * spread
    slopes = np.clip((covariance + prior * slope) / (variance + prior), 0, 4 * slope)
    # Smoothed once more, as in the guided filter, so that lines of overlapping neighbourhoods agree.
    offsets = smooth(mean_y - slopes * mean_x)
    slopes = smooth(slopes)
    to = (depth.shape[0], depth.shape[1])
    fitted = resize_linear(slopes.astype(np.float32), to) * depth
    fitted += resize_linear(offsets.astype(np.float32), to)
    return np.asarray(fitted, np.float32)


def _averaged(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the means of equal boxes, float64 [*size]."""
    for axis, count in enumerate(size):
        edges = np.linspace(0, depth.shape[axis], count + 1).astype(int)
        depth = np.add.reduceat(depth, edges[:-1], axis=axis, dtype=np.float64)
        depth /= np.expand_dims(np.diff(edges), 1 - axis)
    return depth


class _Smoothing:
    """Means over Gaussian neighbourhoods, which end at the border."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._down, self._across = (_gaussians(count) for count in size)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(self._down @ values @ self._across.T)


def _gaussians(count: int) -> np.ndarray:
    place = np.arange(count) / count
    weights = np.exp(-0.5 * ((place[:, None] - place) / _NEIGHBOURHOOD) ** 2)
    return np.asarray(weights / weights.sum(1, keepdims=True))
