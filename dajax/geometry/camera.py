"""Pinhole cameras: where on an image a point in space is seen.

The middle of pixel [row, column] is at (column + 0.5, row + 0.5). Points are (right, down, ahead) of the camera, in the
unit of the depth. Cameras need not have square pixels, nor their principal point in the middle; lenses do not distort.
"""

from __future__ import annotations

import math
import os
import warnings
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from dajax.errors import ConfigError, ImageError
from dajax.images.read import opened

# Diagonal of the 36 x 24 mm of film that "35 mm equivalent" focal lengths speak of.
_FILM_DIAGONAL = math.hypot(36, 24)
# Degrees from left to right. Lenses that do not distort show at most about 120; a focal length in millimetres that is
# taken for pixels shows 170 and more.
_WIDE = 150


class Intrinsics(NamedTuple):
    """A pinhole camera, in pixels: a point (x, y, z) is seen at (fx x / z + cx, fy y / z + cy).

    Attributes:
        fx, fy: focal lengths.
        cx, cy: principal point, (column, row).
    """

    fx: Any
    fy: Any
    cx: Any
    cy: Any

    @classmethod
    def of_focal_length(cls, size: tuple[int, int], focal: float) -> Intrinsics:
        """Return a camera with square pixels and the principal point in the middle.

        A camera that shows more than 150 degrees from left to right is warned of.

        Args:
            size: (height, width) of the image.
            focal: in pixels.

        Raises:
            ConfigError: the focal length is not positive and finite.
        """
        if not 0 < focal < math.inf:
            raise ConfigError(f"the focal length must be positive and finite, got {focal}")
        degrees = 2 * math.degrees(math.atan(size[1] / 2 / focal))
        if degrees > _WIDE:
            warnings.warn(
                f"this camera shows {degrees:.1f} degrees from left to right: a focal length of {focal:.4g} for a "
                f"width of {size[1]} pixels. The focal length has to be in pixels, not in millimetres",
                stacklevel=2,
            )
        return cls(float(focal), float(focal), size[1] / 2, size[0] / 2)

    @classmethod
    def of_field_of_view(cls, size: tuple[int, int], degrees: float, *, of: str = "width") -> Intrinsics:
        """Return a camera with square pixels that sees so many degrees.

        Args:
            size: (height, width) of the image.
            degrees: over its width, height or diagonal.
            of: "width", "height" or "diagonal".

        Raises:
            ConfigError: the angle is not between 0 and 180 degrees, or `of` is none of the three.
        """
        extents = {"width": size[1], "height": size[0], "diagonal": math.hypot(*size)}
        if of not in extents:
            raise ConfigError(f"of must be one of {', '.join(extents)}, got {of!r}")
        if not 0 < degrees < 180:
            raise ConfigError(f"the field of view must be more than 0 and less than 180 degrees, got {degrees}")
        return cls.of_focal_length(size, extents[of] / 2 / math.tan(math.radians(degrees) / 2))

    @classmethod
    def of_exif(cls, image: str | os.PathLike[str] | Image.Image) -> Intrinsics:
        """Return the camera that an image's EXIF data speaks of, for the image as it is shown.

        By the 35 mm equivalent of the focal length, which relates the diagonals; or by the focal length and the
        resolution of the sensor. Phones write the first. Crops and digital zoom make it wrong.

        Raises:
            ImageError: the file cannot be read, or its EXIF data has no focal length.
        """
        if isinstance(image, Image.Image):
            return _of_exif(image, "the image")
        with opened(image) as file:
            return _of_exif(file, repr(os.fspath(image)))

    def scaled(self, size: tuple[int, int], to: tuple[int, int]) -> Intrinsics:
        """Return the camera of the same image resized from (height, width) `size` to `to`."""
        down, across = to[0] / size[0], to[1] / size[1]
        return Intrinsics(self.fx * across, self.fy * down, self.cx * across, self.cy * down)


def _of_exif(image: Image.Image, name: str) -> Intrinsics:
    exif = image.getexif()
    about = exif.get_ifd(ExifTags.IFD.Exif)
    turned = exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    height, width = (image.width, image.height) if turned else (image.height, image.width)
    equivalent = _positive(about.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if equivalent:
        return Intrinsics.of_focal_length((height, width), equivalent * math.hypot(width, height) / _FILM_DIAGONAL)
    focal = _positive(about.get(ExifTags.Base.FocalLength))
    across = _positive(about.get(ExifTags.Base.FocalPlaneXResolution))
    stored = _positive(about.get(ExifTags.Base.ExifImageWidth)) or image.width
    # Millimetres in the unit of the resolution: 2 is inches, 3 centimetres.
    unit = {2: 25.4, 3: 10.0, 4: 1.0}.get(about.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))
    if focal and across and unit:
        return Intrinsics.of_focal_length((height, width), focal / unit * across * image.width / stored)
    raise ImageError(f"{name}: its EXIF data has no focal length: give focal_length=… or field_of_view=…")


def _positive(value: Any) -> float:
    """Return the number, or 0 where there is none that makes sense."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if 0 < number < math.inf else 0.0
