"""`dajax.show`: depth on the screen, in a notebook or outside of one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageShow

from dajax.depth_maps.panels import depth_colors, side_by_side, with_bar
from dajax.errors import ImageError
from dajax.images.read import read_image

_LARGEST = 1600  # pixels a side of what is shown
_SMALLEST = 480  # pixels across, or nearly: smaller ones are enlarged by a whole number


def show(result: Any, image: Any = None, *, colormap: str = "Spectral_r", kind: str = "relative") -> None:
    """Show a depth map in colours: below the cell of a notebook, else in the desktop's image viewer.

    Args:
        result: what a pipeline or an estimator returns: a dict with "predicted_depth", a map [height, width], or a
            list of either.
        image: what it was made of, to be shown beside it: anything an estimator takes; for a list, as many.
        colormap: see `dajax.depth_maps.colormap.colorize`; near has its upper end.
        kind: "relative" (inverse depth, bigger is nearer) or "metric" (metres).

    Raises:
        ImageError: the result is no finite depth map, the image has another size, or there is nothing to show it with.
    """
    if isinstance(result, list | tuple):
        images = [None] * len(result) if image is None else list(image)
        if len(images) != len(result):
            raise ImageError(f"expected an image for each of {len(result)} results, got {len(images)}")
        for one, beside in zip(result, images, strict=True):
            show(one, beside, colormap=colormap, kind=kind)
        return
    shown = image_to_show(result, image, colormap=colormap, kind=kind)
    if _notebook():
        from IPython.display import display

        display(shown)
    elif not ImageShow.show(shown, title="depth"):
        raise ImageError(
            "there is no notebook and no image viewer to show it in: dajax.depth_maps.write_color saves it"
        )


def image_to_show(
    result: Any, image: Any = None, *, colormap: str = "Spectral_r", kind: str = "relative"
) -> Image.Image:
    """Return the image that `show` shows, no larger than a screen and large enough to see."""
    depth = result["predicted_depth"] if isinstance(result, Mapping) else getattr(result, "predicted_depth", result)
    depth = np.asarray(depth)
    if depth.ndim == 3 and depth.shape[0] == 1:
        depth = depth[0]
    if image is None:
        shown = Image.fromarray(depth_colors(depth, cmap=colormap, kind=kind))
    else:
        shown = side_by_side(read_image(image), depth, cmap=colormap, kind=kind)
    shown.thumbnail((_LARGEST, _LARGEST))
    if (times := _SMALLEST // shown.width) > 1:
        shown = shown.resize((times * shown.width, times * shown.height), Image.Resampling.NEAREST)
    return with_bar(shown, depth, cmap=colormap, kind=kind)


def _notebook() -> bool:
    """Return whether a notebook shows what this process displays; no import of IPython starts one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
