"""Depth of large images in high resolution, from overlapping tiles.

The network was trained on images with sides of 518 pixels. The larger the size at which an image is processed, the less
the network understands the scene as a whole. Tiles that are processed at the trained size keep the detail, but the
depth of each tile has its own scale and shift, which also vary within the tile. Therefore the whole image is estimated
as well, and each tile's depth is fitted to it by a line in each neighbourhood, as in the guided filter (He et al. 2010,
section 3). Coarse structure comes from the whole image and detail from the tiles, which are blended where they overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dajax.errors import ConfigError
from dajax.images.read import DecodedImage, read_image
from dajax.resample import resize_linear


@runtime_checkable
class TileEstimator(Protocol):
    """The part of `dajax.DepthEstimator` that tiles use."""

    def __call__(self, images: Any, /) -> Any:
        """Return the depth map of an image."""

    def stream(self, images: Iterable[Any], /, *, batch_size: int | None, whole_batches: bool) -> Iterator[np.ndarray]:
        """Yield the depth map of each image, in order."""


# The fraction of a tile's side by which neighbouring tiles overlap.
_OVERLAP = 0.3
# Lines are fitted to depth that is averaged to this many values a side, in neighbourhoods of this fraction of the side.
_GRID = 48
_NEIGHBOURHOOD = 0.045
# The weight of the whole tile's line, by which a neighbourhood with little variation is fitted.
_PRIOR = 0.02
_MOST = 64


def tiled_depth(
    estimator: TileEstimator, image: Any, tiles: int | tuple[int, int], *, batch_size: int | None = None
) -> np.ndarray:
    """Return the depth of a large image, estimated in overlapping tiles.

    It takes the memory of one batch of tiles, whereas memory and time of a larger `input_size` grow with the square of
    the number of patches.

    Args:
        estimator: a `dajax.DepthEstimator`. It processes each tile and the whole image at its `input_size`.
        image: any image that the estimator takes.
        tiles: (rows, columns); or the number of tiles along the longer side. Then the number along the shorter side
            makes the tiles about square.
        batch_size: a batch size to use instead of the estimator's.

    Returns:
        The depth map, float32 [height, width] in the image's size: inverse depth or metres, as the estimator returns
        it.

    Raises:
        ImageError: the image cannot be read.
        ConfigError: there cannot be as many tiles.
    """
    pixels = read_image(image)
    height, width = pixels.shape[:2]
    rows, columns = _rows_and_columns(tiles, (height, width))
    whole = estimator(DecodedImage(pixels))  # this comes first because it shows what is wrong with the image
    if (rows, columns) == (1, 1):
        return np.asarray(whole)
    boxes = [(top, left) for top in _spans(height, rows) for left in _spans(width, columns)]

    def parts() -> Iterator[DecodedImage]:
        for (top, bottom), (left, right) in boxes:
            yield DecodedImage(np.ascontiguousarray(pixels[top:bottom, left:right]))

    # The depth of a pixel is the weighted mean over its tiles. No sum of weights is zero.
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


def _rows_and_columns(tiles: int | tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    if isinstance(tiles, int) and not isinstance(tiles, bool):
        longer = max(size)
        counts = (max(round(tiles * size[0] / longer), 1), max(round(tiles * size[1] / longer), 1))
    elif isinstance(tiles, tuple | list) and len(tiles) == 2:
        counts = (tiles[0], tiles[1])
    else:
        raise ConfigError(f"tiles must be a whole number or (rows, columns), got {tiles!r}")
    if (isinstance(tiles, int) and tiles < 1) or not all(isinstance(n, int) and 1 <= n <= _MOST for n in counts):
        raise ConfigError(f"tiles must be 1 to {_MOST} along each side, got {tiles!r}")
    if any(side / count < 14 for side, count in zip(size, counts, strict=True)):
        raise ConfigError(
            f"{counts[0]}x{counts[1]} tiles of an image of {size[0]}x{size[1]} would be smaller than 14 pixels: use "
            "fewer tiles"
        )
    return counts


def _spans(side: int, count: int) -> list[tuple[int, int]]:
    """Return start and end of `count` equal parts of a side, which overlap and are evenly spaced."""
    length = min(round(side / (count - (count - 1) * _OVERLAP)) + 1, side)
    starts = np.rint(np.linspace(0, side - length, count)).astype(int)
    return [(int(start), int(start) + length) for start in starts]


def _fade(side: int) -> np.ndarray:
    """Return the weights along a tile's side: they fall smoothly towards its ends, and are positive everywhere."""
    return np.asarray(np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 + 1e-4, np.float32)


def _fitted(depth: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return slope * depth + offset, with slopes and offsets that vary slowly and bring the depth near to `goal`."""
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
    # They are smoothed once more, as in the guided filter, so that the lines of overlapping neighbourhoods agree.
    offsets = smooth(mean_y - slopes * mean_x)
    slopes = smooth(slopes)
    to = (depth.shape[0], depth.shape[1])
    fitted = resize_linear(slopes.astype(np.float32), to) * depth
    fitted += resize_linear(offsets.astype(np.float32), to)
    return np.asarray(fitted, np.float32)


def _averaged(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the means of equal boxes of the depth, float64 [*size]."""
    for axis, count in enumerate(size):
        edges = np.linspace(0, depth.shape[axis], count + 1).astype(int)
        depth = np.add.reduceat(depth, edges[:-1], axis=axis, dtype=np.float64)
        depth /= np.expand_dims(np.diff(edges), 1 - axis)
    return depth


class _Smoothing:
    """Computes means over Gaussian neighbourhoods, which are cut off at the border."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._down, self._across = (_gaussians(count) for count in size)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(self._down @ values @ self._across.T)


def _gaussians(count: int) -> np.ndarray:
    """Return the weights of the neighbourhood of each place along a side, [place, count]. Each row sums to 1."""
    place = np.arange(count) / count
    weights = np.exp(-0.5 * ((place[:, None] - place) / _NEIGHBOURHOOD) ** 2)
    return np.asarray(weights / weights.sum(1, keepdims=True))
