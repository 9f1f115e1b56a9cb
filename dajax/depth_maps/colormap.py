"""Depth maps in colours, for people to look at."""

from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from dajax.errors import ImageError, missing_extra

# Colours at equal distances, in between which is interpolated.
_ANCHORS = {
    "gray": "000000 ffffff",
    # ColorBrewer's 11-class Spectral (Cynthia Brewer, colorbrewer2.org): within 1 level of 255 of matplotlib's.
    "Spectral": "9e0142 d53e4f f46d43 fdae61 fee08b ffffbf e6f598 abdda4 66c2a5 3288bd 5e4fa2",
    # Samples of inferno (Smith and van der Walt, CC0): within 2.3 levels of 255 of matplotlib's.
    "inferno": "000004 040312 0b0724 150b37 210c4a 2e0a5a 3c0965 4a0c6b 57106d 63146e 70196e 7d1e6d 89226a 962766 "
    "a32b61 af315c bb3755 c63e4d d14644 db4f3b e35932 eb6528 f1711e f67f14 f98d0a fb9c06 fcab0f fbba1f f9ca32 f5d949 "
    "f2e865 f3f586 fcffa4",
    # Samples of turbo (Anton Mikhailov, Google, Apache-2.0): within 2.7 levels of 255 of the published table.
    "turbo": "30123b 392a73 4040a1 4456c7 466be3 467ff6 4293ff 37a7fa 29bbec 1dcdd8 18dcc3 1ee8b0 31f299 4cf97e 6bfd64 "
    "8aff4d a3fd3c b8f735 cced34 dee037 edd03a f8c03a fdae35 fe982c fb8022 f56817 ec520f e04009 d23105 c02302 ac1701 "
    "950d01 7a0403",
}

# How far beyond the bulk of the values an end counts as an outlier, in widths of the bulk.
_OUTLIER = 4.0

# Built-in names; each also exists reversed, with "_r" behind it. Other names are looked up in matplotlib.
COLORMAPS = tuple(name + ending for name in _ANCHORS for ending in ("", "_r"))


def normalize(depth: Any, lo: float | None = None, hi: float | None = None) -> Float32[np.ndarray, "height width"]:
    """Depth to [0, 1]: `lo` becomes 0, `hi` becomes 1, and what is beyond is clipped.

    Args:
        depth: [height, width], relative (inverse depth, bigger is nearer) or metric (metres).
        lo: the smallest finite value if None, see `value_range`.
        hi: the largest finite value if None, see `value_range`.

    Returns:
        float32 [height, width], always finite: a constant map and pixels that are not finite become 0.

    Raises:
        ImageError: the depth is not a map of numbers, or `lo` and `hi` are not finite or in the wrong order.
    """
    values = _as_map(depth)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.float32)
    smallest, largest = value_range(values) if lo is None or hi is None else (lo, hi)
    low, high = float(smallest if lo is None else lo), float(largest if hi is None else hi)
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ImageError(f"lo and hi must be finite with lo <= hi, got {low} and {high}")
    if low == high:
        return np.zeros(values.shape, np.float32)
    # Halved, because the span of float64's extremes is beyond float64.
    scaled = (np.where(finite, values, low) / 2 - low / 2) / (high / 2 - low / 2)
    return np.clip(scaled, 0, 1).astype(np.float32)


def value_range(depth: Any) -> tuple[float, float]:
    """Return the smallest and the largest finite value of a map, (0, 0) if there is none; but no outliers.

    An end that is farther from the 0.1st or 99.9th percentile than four times the distance between these two is an
    outlier: a few pixels would leave one colour to all the others. That percentile is returned instead of it.
    """
    values = _as_map(depth)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    low, high = float(finite.min()), float(finite.max())
    # Every so many of them: what is rare stays rare.
    few = finite[:: max(finite.size // 200_000, 1)]
    first, last = (float(value) for value in np.percentile(few, (0.1, 99.9), method="nearest"))
    reach = _OUTLIER * (last - first)
    if 0 < reach < np.inf:
        low = low if low >= first - reach else first
        high = high if high <= last + reach else last
    return low, high


def colorize(
    depth: Any,
    cmap: str = "Spectral_r",
    lo: float | None = None,
    hi: float | None = None,
    invalid: tuple[int, int, int] = (0, 0, 0),
) -> UInt8[np.ndarray, "height width 3"]:
    """Depth as an RGB image.

    Args:
        depth: [height, width], relative (inverse depth, bigger is nearer) or metric (metres).
        cmap: one of `COLORMAPS`, or the name of a matplotlib map (needs the extra `plots`).
        lo: value at the map's start; the smallest finite one if None.
        hi: value at the map's end; the largest finite one if None.
        invalid: colour of pixels that are not finite.

    Returns:
        uint8 [height, width, 3], in 256 colours, as matplotlib quantises them with `bytes=True`.

    Raises:
        ImageError: as `normalize`; or the colour map is unknown.
    """
    table = _table(cmap)
    values = _as_map(depth)
    levels = np.minimum((normalize(values, lo, hi) * 256).astype(np.int32), 255)
    image = table[levels]
    image[~np.isfinite(values)] = invalid
    return image


def _as_map(depth: Any) -> np.ndarray:
    values = np.asarray(depth)
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "fiu":
        raise ImageError(f"depth must be numbers [height, width], got {values.dtype} {list(values.shape)}")
    return values.astype(np.float64)


def _table(cmap: str) -> np.ndarray:
    """Make the 256 colours of a map, uint8 [256, 3]."""
    if cmap in COLORMAPS:
        anchors = np.array([list(bytes.fromhex(colour)) for colour in _ANCHORS[cmap.removesuffix("_r")].split()]) / 255
        if cmap.endswith("_r"):
            anchors = anchors[::-1]
        positions = np.linspace(0, 1, len(anchors))
        channels = [np.interp(np.linspace(0, 1, 256), positions, anchors[:, channel]) for channel in range(3)]
        return (np.stack(channels, axis=1) * 255).astype(np.uint8)
    try:
        import matplotlib
    except ImportError as error:
        raise ImageError(
            f"colour map {cmap!r} is not built in ({', '.join(COLORMAPS)}). "
            + missing_extra("plots", "Others need matplotlib")
        ) from error
    try:
        return matplotlib.colormaps[cmap](np.linspace(0, 1, 256), bytes=True)[:, :3]
    except KeyError as error:
        raise ImageError(
            f"colour map {cmap!r} is neither built in ({', '.join(COLORMAPS)}) nor matplotlib's"
        ) from error
