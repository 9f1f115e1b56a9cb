"""Depth as an image for people: the coloured map, beside its image, with a bar that says which colour is what."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dajax.depth_maps.colormap import colorize, value_range
from dajax.depth_maps.encode import finite_map
from dajax.errors import ImageError

_GAP = 12  # pixels between the images, white


def side_by_side(
    image: Any, depth: Any, *, cmap: str = "Spectral_r", kind: str = "relative", lo: float | None = None,
    hi: float | None = None,
) -> Image.Image:  # fmt: skip
    """Return the image and, right of it, its coloured depth map.

    Args:
        image: uint8 [height, width, 3].
        depth: [height, width], relative (inverse depth, bigger is nearer) or metric (metres), of the image's size.
        cmap: see `dajax.depth_maps.colormap.colorize`; near has its upper end.
        kind: "relative" or "metric".
        lo: value at one end of the map; the smallest if None.
        hi: value at the other end; the largest if None.

    Raises:
        ImageError: the depth is not a finite map of the image's size, or the colour map is unknown.
    """
    image, colours = np.asarray(image), depth_colors(depth, cmap=cmap, kind=kind, lo=lo, hi=hi)
    if image.dtype != np.uint8 or image.shape != colours.shape:
        raise ImageError(f"image must be uint8 {list(colours.shape)}, got {image.dtype} {list(image.shape)}")
    gap = np.full((image.shape[0], _GAP, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([image, gap, colours], axis=1))


def depth_colors(
    depth: Any, *, cmap: str = "Spectral_r", kind: str = "relative", lo: float | None = None, hi: float | None = None
) -> np.ndarray:
    """Return the coloured map, uint8 [height, width, 3], near at the colour map's upper end; see `side_by_side`."""
    depth = finite_map(depth)
    if kind == "metric":
        return colorize(-depth, cmap, None if hi is None else -hi, None if lo is None else -lo)
    return colorize(depth, cmap, lo, hi)


def with_bar(image: Image.Image, depth: Any, *, cmap: str = "Spectral_r", kind: str = "relative") -> Image.Image:
    """Return the image with a strip below it: the colour map from far to near, and what its ends stand for."""
    low, high = value_range(finite_map(depth))
    far, near = (high, low) if kind == "metric" else (low, high)
    size = max(11, image.width // 60)
    font = ImageFont.load_default(size)
    texts = [f"far {far:.3g}", f"{near:.3g} near"]
    if kind == "metric":
        texts = [f"far {far:.3g} m", f"{near:.3g} m near"]
    bar = max(8, size // 2)
    whole = Image.new("RGB", (image.width, image.height + bar + 2 * size + 6), "white")
    whole.paste(image, (0, 0))
    ramp = colorize(np.linspace(0, 1, image.width, dtype=np.float32)[None], cmap, 0, 1)
    whole.paste(Image.fromarray(np.repeat(ramp, bar, axis=0)), (0, image.height + 4))
    draw = ImageDraw.Draw(whole)
    line = image.height + bar + 6
    draw.text((2, line), texts[0], "black", font)
    draw.text((image.width - 2, line), texts[1], "black", font, anchor="ra")
    return whole


def to_gray8(depth: Any) -> Image.Image:
    """Depth as an 8-bit greyscale image, with the formula of Transformers' depth-estimation pipeline.

    (depth - min) / (max - min) * 255, truncated; a constant map becomes black.

    Args:
        depth: [height, width], relative (near is white) or metric (far is white).

    Returns:
        PIL image of mode L.

    Raises:
        ImageError: the depth is not a finite map.
    """
    depth = finite_map(depth)
    low, high = depth.min(), depth.max()
    if low == high:
        return Image.new("L", (depth.shape[1], depth.shape[0]))
    with np.errstate(over="ignore"):
        span = high - low
    if not np.isfinite(span):  # the map covers more than float32's range
        depth, low, span = depth / 4, low / 4, high / 4 - low / 4
    return Image.fromarray(((depth - low) / span * 255).astype(np.uint8))
