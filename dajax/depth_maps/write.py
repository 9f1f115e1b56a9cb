"""Depth maps to files. A file appears whole or not at all, and values that are not finite never do."""

import os
import warnings
from pathlib import Path
from typing import Any

from dajax.depth_maps import encode
from dajax.errors import ImageError
from dajax.files import write_atomically


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


def write_png16(
    path: str | os.PathLike[str],
    depth: Any,
    *,
    kind: str,
    model: str = "",
    style: str = "",
    scale: float | None = None,
) -> None:
    """Write a depth map as a 16-bit greyscale PNG from which `read_png16` gets the values back.

    Without `scale` the map's own smallest and largest value become 0 and 65535, for relative and for metric depth
    alike, so the step is (max - min) / 65535 and differs from file to file: values are stored * scale + offset. Scale,
    offset, kind, units, model, style and dajax version are text entries of the PNG, named `dajax.*`.

    With `scale` values are stored * scale, as tools for RGB-D data expect: 0.001 gives millimetres, 0.0002 the files of
    the TUM RGB-D benchmark. There 0 means that there is no value. Values that round to 0 or less, or to more than
    65535 steps, are stored as 0, and a warning says how many.

    Args:
        path: the file to write.
        depth: [height, width], relative (inverse depth, bigger is nearer) or metric (metres).
        kind: "relative" or "metric".
        model: name of the model that made the map.
        style: "huggingface" or "official", of the preprocessing.
        scale: the metres of a step, for metric depth; None: a scale and an offset of this map's own.

    Raises:
        ImageError: the depth is not a finite map, the kind is unknown, or the file cannot be written.
        ConfigError: the scale is not positive, or the depth is relative.
    """
    data = encode.png16(depth, encode.described(kind, model, style), scale)
    write_atomically(path, data, error=ImageError)
    for note in () if scale is None else encode.misfits(depth, scale):
        warnings.warn(f"{os.fspath(path)!r}: {note}", stacklevel=2)


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
