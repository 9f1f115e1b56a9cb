"""Arrays and decoded PIL images of any mode to 8-bit RGB. Nothing is guessed: what is ambiguous is refused.

Images are converted a few rows at a time, so that what is in between takes no memory to speak of.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageCms

from dajax.errors import ImageError

Colour = tuple[int, int, int]
ValueRange = tuple[float | int, float | int] | Literal["auto"]
# Pixels that are converted at once, and values: some megabytes of floating point.
_PIXELS_AT_ONCE = 1 << 18
# Whoever puts 14 bits or fewer into files of 16 uses 64 of 256 greys at most. Few images are so dim on purpose.
_NARROW = 64

# What EXIF orientation 2 to 8 asks for to show the image upright (Exif 2.32, tag 0x0112): the upright array, seen as
# the stored one.
_AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def rgb_from_pil(
    image: Image.Image,
    name: str,
    background: Colour,
    value_range: ValueRange | None,
    notes: list[str],
    orientation: int | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Convert a loaded PIL image to RGB, in the displayed orientation.

    Args:
        image: any mode.
        name: what error messages call the image.
        background: RGB colour on which transparent pixels are laid.
        value_range: (black, white) or "auto" for modes I and F, see `dajax.images.read.read_image`.
        notes: what is to be said about the image is put here.
        orientation: EXIF orientation 1 to 8; anything else means 1.

    Returns:
        uint8 [height, width, 3], sRGB as stored (embedded ICC profiles are not applied, as in Transformers).

    Raises:
        ImageError: Mode F without a range, mode I outside 0..65535 without a range.
    """
    width, height = image.size
    is_turned = orientation in (5, 6, 7, 8)
    pixels = np.empty((width, height, 3) if is_turned else (height, width, 3), np.uint8)
    stored = _AS_STORED.get(orientation or 1, lambda upright: upright)(pixels)
    is_wide = image.mode == "F" or image.mode.startswith("I")
    levels = _levels_of_wide(image, name, value_range, notes) if is_wide else None
    to_rgb = _lab_to_rgb() if image.mode == "LAB" else None
    for top, rows in _rows(image):
        target = stored[top : top + rows.height]
        if levels is not None:
            values = np.asarray(rows)
            target[:] = scaled(values, *levels)[:, :, None]
            if isinstance(image.info.get("transparency"), int):
                target[values == image.info["transparency"]] = background
            continue
        if to_rgb is not None:
            rows = to_rgb(rows)
        elif rows.has_transparency_data:
            rows = _on_background(rows, background)
        target[:] = np.asarray(rows.convert("RGB"))
    return pixels


def _rows(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the image in parts of full width, with the place of their first row."""
    width, height = image.size
    step = max(1, _PIXELS_AT_ONCE // width)
    for top in range(0, height, step):
        yield top, image.crop((0, top, width, min(top + step, height)))


def _lab_to_rgb() -> Callable[[Image.Image], Image.Image]:
    # Pillow's convert() refuses LAB; the colour management library knows it.
    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")

    def convert(rows: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(rows, transform)
        assert converted is not None  # only inPlace=True returns None
        return converted

    return convert


def _on_background(image: Image.Image, background: Colour) -> Image.Image:
    """Lay an image with transparency on a colour: a plain convert("RGB") would show colours that are hidden."""
    if image.mode == "La":
        image = image.convert("LA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image.convert("RGBA"))


def _levels_of_wide(
    image: Image.Image, name: str, value_range: ValueRange | None, notes: list[str]
) -> tuple[float, float]:
    """Return which values of the modes I;16, I and F become black and white: 0 and 65535 unless a range is given."""
    low, high = np.inf, -np.inf
    for top, rows in _rows(image):
        smallest, largest = _finite_extent(np.asarray(rows), name, top)
        low, high = min(low, smallest), max(high, largest)
    is_float = image.mode == "F"
    if not is_float and value_range is None and (low < 0 or high > 65535):
        raise ImageError(
            f"{name}: an integer image with values {low:.0f} to {high:.0f}, expected 16 bits (0 to 65535). "
            f"Pass value_range=(black, white)."
        )
    what = f"a {'floating-point' if is_float else 'wide'} image (mode {image.mode})"
    levels = chosen_range((low, high), name, value_range, unsigned_bits=None if is_float else 16, what=what)
    narrow_range((low, high), levels, notes, is_chosen=value_range is not None)
    return levels


def chosen_range(
    extent: tuple[float, float], name: str, value_range: ValueRange | None, *, unsigned_bits: int | None, what: str
) -> tuple[float, float]:
    """Return which values become black and white.

    Args:
        extent: the smallest and the largest value that there is.
        name: what error messages call the image.
        value_range: what the caller asks for.
        unsigned_bits: bits of unsigned integers, whose whole range is from black to white; None if that is unknown.
        what: what the image is, for error messages.

    Raises:
        ImageError: `value_range` is not a range, or there is none and nobody knows the white.
    """
    if value_range is None:
        if unsigned_bits is None:
            low, high = extent
            raise ImageError(
                f"{name}: {what} with values {low:g} to {high:g}; which value is white is not written in it. Pass "
                f"value_range=(black, white), for example value_range=({low:g}, {high:g})."
            )
        return 0.0, 2.0**unsigned_bits - 1
    if isinstance(value_range, str):
        if value_range != "auto":
            raise ImageError(f'{name}: value_range must be (black, white) or "auto", got {value_range!r}')
        low, high = extent
        return (low, high) if low < high else (low, low + 1)
    try:
        black, white = (float(bound) for bound in value_range)
    except (TypeError, ValueError) as error:
        raise ImageError(f'{name}: value_range must be (black, white) or "auto", got {value_range!r}') from error
    if not (np.isfinite(black) and np.isfinite(white) and black < white):
        raise ImageError(f"{name}: value_range must be (black, white) with black < white, got {value_range}")
    return black, white


def narrow_range(
    extent: tuple[float, float], levels: tuple[float, float], notes: list[str], *, is_chosen: bool
) -> None:
    """Add a note if so few greys are left of an image that a network sees next to nothing in it.

    Thermal cameras and sensors of 12 bits write files of 16 bits, in which the image is one grey.

    Args:
        extent: the smallest and the largest value of the image.
        levels: the values that become black and white.
        notes: The note is put here.
        is_chosen: whether the caller chose the range. Then only an image of one grey is worth a note.
    """
    low, high = extent
    darkest, brightest = (int(scaled(np.array([value]), *levels)[0]) for value in extent)
    greys = brightest - darkest + 1
    if low < high and greys <= (1 if is_chosen else _NARROW + 1):
        notes.append(
            f"has values from {low:g} to {high:g}, which is {greys} of 256 greys if {levels[0]:g} is black and "
            f'{levels[1]:g} white: give value_range="auto", or the values that are black and white'
        )


def scaled(values: np.ndarray, black: float, white: float, out: np.ndarray | None = None) -> np.ndarray:
    """Return uint8 values: `black` becomes 0 and `white` 255, rounded to nearest; what lies outside is cut.

    Args:
        values: numbers of any type, any shape.
        black: the value that becomes 0.
        white: the value that becomes 255, larger than `black`.
        out: uint8 array of the same shape to put them into; a new one if None.
    """
    out = np.empty(values.shape, np.uint8) if out is None else out
    if values.dtype == np.uint8 and (black, white) == (0, 255):
        out[...] = values
        return out
    per_row = max(1, int(np.prod(values.shape[1:])))
    step = max(1, _PIXELS_AT_ONCE // per_row)
    for top in range(0, len(values), step):
        part = values[top : top + step]
        if part.dtype == np.uint16 and (black, white) == (0, 65535):
            out[top : top + step] = (part.astype(np.uint32) + 128) // 257  # 65535 / 255 is 257
        else:
            level = (part.astype(np.float64) - black) / (white - black)
            out[top : top + step] = np.rint(np.clip(level, 0, 1) * 255)
    return out


def rgb_from_array(
    array: Shaped[np.ndarray, "height width channels"],
    name: str,
    background: Colour,
    value_range: ValueRange | None,
    notes: list[str],
) -> UInt8[np.ndarray, "height width 3"]:
    """Convert an array to RGB. The rules are those of `dajax.images.read.read_image`; the array is never changed.

    Args:
        array: what `channels_last` gives.
        name: what error messages call the array.
        background: RGB colour on which transparent pixels of a 4-channel array are laid.
        value_range: (black, white), "auto", or None for the dtype's own range.
        notes: what is to be said about the array is put here.

    Returns:
        uint8 [height, width, 3], a new array.

    Raises:
        ImageError: the dtype or the values are not those of an image.
    """
    if value_range is not None and array.shape[2] == 4:
        raise ImageError(f"{name}: value_range cannot be used with an alpha channel. Pass the array without it.")
    black, white = _levels_of_array(array, name, value_range, notes)
    pixels = np.empty((*array.shape[:2], 3), np.uint8)
    step = max(1, _PIXELS_AT_ONCE // array.shape[1])
    for top in range(0, len(array), step):
        rows, target = array[top : top + step], pixels[top : top + step]
        if array.shape[2] == 4:
            rgba = Image.fromarray(np.ascontiguousarray(scaled(rows, black, white)))
            target[:] = np.asarray(_on_background(rgba, background).convert("RGB"))
        else:
            target[:] = scaled(rows, black, white)
    return pixels


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


def _levels_of_array(
    array: np.ndarray, name: str, value_range: ValueRange | None, notes: list[str]
) -> tuple[float, float]:
    """Return which values become black and white."""
    kind, bits = array.dtype.kind, 8 * array.dtype.itemsize
    if kind == "b":
        raise ImageError(f"{name}: a boolean mask is not an image. Convert it: array.astype(np.uint8) * 255.")
    if kind not in "uif":
        raise ImageError(
            f"{name}: dtype {array.dtype} is not a pixel type. Convert to uint8 (0 to 255), uint16 (0 to 65535) or "
            f"float32 (0 to 1)."
        )
    if kind == "u" and bits == 8 and value_range is None:
        return 0.0, 255.0
    low, high = _finite_extent(array, name)
    if value_range is None:
        if kind != "f" and not (kind == "u" and bits == 16):
            raise ImageError(
                f"{name}: dtype {array.dtype} with values {array.min()} to {array.max()}; which value is white is not "
                f"known. Convert with array.astype(np.uint8) if 255 is white, or pass value_range=(black, white)."
            )
        if kind == "f" and (low < 0 or high > 1):
            raise ImageError(
                f"{name}: floating-point pixels must lie within [0, 1], these lie within [{low:g}, {high:g}]. "
                f"Divide by 255 if 255 is white, or pass value_range=(black, white)."
            )
    if kind == "f" and value_range is None:
        return 0.0, 1.0
    levels = chosen_range((low, high), name, value_range, unsigned_bits=16, what="an array")
    narrow_range((low, high), levels, notes, is_chosen=value_range is not None)
    return levels


def _finite_extent(values: np.ndarray, name: str, top: int = 0) -> tuple[float, float]:
    """Smallest and largest value; a NaN or infinity is an error that says where it is."""
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        place = [bad[0] + top, *bad[1:]]
        raise ImageError(f"{name}: {values[bad]} at index {place}; every pixel must be finite")
    return float(low), float(high)
