"""TIFF: what kind of image a file has first, whether Pillow reads that kind right, and the kinds that `tifffile` reads.

Pillow has no check of its own: some kinds it reads as noise, as a negative, or with bytes swapped. So the kinds that it
reads right are a list here, and all others are read by tifffile (the extra `tiff`) or refused by name.

Sections and tags are those of TIFF 6.0 (Adobe, 1992); the others are named where they are used.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dajax.errors import ImageError, missing_extra
from dajax.images.formats import Stream
from dajax.images.pixels import ValueRange, chosen_range, narrow_range, scaled
from dajax.limits import DECODER_BYTES, MAX_TIFF_VALUES

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# Tags: NewSubfileType, ImageWidth, ImageLength, BitsPerSample, Compression, PhotometricInterpretation, FillOrder,
# Orientation, SamplesPerPixel, PlanarConfiguration, ColorMap, SubIFDs (TIFF Supplement 1), InkSet, ExtraSamples,
# SampleFormat, YCbCrSubSampling, DNGVersion (Adobe DNG).
_WANTED = {254, 256, 257, 258, 259, 262, 266, 274, 277, 284, 320, 330, 332, 338, 339, 530, 50706}
_GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = (0, 1), 2, 3, 5, 6, 8
_PHOTOMETRIC = {
    0: "grey, 0 is white",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "a mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "the sensor's colour filters",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "undefined", 5: "complex integer", 6: "complex"}
# None, LZW, Deflate (two numbers), PackBits, Zstandard: what they decode to has the size of the strip, whatever they
# say. Compressions that have a header of their own (JPEG, JPEG 2000, ...) may ask for any memory.
_COMPRESSIONS = {1, 5, 8, 32946, 32773, 50000}


@dataclass(frozen=True)
class Page:
    """The first image of a TIFF file, as its tags describe it; see `_WANTED` for the tags.

    Attributes:
        size: (width, height) as stored.
        bits: bits of each sample of a pixel; they are all the same in the kinds that are read.
        samples: samples of a pixel.
        form: SampleFormat: 1 unsigned, 2 signed, 3 floating point.
        extra: what the samples beyond the colours are: 0 anything, 1 associated alpha, 2 unassociated alpha.
        big_endian: whether the most significant byte comes first.
        big_tiff: whether it is a BigTIFF, with places of 64 bits.
        has_more: Whether other images follow.
        subsampling: by how much YCbCr's chroma is smaller, across and down.
        old_palette: the palette, 3 bytes for each colour, if its values have 8 bits, as some programs write them.
    """

    size: tuple[int, int]
    bits: int
    samples: int
    form: int
    photometric: int
    planar: bool
    compression: int
    extra: tuple[int, ...]
    fill_order: int
    orientation: int
    big_endian: bool
    big_tiff: bool
    has_more: bool
    subsampling: tuple[int, ...]
    ink_set: int
    old_palette: bytes

    @property
    def kind(self) -> str:
        """A few words for messages, such as "TIFF, RGB, 3 x 16 bits unsigned, planar"."""
        colours = _PHOTOMETRIC.get(self.photometric, f"photometric {self.photometric}")
        samples = f"{self.samples} x " if self.samples > 1 else ""
        parts = ["TIFF", colours, f"{samples}{self.bits} bits {_FORMATS.get(self.form, 'of unknown type')}"]
        parts += ["planar"] * (self.planar and self.samples > 1)
        return ", ".join(parts + [f"compression {self.compression}"] * (self.compression not in _COMPRESSIONS))


def read_page(stream: Stream, name: str) -> Page:
    """Read the tags of the first image.

    Args:
        stream: the file, seekable.
        name: what messages call the image.

    Raises:
        ImageError: the header is damaged; or the first image is a thumbnail, as in cameras' raw files.
    """
    try:
        tags, following, order, is_big = _first_tags(stream, name)
    except (struct.error, KeyError, OverflowError, OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: begins as TIFF, but its header is damaged ({type(error).__name__})") from error
    if 256 not in tags or 257 not in tags:
        raise ImageError(f"{name}: begins as TIFF, but its header gives no width and height")

    def first(tag: int, default: int) -> int:
        return tags.get(tag, (default,))[0]

    size = (first(256, 0), first(257, 0))
    # A file of one image is that image, whatever the tag says.
    is_reduced = bool(first(254, 0) & 1) and bool(following or 330 in tags)
    if 50706 in tags or is_reduced or first(262, 0) in (32803, 34892):
        what = "a DNG file" if 50706 in tags else "a file, such as NEF, ARW or another raw file of a camera,"
        raise ImageError(
            f"{name}: is {what} whose first image ({size[0]}x{size[1]}) is a thumbnail or the sensor's data, not the "
            f"image. Develop it to TIFF or JPEG first."
        )
    bits, forms = tags.get(258, (1,)), tags.get(339, (1,))
    if len(set(bits)) > 1 or len(set(forms)) > 1:
        raise ImageError(f"{name}: a TIFF whose samples have different types ({bits[:8]} bits) is not read")
    compression = first(259, 1)
    photometric = _YCBCR if compression == 6 else first(262, 0)
    return Page(
        size=size,
        bits=bits[0],
        samples=first(277, 3 if compression == 6 else 1),
        form=forms[0],
        photometric=photometric,
        planar=first(284, 1) == 2,
        compression=compression,
        extra=tags.get(338, ()),
        fill_order=first(266, 1),
        orientation=first(274, 1),
        big_endian=order == ">",
        big_tiff=is_big,
        has_more=bool(following),
        subsampling=tags.get(530, (2, 2)),
        ink_set=first(332, 1),
        old_palette=_old_palette(tags.get(320, ())),
    )


def _first_tags(stream: Stream, name: str) -> tuple[dict[int, tuple[int, ...]], int, str, bool]:
    """Return the wanted tags of the first directory, the place of the next one, the byte order, and if it is big."""
    end = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(16)
    if head[8:10] == b"CR":
        raise ImageError(f"{name}: is a camera's raw file (CR2). Develop it to TIFF or JPEG first.")
    order = ">" if head.startswith(b"MM") else "<"
    is_big = b"+" in head[2:4]  # BigTIFF: 8 bytes for places and counts
    count_code, entry_code, place_code = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I")
    at = struct.unpack_from(order + place_code, head, 8 if is_big else 4)[0]
    stream.seek(at)
    count = struct.unpack(order + count_code, stream.read(struct.calcsize(order + count_code)))[0]
    entry_size = struct.calcsize("=" + entry_code)
    if not 0 < count <= 65_535:
        raise ValueError(count)
    table = stream.read(count * entry_size)
    place = stream.read(struct.calcsize(order + place_code))
    # A file that ends after the directory has no next one.
    following = struct.unpack(order + place_code, place)[0] if len(place) == struct.calcsize(order + place_code) else 0
    tags: dict[int, tuple[int, ...]] = {}
    total = 0
    for tag, kind, values, inline in struct.iter_unpack(order + entry_code, table):
        bytes_ = values * _SIZES.get(kind, 1)
        total += bytes_
        # Tags may share bytes: then a small file asks for any amount of memory.
        if total > end + 65_536 or (tag in (273, 279, 324, 325) and values > MAX_TIFF_VALUES):
            raise ImageError(f"{name}: begins as TIFF, but its tags claim more data than the file has or than is read")
        if tag not in _WANTED or not values:
            continue
        if kind not in _CODES:
            raise ValueError(kind)
        if bytes_ <= len(inline):
            data = inline[:bytes_]
        else:
            stream.seek(struct.unpack(order + place_code, inline)[0])
            data = stream.read(bytes_)
        tags[tag] = struct.unpack(f"{order}{values}{_CODES[kind]}", data)
    return tags, following, order, is_big


def _old_palette(colormap: tuple[int, ...]) -> bytes:
    """Return the palette if it has values of 8 bits. ColorMap has 16: all red ones, then green, then blue."""
    if not colormap or max(colormap) > 255 or not any(colormap):
        return b""
    return np.array(colormap, np.uint8).reshape(3, -1).T.tobytes()


def reads_right(page: Page) -> bool:
    """Return whether Pillow (11.3 to 13) reads this kind as the standard says.

    What stands here was compared with tifffile and imagecodecs, in both byte orders, as strips and tiles.
    """
    if page.big_tiff and page.big_endian:  # Pillow looks for its mark at the wrong byte
        return False
    if page.compression == 50000 and _mode(page) is not None:  # not every Pillow has Zstandard
        return False
    raw, eight = page.compression == 1, page.bits == 8 and page.form == 1
    if page.photometric in _GREY and page.samples == 1:
        if page.form == 1 and page.bits in (1, 2, 4, 8):
            return True
        # Compressed samples of 32 bits come with their bytes swapped from big-endian files.
        wide = (page.form, page.bits) in ((2, 16), (2, 32), (3, 32)) and (raw or not page.big_endian)
        return page.photometric == 1 and page.fill_order == 1 and (wide or (page.form, page.bits) == (1, 16))
    if page.photometric == 1 and page.samples == 2:
        return eight and page.extra == (2,) and not page.planar and page.fill_order == 1
    if page.photometric == _PALETTE:
        return page.samples == 1 and page.form == 1 and page.bits in (1, 2, 4, 8)
    if page.photometric == _RGB:
        if page.samples == 3 + len(page.extra) <= 4 or (page.samples == 4 and not page.extra):
            if page.planar and page.extra == (0,):  # a fourth plane that is no alpha makes Pillow stumble
                return False
            return eight or (page.form == 1 and page.bits == 16 and not (raw and page.planar))
        return eight and page.samples == 3 + len(page.extra) <= 6 and not page.planar and not any(page.extra[1:])
    if page.photometric == _CMYK and page.ink_set == 1 and page.samples == 4:
        return eight or (page.form == 1 and page.bits == 16 and not (raw and page.planar))
    if page.photometric == _YCBCR and eight and page.samples == 3 and not page.planar:
        return not raw or page.subsampling == (1, 1)
    return page.photometric == _LAB and eight and page.samples == 3 and not page.planar


def read_kind(stream: Stream, page: Page, name: str, value_range: ValueRange | None, notes: list[str]) -> Image.Image:
    """Read a kind that Pillow does not read right, as an 8-bit image of mode L, LA, RGB, RGBA, RGBa or CMYK.

    The whole range of unsigned samples is from black to white, 0 to 2**bits - 1 (TIFF 6.0, PhotometricInterpretation).

    Args:
        stream: the file.
        page: what `read_page` says of it.
        name: what messages call the image.
        value_range: (black, white), "auto" for the smallest and largest value, or None.
        notes: what is to be said about the image is put here.

    Raises:
        ImageError: the kind is not read, needs the extra or a value range, or the file is damaged.
    """
    mode = _mode(page)
    if mode is None:
        raise ImageError(f"{name}: is a {page.kind}, a kind that dajax does not read. Convert it to grey or RGB first.")
    try:
        import imagecodecs  # noqa: F401  # without it, tifffile's own zlib would inflate a strip to any size
        import tifffile
    except ImportError as error:
        raise ImageError(
            missing_extra("tiff", f"{name}: is a {page.kind}, which needs tifffile and imagecodecs")
        ) from error
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # or it prints what is wrong with a file
    stream.seek(0)
    with tifffile.TiffFile(stream, name="image") as file:
        found: Any = file.pages.first
        if (found.imagewidth, found.imagelength, found.samplesperpixel) != (*page.size, page.samples):
            raise ImageError(f"{name}: begins as TIFF, but its header can be read in two ways")
        _check_memory(found, page, name, len(Image.new(mode, (1, 1)).getbands()))
        bands = _bands(found, page, mode, name, value_range, notes)
    return Image.frombuffer(mode, page.size, bands, "raw", mode, 0, 1)


def _mode(page: Page) -> str | None:
    """Return Pillow's mode for the bands that are read; None if the kind is not."""
    if page.form not in (1, 2, 3) or page.bits > 64 or page.compression not in _COMPRESSIONS:
        return None
    alpha = {1: "a", 2: "A"}.get(page.extra[0] if page.extra else 0, "")
    # Of several bands nobody says which are red, green and blue.
    if page.photometric in _GREY and page.samples == 1 + len(page.extra) <= 2:
        return {"": "L", "A": "LA", "a": "La"}[alpha]
    if page.photometric == _RGB and page.samples >= 3:
        return "RGB" + (alpha if page.samples > 3 else "")
    return "CMYK" if page.photometric == _CMYK and page.ink_set == 1 and page.samples >= 4 else None


def _check_memory(found: Any, page: Page, name: str, bands: int) -> None:
    pixels = page.size[0] * page.size[1]
    chunk = int(np.prod(found.chunks)) * np.dtype(found.dtype).itemsize
    # A strip is decoded whole, and undoing its predictor or byte order takes a copy.
    if 2 * chunk > (DECODER_BYTES - bands) * pixels + 64_000_000:
        raise ImageError(
            f"{name}: is a {page.kind} in strips or tiles of {chunk:,} bytes, which would take too much memory. Write "
            f"it with smaller strips."
        )


def _bands(
    found: Any, page: Page, mode: str, name: str, value_range: ValueRange | None, notes: list[str]
) -> np.ndarray:
    """Return uint8 [height, width, bands]; strips or tiles are scaled one by one, so that few are in memory."""
    width, height = page.size
    count = len(Image.new(mode, (1, 1)).getbands())
    colours = count - (mode[-1] in "Aa" and count > 1)
    if mode[-1] == "a" and value_range is not None:
        raise ImageError(f"{name}: value_range cannot be used with colours that are multiplied by alpha")
    extent = _extent(found, colours, name)
    black, white = chosen_range(
        extent, name, value_range, unsigned_bits=page.bits if page.form == 1 else None, what=f"is a {page.kind}"
    )
    narrow_range(extent, (black, white), notes, is_chosen=value_range is not None)
    opaque = 1.0 if page.form == 3 else 2.0 ** (page.bits - (page.form == 2)) - 1
    bands = np.zeros((height, width, count), np.uint8)
    for values, band, (top, left) in _segments(found, count):
        part = bands[top : top + values.shape[0], left : left + values.shape[1]]
        if band is not None:
            part = part[..., band : band + 1]
        split = colours if band is None else colours - band
        if split > 0:
            scaled(values[..., :split], black, white, out=part[..., :split])
        if values.shape[2] > max(split, 0):
            scaled(values[..., max(split, 0) :], 0.0, opaque, out=part[..., max(split, 0) :])
        del values
    if page.photometric == 0 and not isinstance(value_range, tuple | list):
        np.subtract(255, bands[..., :1], out=bands[..., :1])
    return bands


def _segments(found: Any, count: int) -> Iterator[tuple[np.ndarray, int | None, tuple[int, int]]]:
    """Yield the decoded strips or tiles as [height, width, samples], with their band (None: all) and (top, left)."""
    seen = 0
    for data, place, _ in found.segments(maxworkers=1, buffersize=1 << 22):
        seen += 1
        band, _, top, left, _ = place
        if found.planarconfig != 2 or found.samplesperpixel == 1:
            band = None
        elif band >= count:
            continue
        if data is not None:  # a strip that is not in the file is black
            values = data[0, : found.imagelength - top, : found.imagewidth - left]
            yield values[..., :count], band, (top, left)
            del values
        del data  # the next one is decoded now
    if seen < int(np.prod(found.chunked)):
        raise ValueError(f"{seen} of {int(np.prod(found.chunked))} strips or tiles are there")


def _extent(found: Any, count: int, name: str) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for values, _, _ in _segments(found, count):
        smallest, largest = float(values.min()), float(values.max())
        if not (np.isfinite(smallest) and np.isfinite(largest)):
            raise ImageError(f"{name}: has a value that is NaN or infinite; every pixel must be finite")
        low, high = min(low, smallest), max(high, largest)
        del values
    return (low, high) if low <= high else (0.0, 0.0)
