"""Files that dajax wrote, to depth maps."""

import math
import os
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from dajax.depth_maps.encode import PNG16_FORMAT, PREFIX, UNITS
from dajax.errors import ImageError
from dajax.limits import MAX_PIXELS


def read_png16(path: str | os.PathLike[str]) -> tuple[Float32[np.ndarray, "height width"], dict[str, Any]]:
    """Read a depth map that `write_png16` wrote.

    Args:
        path: the file.

    Returns:
        depth: float32 [height, width], within half a step (`metadata["scale"]` / 2) of what was written, besides
            float32's own rounding. In a file with a fixed scale 0 says that there is no value.
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
    entries = {key.removeprefix(PREFIX): str(value) for key, value in text.items() if key.startswith(PREFIX)}
    if entries.pop("format", None) != PNG16_FORMAT or stored.ndim != 2:
        raise ImageError(f"{name}: is not a depth map written by write_png16; its values have no scale and offset")
    try:
        scale, offset = float(entries["scale"]), float(entries["offset"])
        if not (math.isfinite(scale) and math.isfinite(offset)) or entries["kind"] not in UNITS:
            raise ValueError("not finite, or of unknown kind")
    except (KeyError, ValueError) as error:
        raise ImageError(f"{name}: its depth entries are damaged ({error})") from error
    depth = (stored.astype(np.float64) * scale + offset).astype(np.float32)
    return depth, {**entries, "scale": scale, "offset": offset}
