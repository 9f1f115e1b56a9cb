"""Depth maps to files and colours, and back. Nothing in this room imports jax."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.depth_maps.colormap import COLORMAPS as COLORMAPS
    from dajax.depth_maps.colormap import colorize as colorize
    from dajax.depth_maps.colormap import normalize as normalize
    from dajax.depth_maps.colormap import value_range as value_range
    from dajax.depth_maps.display import show as show
    from dajax.depth_maps.encode import encoded as encoded
    from dajax.depth_maps.panels import depth_colors as depth_colors
    from dajax.depth_maps.panels import side_by_side as side_by_side
    from dajax.depth_maps.panels import to_gray8 as to_gray8
    from dajax.depth_maps.panels import with_bar as with_bar
    from dajax.depth_maps.read_back import read_png16 as read_png16
    from dajax.depth_maps.write import write_color as write_color
    from dajax.depth_maps.write import write_npy as write_npy
    from dajax.depth_maps.write import write_png16 as write_png16
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "colormap": ["COLORMAPS", "colorize", "normalize", "value_range"],
            "display": ["show"],
            "encode": ["encoded"],
            "panels": ["depth_colors", "side_by_side", "to_gray8", "with_bar"],
            "read_back": ["read_png16"],
            "write": ["write_color", "write_npy", "write_png16"],
        },
    )
