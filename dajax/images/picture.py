"""Depth as a picture for people: the coloured map, beside its photo, with a bar that says which colour is what."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dajax.errors import ImageError

from .colormap import colorize, value_range
from .encode import finite_map

_GAP = 12  # pixels between the pictures, white


def side_by_side(
    photo: Any, depth: Any, *, cmap: str = "Spectral_r", kind: str = "relative", lo: float | None = None,
    hi: float | None = None,
) -> Image.Image:  # fmt: skip
    """Return the photo and, right of it, its coloured depth map.

    Args:
        photo: uint8 [height, width, 3].
        depth: [height, width], relative (inverse depth, bigger is nearer) or metric (metres), of the photo's size.
        cmap: see `dajax.images.colormap.colorize`; near has its upper end.
        kind: "relative" or "metric".
        lo: value at one end of the map; the smallest if None.
        hi: value at the other end; the largest if None.

    Raises:
        ImageError: the depth is not a finite map of the photo's size, or the colour map is unknown.
    """
    photo, colours = np.asarray(photo), depth_colors(depth, cmap=cmap, kind=kind, lo=lo, hi=hi)
    if photo.dtype != np.uint8 or photo.shape != colours.shape:
        raise ImageError(f"photo must be uint8 {list(colours.shape)}, got {photo.dtype} {list(photo.shape)}")
    gap = np.full((photo.shape[0], _GAP, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([photo, gap, colours], axis=1))


def depth_colors(
    depth: Any, *, cmap: str = "Spectral_r", kind: str = "relative", lo: float | None = None, hi: float | None = None
) -> np.ndarray:
    """Return the coloured map, uint8 [height, width, 3], near at the colour map's upper end; see `side_by_side`."""
    depth = finite_map(depth)
    if kind == "metric":
        return colorize(-depth, cmap, None if hi is None else -hi, None if lo is None else -lo)
    return colorize(depth, cmap, lo, hi)


def with_bar(picture: Image.Image, depth: Any, *, cmap: str = "Spectral_r", kind: str = "relative") -> Image.Image:
    """Return the picture with a strip below it: the colour map from far to near, and what its ends stand for."""
    low, high = value_range(finite_map(depth))
    far, near = (high, low) if kind == "metric" else (low, high)
    size = max(11, picture.width // 60)
    font = ImageFont.load_default(size)
    texts = [f"far {far:.3g}", f"{near:.3g} near"]
    if kind == "metric":
        texts = [f"far {far:.3g} m", f"{near:.3g} m near"]
    bar = max(8, size // 2)
    whole = Image.new("RGB", (picture.width, picture.height + bar + 2 * size + 6), "white")
    whole.paste(picture, (0, 0))
    ramp = colorize(np.linspace(0, 1, picture.width, dtype=np.float32)[None], cmap, 0, 1)
    whole.paste(Image.fromarray(np.repeat(ramp, bar, axis=0)), (0, picture.height + 4))
    draw = ImageDraw.Draw(whole)
    line = picture.height + bar + 6
    draw.text((2, line), texts[0], "black", font)
    draw.text((picture.width - 2, line), texts[1], "black", font, anchor="ra")
    return whole
