"""`dajax.show`: depth on the screen, in a notebook or outside of one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageShow

from dajax.errors import ImageError
from dajax.images.picture import depth_colors, side_by_side, with_bar
from dajax.images.read import read_image

_LARGEST = 1600  # pixels a side of what is shown
_SMALLEST = 480  # pixels across, or nearly: smaller ones are enlarged by a whole number


def show(result: Any, photo: Any = None, *, colormap: str = "Spectral_r", kind: str = "relative") -> None:
    """Show a depth map in colours: below the cell of a notebook, else in the desktop's picture viewer.

    Args:
        result: what a pipeline or an estimator returns: a dict with "predicted_depth", a map [height, width], or a
            list of either.
        photo: what it was made of, to be shown beside it: anything an estimator takes; for a list, as many.
        colormap: see `dajax.images.colormap.colorize`; near has its upper end.
        kind: "relative" (inverse depth, bigger is nearer) or "metric" (metres).

    Raises:
        ImageError: the result is no finite depth map, the photo has another size, or there is nothing to show it with.
    """
    if isinstance(result, list | tuple):
        photos = [None] * len(result) if photo is None else list(photo)
        if len(photos) != len(result):
            raise ImageError(f"expected a photo for each of {len(result)} results, got {len(photos)}")
        for one, beside in zip(result, photos, strict=True):
            show(one, beside, colormap=colormap, kind=kind)
        return
    picture = picture_of(result, photo, colormap=colormap, kind=kind)
    if _notebook():
        from IPython.display import display

        display(picture)
    elif not ImageShow.show(picture, title="depth"):
        raise ImageError("there is no notebook and no picture viewer to show it in: dajax.images.write saves it")


def picture_of(result: Any, photo: Any = None, *, colormap: str = "Spectral_r", kind: str = "relative") -> Image.Image:
    """Return the picture that `show` shows, no larger than a screen and large enough to see."""
    depth = result["predicted_depth"] if isinstance(result, Mapping) else getattr(result, "predicted_depth", result)
    depth = np.asarray(depth)
    if depth.ndim == 3 and depth.shape[0] == 1:
        depth = depth[0]
    if photo is None:
        picture = Image.fromarray(depth_colors(depth, cmap=colormap, kind=kind))
    else:
        picture = side_by_side(read_image(photo), depth, cmap=colormap, kind=kind)
    picture.thumbnail((_LARGEST, _LARGEST))
    if (times := _SMALLEST // picture.width) > 1:
        picture = picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    return with_bar(picture, depth, cmap=colormap, kind=kind)


def _notebook() -> bool:
    """Return whether a notebook shows what this process displays; no import of IPython starts one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
