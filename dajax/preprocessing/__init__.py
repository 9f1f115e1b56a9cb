"""Images to the network's pixels, at sizes that it takes. Nothing in this room imports jax."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.preprocessing.buckets import Buckets as Buckets
    from dajax.preprocessing.buckets import ProcessedImage as ProcessedImage
    from dajax.preprocessing.processor import DepthImageProcessor as DepthImageProcessor
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "buckets": ["Buckets", "ProcessedImage"],
            "processor": ["DepthImageProcessor"],
        },
    )
