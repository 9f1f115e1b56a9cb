"""Arrays and decoded PIL images of any mode to 8-bit RGB. Nothing is guessed: what is ambiguous is refused."""

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageCms

from dajax.errors import ImageError

Colour = tuple[int, int, int]
ValueRange = tuple[float | int, float | int]

# What EXIF orientation 2 to 8 asks for to show the image upright (Exif 2.32, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def rgb_from_pil(
    image: Image.Image, name: str, background: Colour, value_range: ValueRange | None, orientation: int | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Convert a loaded PIL image to RGB, in the displayed orientation.

    Args:
        image: any mode.
        name: what error messages call the image.
        background: RGB colour on which transparent pixels are laid.
        value_range: (black, white) for modes I and F, see `dajax.images.read.read_image`.
        orientation: EXIF orientation 1 to 8; anything else means 1.

    Returns:
        uint8 [height, width, 3], sRGB as stored (embedded ICC profiles are not applied, as in Transformers).

    Raises:
        ImageError: Mode F without a range, mode I outside 0..65535 without a range.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        grey = _grey_from_wide(values, name, value_range)
        image_rgb = np.repeat(grey[:, :, None], 3, axis=2)
        if isinstance(image.info.get("transparency"), int):
            image_rgb[values == image.info["transparency"]] = background
        image = Image.fromarray(image_rgb)
    elif image.mode == "LAB":
        # Pillow's convert() refuses LAB; the colour management library knows it.
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # only inPlace=True returns None
        image = converted
    elif image.has_transparency_data:
        image = _on_background(image, background)
    image = image.convert("RGB")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return np.array(image)


def _on_background(image: Image.Image, background: Colour) -> Image.Image:
    """Lay an image with transparency on a colour: a plain convert("RGB") would show colours that are hidden."""
    if image.mode == "La":
        image = image.convert("LA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image.convert("RGBA"))


def _grey_from_wide(values: np.ndarray, name: str, value_range: ValueRange | None) -> np.ndarray:
    """PIL modes I;16, I and F to 8 bits: 65535 is white unless `value_range` says otherwise."""
    if value_range is not None:
        return _scaled(values, name, value_range)
    if values.dtype.kind == "f":
        low, high = _finite_extent(values, name)
        raise ImageError(
            f"{name}: a floating-point image (mode F) with values {low:g} to {high:g}; which value is white is not "
            f"written in it. Pass value_range=(black, white), for example value_range=({low:g}, {high:g})."
        )
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name}: an integer image with values {low} to {high}, expected 16 bits (0 to 65535). "
            f"Pass value_range=(black, white)."
        )
    return _from_uint16(values)


def rgb_from_array(
    array: Shaped[np.ndarray, "height width channels"], name: str, background: Colour, value_range: ValueRange | None
) -> UInt8[np.ndarray, "height width 3"]:
    """Convert an array to RGB. The rules are those of `dajax.images.read.read_image`; the array is never changed.

    Args:
        array: what `channels_last` gives.
        name: what error messages call the array.
        background: RGB colour on which transparent pixels of a 4-channel array are laid.
        value_range: (black, white), or None for the dtype's own range.

    Returns:
        uint8 [height, width, 3], a new array.

    Raises:
        ImageError: the dtype or the values are not those of an image.
    """
    if value_range is not None and array.shape[2] == 4:
        raise ImageError(f"{name}: value_range cannot be used with an alpha channel. Pass the array without it.")
    pixels = _to_uint8(array, name, value_range)
    if pixels.shape[2] == 4:
        return np.array(_on_background(Image.fromarray(np.ascontiguousarray(pixels)), background).convert("RGB"))
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.array(pixels, order="C")


def channels_last(array: np.ndarray, name: str, layout: str | None) -> Shaped[np.ndarray, "height width channels"]:
    """View one image as [height, width, channels] with 1, 3 or 4 channels.

    Args:
        array: any array; what is not clearly one image is refused.
        name: what error messages call the array.
        layout: "HW", "HWC", "CHW", or None for HW and HWC.

    Returns:
        A view of the array, any dtype.

    Raises:
        ImageError: the shape is not that of one image, or could be read in two ways.
    """
    if layout not in (None, "HW", "HWC", "CHW"):
        raise ImageError(f"{name}: layout must be 'HW', 'HWC', 'CHW' or None, got {layout!r}")
    if array.ndim == 4:
        raise ImageError(f"{name}: four axes are a batch; pass its images one by one, for example list(array)")
    expected_axes = {None: (2, 3), "HW": (2,), "HWC": (3,), "CHW": (3,)}[layout]
    if array.ndim not in expected_axes:
        raise ImageError(
            f"{name}: expected [height, width], [height, width, 3] or [height, width, 4]"
            + (f" with layout={layout!r}" if layout else "")
            + f", got {array.ndim} axes"
        )
    if array.size == 0:
        raise ImageError(f"{name}: the array is empty (a side is 0)")
    if array.ndim == 2:
        return array[:, :, None]
    if layout == "CHW":
        array = np.moveaxis(array, 0, 2)
    elif layout is None and array.shape[0] == 3 and array.shape[2] in (1, 3, 4):
        raise ImageError(
            f"{name}: the first and the last axis could both be channels. Pass layout='HWC' or layout='CHW'."
        )
    if array.shape[2] not in (1, 3, 4):
        first = layout is None and array.shape[0] in (1, 3, 4)
        raise ImageError(
            f"{name}: expected 1, 3 or 4 channels on the {'first' if layout == 'CHW' else 'last'} axis, "
            f"got {array.shape[2]}." + (" If the first axis is the channels, pass layout='CHW'." if first else "")
        )
    return array


def _to_uint8(array: np.ndarray, name: str, value_range: ValueRange | None) -> np.ndarray:
    """Any accepted dtype to 8 bits, rounding to nearest, so that `uint8 / 255` comes back as it was."""
    kind = array.dtype.kind
    if kind == "b":
        raise ImageError(f"{name}: a boolean mask is not an image. Convert it: array.astype(np.uint8) * 255.")
    if kind not in "uif":
        raise ImageError(
            f"{name}: dtype {array.dtype} is not a pixel type. Convert to uint8 (0 to 255), uint16 (0 to 65535) or "
            f"float32 (0 to 1)."
        )
    if value_range is not None:
        return _scaled(array, name, value_range)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _from_uint16(array)
    if kind != "f":
        raise ImageError(
            f"{name}: dtype {array.dtype} with values {array.min()} to {array.max()}; which value is white is not "
            f"known. Convert with array.astype(np.uint8) if 255 is white, or pass value_range=(black, white)."
        )
    low, high = _finite_extent(array, name)
    if low < 0 or high > 1:
        raise ImageError(
            f"{name}: floating-point pixels must lie within [0, 1], these lie within [{low:g}, {high:g}]. "
            f"Divide by 255 if 255 is white, or pass value_range=(black, white)."
        )
    return np.rint(array.astype(np.promote_types(array.dtype, np.float32), copy=False) * 255).astype(np.uint8)


def _from_uint16(values: np.ndarray) -> np.ndarray:
    """65535 -> 255, rounded to nearest: 65535 / 255 is 257."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _scaled(values: np.ndarray, name: str, value_range: ValueRange) -> np.ndarray:
    """`value_range` to 0..255; what lies outside becomes black or white, as the caller asked by naming those."""
    low, high = (float(bound) for bound in value_range)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ImageError(f"{name}: value_range must be (black, white) with black < white, got {value_range}")
    _finite_extent(values, name)
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _finite_extent(values: np.ndarray, name: str) -> tuple[float, float]:
    """Smallest and largest value; a NaN or infinity is an error that says where it is."""
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ImageError(f"{name}: {values[bad]} at index {list(bad)}; every pixel must be finite")
    return float(low), float(high)
