"""One image, from a file, bytes, a PIL image or an array, to 8-bit RGB. No network: that is `fetch`.

Pillow raises many kinds of exception for damaged files (about one corrupt file in twenty raises something other than
`OSError`), so everything that happens between opening and RGB is turned into one `ImageError` here.
"""

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dajax.errors import ImageError, missing_extra
from dajax.files import open_regular, wrong_download
from dajax.images import pnm, tiff
from dajax.images.formats import FORMATS, HEAD_BYTES, Stream, format_of, kind_of_other
from dajax.images.headers import BYTES_PER_PIXEL, Header, ended_jpeg, read_header
from dajax.images.pixels import Colour, ValueRange, channels_last, narrow_range, rgb_from_array, rgb_from_pil
from dajax.images.urls import is_url, redacted
from dajax.limits import DECODER_BYTES, MAX_IMAGE_BYTES, MAX_PIXELS

_SEVERAL = "has several frames or pages; the first is used"


class _LimitOfPillow:
    """The pixels at which Pillow warns (89 million) and refuses (179 million): a global variable, and ours is asked.

    The first thread that reads a file lifts it, and the last one that has finished restores it.
    """

    def __init__(self) -> None:
        self._lock, self._threads = threading.Lock(), 0
        self._before: int | None = None

    @contextmanager
    def lifted(self) -> Iterator[None]:
        with self._lock:
            if not self._threads:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._threads += 1
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    Image.MAX_IMAGE_PIXELS = self._before


_LIMIT_OF_PILLOW = _LimitOfPillow()


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

    Files may be JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF, PNM or MPO, and HEIC with the extra `heif`; the content decides,
    not the name. Kinds of TIFF that Pillow does not read right (floats with several channels, 12, 32 and 64 bits,
    planar and WhiteIsZero of 16 bits, ...) need the extra `tiff`. Of an animation or a multi-page file the first frame
    is taken and a warning says so (the further images of an MPO are previews or gain maps, so those are passed over
    silently). Transparent pixels are laid on `background`. 16-bit greyscale is scaled by 65535, and a warning says so
    if that leaves few greys; embedded colour profiles are not applied. Decoding takes at most the file and 12 bytes for
    each of `max_pixels`.

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
        value_range: (black, white): the values that become 0 and 255, for arrays of any number type and for files of
            more than 8 bits. Values outside become black or white. "auto" takes the smallest and the largest value of
            the image. Files of 8 bits stay as they are.
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
            _check_kind(source, name)
            source.load()
            pixels = rgb_from_pil(source, name, background, value_range, notes, _orientation(source, notes))
        elif hasattr(source, "__array__"):
            array = channels_last(_as_array(source, name), name, layout)
            _check_size((array.shape[1], array.shape[0]), max_pixels, name)
            pixels = rgb_from_array(array, name, background, value_range, notes)
        else:
            asked = _Asked(background, max_pixels, allow_truncated, value_range)
            with _open_stream(source, name) as stream:
                pixels = _read_stream(stream, name, asked, notes)
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


class _Asked(NamedTuple):
    """Arguments of `read_image`."""

    background: Colour
    max_pixels: int
    allow_truncated: bool
    value_range: ValueRange | None


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


def _check_size(size: tuple[int, int], max_pixels: int, name: str, form: str = "") -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the image is empty ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width * height:,} pixels are more than max_pixels={max_pixels:,}. Pass a larger max_pixels "
            f"if you trust the image."
        )
    needs = BYTES_PER_PIXEL.get(form, DECODER_BYTES)
    if width * height * needs > DECODER_BYTES * max(max_pixels, MAX_PIXELS):
        raise ImageError(
            f"{name}: {width * height:,} pixels of {form} take {needs} bytes each while they are decoded, more than "
            f"{DECODER_BYTES} bytes for each of max_pixels={max_pixels:,}. Pass a larger max_pixels if you trust the "
            f"image."
        )


def _check_kind(image: Image.Image, name: str) -> None:
    """Refuse a TIFF that Pillow has opened, but will not decode right."""
    file = getattr(image, "fp", None)
    if image.format == "TIFF" and isinstance(file, io.BytesIO | io.BufferedReader):
        place = file.tell()
        page = tiff.read_page(file, name)
        file.seek(place)
        if image.tell() == 0 and not tiff.reads_right(page):
            raise ImageError(f"{name}: is a {page.kind}, which Pillow does not read right. Pass the file itself.")


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


def _read_stream(stream: Stream, name: str, asked: _Asked, notes: list[str]) -> np.ndarray:
    """Read a file as upright RGB. Every limit is asked before a decoder sees the file."""
    form = _format(stream, name)
    with _decoding(form, name), _LIMIT_OF_PILLOW.lifted():
        return _read_form(stream, form, name, asked, notes)


def _read_form(stream: Stream, form: str, name: str, asked: _Asked, notes: list[str]) -> np.ndarray:
    orientation, value_range = None, asked.value_range
    page = tiff.read_page(stream, name) if form == "TIFF" else None
    if page is not None and _is_for_tifffile(page, value_range):
        _check_size(page.size, asked.max_pixels, name)
        if page.has_more:
            notes.append(_SEVERAL)
        image = tiff.read_kind(stream, page, name, value_range, notes)
        orientation, value_range = page.orientation, None
    elif form == "PPM" and (header := pnm.read_pnm_header(stream, name)) is not None and header.is_slow:
        _check_size(header.size, asked.max_pixels, name)
        image = pnm.read_pnm(stream, header, name, value_range, asked.allow_truncated, notes)
        value_range = None
    else:
        image = _decoded(stream, form, name, asked, notes)
        orientation = _orientation(image, notes)
        if page is not None and page.old_palette and image.mode == "P":
            image.putpalette(page.old_palette)
        if page is not None and page.bits == 16:
            _note_narrow_colours(image, notes)
    return rgb_from_pil(image, name, asked.background, value_range, notes, orientation)


def _is_for_tifffile(page: tiff.Page, value_range: ValueRange | None) -> bool:
    # Pillow has no mode for colours of 16 bits: it keeps 8 of them, so a range would come too late.
    return not tiff.reads_right(page) or (value_range is not None and page.bits > 8 and page.samples > 1)


def _format(stream: Stream, name: str) -> str:
    """Return the format by the first bytes.

    Raises:
        ImageError: it is none of those that may reach a decoder; or HEIC, and the extra is not installed.
    """
    head = stream.read(HEAD_BYTES)
    form = format_of(head)
    if form is None:
        known = kind_of_other(head)
        other = f"is {known + ', ' if known else ''}not an image in one of the formats {', '.join(FORMATS)}"
        raise ImageError(f"{name}: {wrong_download(head, 'an image') or other + f' (it starts with {head[:16]!r})'}")
    if form == "HEIF":
        try:
            import pillow_heif
        except ImportError as error:
            raise ImageError(missing_extra("heif", f"{name}: is HEIC/HEIF, which needs pillow-heif")) from error
        pillow_heif.register_heif_opener()
    return form


@contextmanager
def opened(source: Any, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file as `read_image` does, within the same limits; nothing is decoded before somebody asks for it.

    Args:
        source: path, encoded bytes or binary file object.
        max_pixels: Larger images are refused.

    Raises:
        ImageError: see `read_image`. Whatever Pillow raises inside the block becomes one as well.
    """
    name = _describe(source)
    with _open_stream(source, name) as stream:
        form = _format(stream, name)
        if form == "TIFF":
            tiff.read_page(stream, name)
        with _decoding(form, name), _LIMIT_OF_PILLOW.lifted():
            yield _opened(stream, form, name, max_pixels, [])[0]


def _opened(stream: Stream, form: str, name: str, max_pixels: int, notes: list[str]) -> tuple[Image.Image, Header]:
    """Let Pillow open a file whose header is within the limits."""
    header = read_header(stream, form, name)
    if header.size is not None:
        _check_size(header.size, max_pixels, name, form)
    if header.left_out:
        notes.append(f"has metadata that is damaged or too large ({', '.join(header.left_out)}), which is passed over")
    image = _open_image(header.stream, form, name)
    # As Pillow sees it, too: of AVIF and HEIF only it knows the size, and before it takes memory for it.
    _check_size(image.size, max_pixels, name, form)
    return image, header


def _decoded(stream: Stream, form: str, name: str, asked: _Asked, notes: list[str]) -> Image.Image:
    """Open and decode a file."""
    image, header = _opened(stream, form, name, asked.max_pixels, notes)
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append(_SEVERAL)
    image = _load(image, header.stream, form, name, asked.allow_truncated, notes)
    if form == "PNG" and header.bits != 8:
        _mend_png(image, header.bits, name, asked.value_range, notes)
    return image


@contextmanager
def _decoding(form: str, name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError; see the module's docstring."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"{name}: begins as {_called(form)}, but cannot be decoded: it is damaged or of a kind that is not read "
            f"({type(error).__name__}: {error})"
        ) from error


def _mend_png(image: Image.Image, bits: int, name: str, value_range: ValueRange | None, notes: list[str]) -> None:
    """Mend what Pillow makes of PNGs whose samples do not have 8 bits."""
    if bits < 8 and image.mode in ("1", "L") and isinstance(image.info.get("transparency"), int):
        # tRNS holds the sample as stored (PNG 1.2, 4.2.1.1), and Pillow widens samples to 8 bits. Some versions know
        # that of one bit.
        stored = min(image.info["transparency"], 2**bits - 1)
        image.info["transparency"] = stored * 255 // (2**bits - 1)
    if bits < 16 or image.mode.startswith("I"):
        return
    kind = "a PNG of 16 bits with colours or alpha, of which Pillow keeps 8 bits"
    if "transparency" in image.info:
        raise ImageError(
            f"{name}: is {kind}, and has a transparent colour of 16 bits. Convert it to alpha or to 8 bits."
        )
    if value_range is not None:
        raise ImageError(f"{name}: is {kind}, so value_range cannot be used. Convert it to TIFF or to grey first.")
    _note_narrow_colours(image, notes)


def _note_narrow_colours(image: Image.Image, notes: list[str]) -> None:
    """Say so if colours of 16 bits have few values. Pillow has kept their upper 8 bits."""
    if image.mode not in ("RGB", "RGBA"):
        return
    ends = [band for band in image.getextrema()[:3] if isinstance(band, tuple)]
    extent = 257.0 * min(low for low, _ in ends), 257.0 * max(high for _, high in ends)
    narrow_range(extent, (0.0, 65_535.0), notes, is_chosen=False)


def _called(form: str) -> str:
    return {"PPM": "PNM", "WEBP": "WebP"}.get(form, form)


def _open_image(stream: Stream, form: str, name: str) -> Image.Image:
    """Read the header as Pillow does; nothing is decoded yet."""
    stream.seek(0)
    try:
        return Image.open(stream, formats=(form,))
    except Exception as error:  # see the module's docstring
        raise ImageError(
            f"{name}: begins as {_called(form)}, but its header is damaged or of a kind that Pillow does not decode "
            f"({_reason(stream, form, error)})"
        ) from error


def _reason(stream: Stream, form: str, error: Exception) -> str:
    """Return what the decoder said: Image.open only says that it cannot identify the file."""
    if isinstance(error, Image.UnidentifiedImageError):
        try:
            stream.seek(0)
            Image.OPEN[form][0](stream, "")
        except Exception as said:
            error = said
    return f"{type(error).__name__}: {error}"


def _load(
    image: Image.Image, stream: Stream, form: str, name: str, allow_truncated: bool, notes: list[str]
) -> Image.Image:
    """Decode. Pillow's own switch for truncated files is global to the process, so it is not used."""
    try:
        image.load()
    except OSError as error:
        if "truncated" not in str(error).lower():
            raise
        if not allow_truncated:
            raise ImageError(
                f"{name}: begins as {_called(form)}, but is truncated ({error}). Pass allow_truncated=True to take "
                f"what there is."
            ) from error
        notes.append("is truncated; what is missing is blank")
        if image.format in ("JPEG", "MPO"):
            stream.seek(0)
            image = Image.open(io.BytesIO(ended_jpeg(stream.read())), formats=("JPEG",))
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
