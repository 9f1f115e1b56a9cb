"""Pixels to depth: the network."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.model.depth_anything import DepthAnything as DepthAnything
    from dajax.model.depth_anything import DepthEstimatorOutput as DepthEstimatorOutput
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "depth_anything": ["DepthAnything", "DepthEstimatorOutput"],
        },
    )
