"""Depth maps to files and images. A file appears whole or not at all, and values that are not finite never do."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from dajax.depth_maps import encode
from dajax.errors import ImageError
from dajax.files import write_atomically
from dajax.limits import MAX_PIXELS


def write_color(
    path: str | os.PathLike[str], depth: Any, cmap: str = "Spectral_r", lo: float | None = None, hi: float | None = None
) -> None:
    """Write a depth map as a colour image, for people to look at. Absolute values are lost.

    Args:
        path: a .png, .jpg or .webp file.
        depth: [height, width], relative (inverse depth, bigger is nearer) or metric (metres).
        cmap: name of a colour map, see `dajax.depth_maps.colormap`.
        lo: value at the map's start; the smallest if None.
        hi: value at the map's end; the largest if None.

    Raises:
        ImageError: the depth is not a finite map, the suffix is unknown, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in encode.COLOUR_FORMATS:
        raise ImageError(f"{os.fspath(path)!r}: the suffix must be one of {', '.join(encode.COLOUR_FORMATS)}")
    data = encode.color(depth, cmap, lo, hi, suffix=suffix)
    write_atomically(path, data, error=ImageError)


def write_png16(path: str | os.PathLike[str], depth: Any, *, kind: str, model: str = "", style: str = "") -> None:
    """Write a depth map as a 16-bit greyscale PNG from which `read_png16` gets the values back.

    The map's own smallest and largest value become 0 and 65535, for relative and for metric depth alike, so the step is
    (max - min) / 65535 and differs from file to file: values are stored * scale + offset. Scale, offset, kind, units,
    model, style and dajax version are text entries of the PNG, named `dajax.*`.

    Args:
        path: the file to write.
        depth: [height, width], relative (inverse depth, bigger is nearer) or metric (metres).
        kind: "relative" or "metric".
        model: name of the model that made the map.
        style: "huggingface" or "official", of the preprocessing.

    Raises:
        ImageError: the depth is not a finite map, the kind is unknown, or the file cannot be written.
    """
    data = encode.png16(depth, encode.described(kind, model, style))
    write_atomically(path, data, error=ImageError)


def read_png16(path: str | os.PathLike[str]) -> tuple[Float32[np.ndarray, "height width"], dict[str, Any]]:
    """Read a depth map that `write_png16` wrote.

    Args:
        path: the file.

    Returns:
        depth: float32 [height, width], within half a step (`metadata["scale"]` / 2) of what was written, besides
            float32's own rounding.
        metadata: "scale" and "offset" as floats; "kind" ("relative" or "metric"), "units", "model", "version", and
            "style" where it was known.

    Raises:
        ImageError: the file cannot be read, is too large, or is not such a PNG (any other PNG has no depth values).
    """
    name = repr(os.fspath(path))
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels")
            stored = np.asarray(image)
            text = getattr(image, "text", {})
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ImageError(f"{name}: cannot be read as a PNG ({type(error).__name__}: {error})") from error
    prefix = encode.PREFIX
    entries = {key.removeprefix(prefix): str(value) for key, value in text.items() if key.startswith(prefix)}
    if entries.pop("format", None) != encode.PNG16_FORMAT or stored.ndim != 2:
        raise ImageError(f"{name}: is not a depth map written by write_png16; its values have no scale and offset")
    try:
        scale, offset = float(entries["scale"]), float(entries["offset"])
        if not (math.isfinite(scale) and math.isfinite(offset)) or entries["kind"] not in encode.UNITS:
            raise ValueError("not finite, or of unknown kind")
    except (KeyError, ValueError) as error:
        raise ImageError(f"{name}: its depth entries are damaged ({error})") from error
    depth = (stored.astype(np.float64) * scale + offset).astype(np.float32)
    return depth, {**entries, "scale": scale, "offset": offset}


def write_npy(path: str | os.PathLike[str], depth: Any) -> None:
    """Write a depth map as a float32 .npy file; nothing in it says whether it is relative or metric.

    Args:
        path: the file to write; no suffix is added.
        depth: [height, width], relative (inverse depth, bigger is nearer) or metric (metres).

    Raises:
        ImageError: the depth is not a finite map, or the file cannot be written.
    """
    data = encode.npy(depth)
    write_atomically(path, data, error=ImageError)


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
    depth = encode.finite_map(depth)
    low, high = depth.min(), depth.max()
    if low == high:
        return Image.new("L", (depth.shape[1], depth.shape[0]))
    with np.errstate(over="ignore"):
        span = high - low
    if not np.isfinite(span):  # the map covers more than float32's range
        depth, low, span = depth / 4, low / 4, high / 4 - low / 4
    return Image.fromarray(((depth - low) / span * 255).astype(np.uint8))
