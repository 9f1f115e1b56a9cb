"""Files, bytes, arrays and URLs to images. Nothing in this room imports jax."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.images.find import find_images as find_images
    from dajax.images.image_sources import read_source as read_source
    from dajax.images.read import DecodedImage as DecodedImage
    from dajax.images.read import read_image as read_image
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "find": ["find_images"],
            "image_sources": ["read_source"],
            "read": ["DecodedImage", "read_image"],
        },
    )
