"""One image, from a file, bytes, a PIL image or an array, to 8-bit RGB. No network: that is `fetch`.

Pillow raises many kinds of exception for damaged files (about one corrupt file in twenty raises something other than
`OSError`), so everything that happens between opening and RGB is turned into one `ImageError` here.
"""

import io
import os
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dajax.errors import ImageError, missing_extra
from dajax.files import open_regular, wrong_download
from dajax.images.pixels import Colour, ValueRange, channels_last, rgb_from_array, rgb_from_pil
from dajax.images.urls import is_url, redacted
from dajax.limits import MAX_IMAGE_BYTES, MAX_PIXELS

# Formats that may reach a decoder, whatever a file's name says. Not among them are those that run programs (EPS) or
# are no images (PSD, FITS, PDF, DDS, ...). MPO comes through JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

Stream = io.BytesIO | io.BufferedReader

# Pillow's own pixel limit is a global variable; ours is an argument. See `_open_image`.
_PILLOW_LIMIT_LOCK = threading.Lock()


@dataclass(frozen=True)
class DecodedImage:
    """What `read_image` gave. It takes these back as they are; an array it would check and copy once more."""

    pixels: UInt8[np.ndarray, "height width 3"]


def read_image(
    source: Any,
    *,
    background: Colour = (255, 255, 255),
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
    layout: str | None = None,
    value_range: ValueRange | None = None,
    name: str | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Read one image as 8-bit RGB, in the orientation in which viewers show it.

    Files may be JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF, PNM or MPO, and HEIC with the extra `heif`; the
    content decides, not the name. Of an animation or a multi-page file the first frame is taken and a warning says so
    (the further images of an MPO are previews or gain maps, so those are passed over silently). Transparent pixels
    are laid on `background`. 16-bit greyscale is scaled by 65535; embedded colour profiles are not applied.

    Arrays may be [height, width], [height, width, 1], [..., 3] (RGB) or [..., 4] (RGBA, not premultiplied), of dtype
    uint8, uint16 (65535 is white) or floating point within [0, 1] (rounded to the nearest of 255 steps).

    Args:
        source: path, encoded bytes, binary file object, PIL image, or array (numpy, jax, or anything with
            `__array__`). It is not changed; a file object is read from where it stands to its end and left open.
        background: RGB colour, 0 to 255, on which transparency is laid.
        max_pixels: Larger images are refused before they are decoded.
        allow_truncated: Take what there is of a file that breaks off, with a warning, instead of refusing it.
        layout: Axes of an array: "HW", "HWC" or "CHW". None accepts HW and HWC, and refuses shapes that could be both
            HWC and CHW.
        value_range: (black, white): the values that become 0 and 255, for arrays of any number type and for greyscale
            files of 16 bits or more. Values outside become black or white.
        name: what error messages call the image; its path or kind if None.

    Returns:
        uint8 [height, width, 3], RGB, a new array.

    Raises:
        ImageError: nothing there, not an image, damaged, too large, or an array that is not clearly one image.
    """
    if isinstance(source, DecodedImage):
        return source.pixels
    if name is None:
        name = _describe(source)
    _check_background(background)
    notes: list[str] = []
    try:
        if isinstance(source, Image.Image):
            _check_size(source.size, max_pixels, name)
            source.load()
            pixels = rgb_from_pil(source, name, background, value_range, _orientation(source, notes))
        elif hasattr(source, "__array__"):
            array = channels_last(_as_array(source, name), name, layout)
            _check_size((array.shape[1], array.shape[0]), max_pixels, name)
            pixels = rgb_from_array(array, name, background, value_range)
        else:
            with _open_stream(source, name) as stream:
                image = _open_image(stream, name, max_pixels)
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    notes.append("has several frames or pages; the first is used")
                image = _load(image, stream, allow_truncated, notes)
                pixels = rgb_from_pil(image, name, background, value_range, _orientation(image, notes))
    except ImageError:
        raise
    except Exception as error:  # see the module's docstring
        raise ImageError(
            f"{name}: cannot be read as an image, it is damaged or of a kind that Pillow does not decode "
            f"({type(error).__name__}: {error})"
        ) from error
    for note in notes:
        warnings.warn(f"{name} {note}", UserWarning, stacklevel=2)
    return pixels


def _describe(source: Any) -> str:
    """Name the source for error messages. `repr` keeps newlines and undecodable bytes of a path readable."""
    if is_url(source):
        return redacted(source)
    if isinstance(source, str | os.PathLike):
        return repr(os.fspath(source))
    if isinstance(source, Image.Image):
        return f"PIL image {source.mode} {source.width}x{source.height}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source)} bytes"
    if hasattr(source, "__array__"):
        return f"array {getattr(source, 'dtype', '')} {list(getattr(source, 'shape', []))}"
    return f"{type(source).__name__} {getattr(source, 'name', '')!r}"


def _check_background(background: Colour) -> None:
    if len(background) != 3 or not all(0 <= level <= 255 for level in background):
        raise ImageError(f"background must be three levels from 0 to 255, got {background}")


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the image is empty ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width * height:,} pixels are more than max_pixels={max_pixels:,}. Pass a larger max_pixels "
            f"if you trust the image."
        )


def _as_array(source: Any, name: str) -> np.ndarray:
    if isinstance(source, np.ma.MaskedArray):
        raise ImageError(f"{name}: a masked array; say what is behind the mask: array.filled(value)")
    return np.asarray(source)


def _open_stream(source: Any, name: str) -> Stream:
    """Open a path, bytes or file object as a seekable binary stream. Never waits on a FIFO or device."""
    if is_url(source):
        raise ImageError(
            f"{name}: only dajax.pipeline and `dajax predict` read URLs. Download the image first and pass the "
            f"file or its bytes."
        )
    if isinstance(source, str | os.PathLike):
        return _open_file(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif hasattr(source, "read"):
        data = source.read(MAX_IMAGE_BYTES + 1)
        if not isinstance(data, bytes):
            raise ImageError(f"{name}: the file object gives {type(data).__name__}; open it in binary mode ('rb')")
    else:
        raise ImageError(
            f"{name}: expected one image (path, bytes, binary file object, PIL image or array), "
            f"got {type(source).__name__}"
        )
    _check_bytes(len(data), name)
    return io.BytesIO(data)


def _open_file(path: str | os.PathLike[str], name: str) -> Stream:
    hint = "Check the path and its permissions; find_images lists the images of a folder"
    stream = open_regular(path, error=ImageError, name=name, hint=hint)
    try:
        _check_bytes(os.fstat(stream.fileno()).st_size, name)
    except ImageError:
        stream.close()
        raise
    return stream


def _check_bytes(count: int, name: str) -> None:
    if count == 0:
        raise ImageError(f"{name}: is empty (0 bytes)")
    if count > MAX_IMAGE_BYTES:
        raise ImageError(f"{name}: is larger than {MAX_IMAGE_BYTES:,} bytes")


def _open_image(stream: Stream, name: str, max_pixels: int) -> Image.Image:
    """Identify the format and read the header; nothing is decoded yet."""
    head = stream.read(512)
    formats: tuple[str, ...] = FORMATS
    if _is_heic(head):
        try:
            import pillow_heif
        except ImportError as error:
            raise ImageError(missing_extra("heif", f"{name}: is HEIC/HEIF, which needs pillow-heif")) from error
        pillow_heif.register_heif_opener()
        formats = ("HEIF",)
    stream.seek(0)
    # Image.open warns at 89 and refuses at 179 megapixels by a global limit; ours is checked right after, still before
    # decoding. The lock keeps threads from restoring each other's value.
    with _PILLOW_LIMIT_LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(stream, formats=formats)
        except Image.UnidentifiedImageError as error:
            other = f"is not an image in one of the formats {', '.join(FORMATS)} (it starts with {head[:16]!r})"
            raise ImageError(f"{name}: {wrong_download(head, 'an image') or other}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before
    _check_size(image.size, max_pixels, name)
    return image


def _is_heic(head: bytes) -> bool:
    """By the file-type box of ISO/IEC 14496-12; AVIF files may share the container's brand."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS and b"avif" not in head[8 : int.from_bytes(head[:4])]


def _load(image: Image.Image, stream: Stream, allow_truncated: bool, notes: list[str]) -> Image.Image:
    """Decode. Pillow's own switch for truncated files is global to the process, so it is not used."""
    try:
        image.load()
    except OSError as error:
        if not allow_truncated or "truncated" not in str(error).lower():
            raise
        notes.append("is truncated; what is missing is blank")
        if image.format in ("JPEG", "MPO"):
            # The decoder completes what it has when it sees an end-of-image marker.
            stream.seek(0)
            image = Image.open(io.BytesIO(stream.read() + b"\xff\xd9"), formats=("JPEG",))
        else:
            image.tile = []  # type: ignore[attr-defined]  # nothing left to decode: keep the rows that are there
        image.load()
    return image


def _orientation(image: Image.Image, notes: list[str]) -> int | None:
    """EXIF orientation of a loaded image (TIFF, AVIF and HEIF decoders may have applied it already by then)."""
    try:
        return image.getexif().get(0x0112)
    except Exception as error:  # EXIF is not needed to see the image; viewers ignore what they cannot parse
        notes.append(f"has unreadable EXIF data, so it is shown as stored ({type(error).__name__}: {error})")
        return None
