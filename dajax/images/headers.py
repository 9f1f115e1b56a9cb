"""What the header of a file says before a decoder sees the file: how large the image is, and how long it would take.

Pillow's decoders of GIF and WebP take the memory of the whole image when they open a file, so its own check of the size
comes too late. A progressive JPEG is decoded once for each of its scans, and nothing bounds their number.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from dajax.errors import ImageError
from dajax.images.formats import Stream
from dajax.limits import (
    MAX_JPEG_HEADER_BYTES,
    MAX_METADATA_BYTES,
    MAX_PNG_CHUNKS,
    MAX_PROGRESSIVE_BYTES,
    MAX_RLE_BYTES,
    MAX_RLE_PIXELS,
    MAX_SCAN_PIXELS,
)

# What a decoder takes at its peak besides the file, in bytes a pixel: the canvas of WebP's decoder, planes and colours
# of AVIF's and HEIF's. The others stay below `limits.DECODER_BYTES`. tests/images/test_memory.py measures them all.
BYTES_PER_PIXEL = {"WEBP": 17, "AVIF": 20, "HEIF": 16}


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded.

    Attributes:
        size: (width, height) of what a decoder would make room for; None if only the decoder can tell.
        bits: how many bits a sample has.
        stream: the file, or what a decoder should see of it.
        left_out: the kinds of metadata that `stream` lacks because they cannot be read.
    """

    size: tuple[int, int] | None
    bits: int
    stream: Stream
    left_out: tuple[str, ...] = ()


def read_header(stream: Stream, form: str, name: str) -> Header:
    """Read the header of a file.

    Args:
        stream: the file, seekable. Where it stands afterwards is not defined.
        form: what `dajax.images.formats.format_of` says of it.
        name: what messages call the image.

    Raises:
        ImageError: the header is cut or damaged, or decoding would take too long.
    """
    stream.seek(0)
    reader: Callable[[Stream, str], Header] | None = _READERS.get(form)
    return Header(None, 8, stream) if reader is None else reader(stream, name)


# --- PNG -----------------------------------------------------------------------------------------------------------


def _png(stream: Stream, name: str) -> Header:
    """Walk over the chunks (PNG 1.2, section 3.2) and leave out metadata that Pillow would refuse the image for.

    Pillow reads no image whose text is damaged or larger than it likes, although no text is needed to see an image.
    Transparency (tRNS) stays: without it the image would look different.
    """
    size = stream.seek(0, io.SEEK_END)
    kept, left_out, texts = [(0, 8)], [], 0
    position, header = 8, b""
    for _ in range(MAX_PNG_CHUNKS):
        stream.seek(position)
        head = stream.read(8)
        length, kind = int.from_bytes(head[:4]), head[4:]
        if len(head) < 8 or not kind.isalpha():
            break
        end = position + 12 + length
        if kind == b"IHDR" and not header:
            header = stream.read(13)
        # A small first letter says that an image can be shown without the chunk.
        if kind[:1].islower() and kind != b"tRNS":
            inflated = _metadata_size(stream, kind, length) if end <= size else None
            texts += inflated or 0
            if inflated is None or texts > 32 * MAX_METADATA_BYTES:
                left_out.append(kind.decode("ascii"))
                position = end
                continue
        kept.append((position, end))
        position = end
        if kind == b"IEND":
            break
    else:
        raise ImageError(f"{name}: the PNG has more than {MAX_PNG_CHUNKS:,} chunks")
    if len(header) < 13:
        raise ImageError(f"{name}: begins as PNG, but its header is damaged or missing")
    if left_out:
        whole, stream = stream, io.BytesIO()
        for ends in [*kept, (position, size)]:
            stream.write(_part(whole, *ends))
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    return Header((width, height), header[8], stream, tuple(dict.fromkeys(left_out)))


def _metadata_size(stream: Stream, kind: bytes, length: int) -> int | None:
    """Return how much text a chunk holds; None if it is damaged or too large. The stream stands at its data."""
    if kind == b"fdAT":  # a later frame of an animation, which nobody reads
        return 0
    is_text = kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
    if is_text and length > 8 * MAX_METADATA_BYTES:
        return None
    data = stream.read(length)
    if zlib.crc32(kind + data) != int.from_bytes(stream.read(4)):
        return None
    if not is_text or kind == b"tEXt":
        return length if is_text else 0
    # The data of all three begin with a keyword, a NUL and what says how they are compressed.
    _, nul, rest = data.partition(b"\0")
    if not nul or not rest:
        return None
    if kind == b"iTXt":
        if len(rest) < 2 or rest[:1] != b"\x01":
            return length
        rest = rest[:1] + rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(rest[1:], MAX_METADATA_BYTES)
    except zlib.error:
        return None
    return None if inflate.unconsumed_tail else len(text)


def _part(stream: Stream, start: int, end: int) -> bytes:
    stream.seek(start)
    return stream.read(max(0, end - start))


# --- GIF -----------------------------------------------------------------------------------------------------------


def _gif(stream: Stream, name: str) -> Header:
    """Read the screen, and the first image if it reaches beyond (GIF89a, sections 18 and 20)."""
    head = stream.read(13)
    if len(head) < 13:
        raise ImageError(f"{name}: begins as GIF, but its header is cut")
    width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if head[10] & 0x80:
        stream.seek(3 << ((head[10] & 7) + 1), io.SEEK_CUR)
    while (introducer := stream.read(1)) == b"!":
        stream.seek(1, io.SEEK_CUR)
        while (count := stream.read(1)) not in (b"", b"\0"):
            stream.seek(count[0], io.SEEK_CUR)
    place = stream.read(8)
    if introducer == b"," and len(place) == 8:
        left, top, across, down = (int.from_bytes(place[at : at + 2], "little") for at in (0, 2, 4, 6))
        width, height = max(width, left + across), max(height, top + down)
    return Header((width, height), 8, stream)


# --- WebP ----------------------------------------------------------------------------------------------------------


def _webp(stream: Stream, name: str) -> Header:
    """Read the canvas, or the one image (RFC 9649, sections 2.5 to 2.7; RFC 6386, section 9.1)."""
    head = stream.read(30)
    kind, size = head[12:16], None
    if kind == b"VP8X" and len(head) == 30:
        size = (int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1)
    elif kind == b"VP8L" and len(head) >= 25:
        packed = int.from_bytes(head[21:25], "little")
        size = ((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1)
    elif kind == b"VP8 " and len(head) == 30:
        size = (int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF)
    if size is None:
        raise ImageError(f"{name}: begins as WebP, but its header is cut or damaged")
    return Header(size, 8, stream)


# --- JPEG ----------------------------------------------------------------------------------------------------------

# Markers of frames (ITU-T T.81, table B.1), and why those of them are refused that no decoder here knows.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xCA}
_HIERARCHICAL = {0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF}
_SCAN = re.compile(rb"\xff\xda")
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _jpeg(stream: Stream, name: str) -> Header:
    """Read the frame, and count the scans: each is a pass over the whole image."""
    with _content(stream) as data:
        return Header(_jpeg_size(data, name), 8, stream)


def _jpeg_size(data: memoryview, name: str) -> tuple[int, int]:
    frame = _jpeg_frame(data)
    if frame is None:
        raise ImageError(f"{name}: begins as JPEG, but is cut or damaged before the image begins")
    kind, at = frame
    if at > MAX_JPEG_HEADER_BYTES:
        raise ImageError(f"{name}: the JPEG has more than {MAX_JPEG_HEADER_BYTES:,} bytes of metadata before the image")
    bits, height, width = data[at], int.from_bytes(data[at + 1 : at + 3]), int.from_bytes(data[at + 3 : at + 5])
    components = data[at + 5]
    what = ""
    if kind == 0xF7:
        what = "JPEG-LS"
    elif kind in _HIERARCHICAL:
        what = "a hierarchical JPEG"
    elif bits != 8:
        what = f"a JPEG with {bits} bits a sample"
    elif components not in (1, 3, 4):
        what = f"a JPEG with {components} components"
    if what:
        raise ImageError(f"{name}: is {what}, which Pillow does not read. Convert it to PNG or to a usual JPEG.")
    # Every scan has this marker. It also stands in thumbnails and in what follows the image, so a count that is small
    # needs no closer look.
    allowed = MAX_SCAN_PIXELS // max(1, width * height)
    count = sum(1 for _ in islice(_SCAN.finditer(data), allowed + 1))
    if count > allowed and (scans := _jpeg_scans(data, at, allowed)) > allowed:
        raise ImageError(
            f"{name}: the JPEG has {scans:,} scans or more over {width * height:,} pixels, and would be decoded for "
            f"minutes; {allowed:,} are allowed at this size"
        )
    if kind in _PROGRESSIVE and len(data) > MAX_PROGRESSIVE_BYTES:
        raise ImageError(
            f"{name}: a progressive JPEG of {len(data):,} bytes would be decoded for minutes; at most "
            f"{MAX_PROGRESSIVE_BYTES:,} are read"
        )
    return width, height


def _content(stream: Stream) -> memoryview:
    """Return the bytes of a file without a second copy of them. Who asks releases the view."""
    if isinstance(stream, io.BytesIO):
        return stream.getbuffer()
    data = bytearray(stream.seek(0, io.SEEK_END))
    stream.seek(0)
    return memoryview(data)[: stream.readinto(data)]


def _jpeg_frame(data: bytes | memoryview) -> tuple[int, int] | None:
    """Return the marker of the first frame and where its content begins."""
    at = 2
    while (found := _NEXT_MARKER.search(data, at)) is not None:
        kind, at = found[0][1], found.end()
        if kind in _FRAMES or kind == 0xF7:
            return (kind, at + 2) if at + 8 <= len(data) else None
        if kind in (0xD9, 0xDA):
            return None
        if kind not in (0x01, 0xD8):
            at += int.from_bytes(data[at : at + 2])
    return None


def _jpeg_scans(data: bytes | memoryview, at: int, enough: int) -> int:
    """Return how many scans follow a frame header; counting stops above `enough`."""
    scans, at = 0, at - 2 + int.from_bytes(data[at - 2 : at])
    while scans <= enough and (found := _NEXT_MARKER.search(data, at)) is not None:
        kind, at = found[0][1], found.end()
        if kind == 0xD9:
            break
        scans += kind == 0xDA
        if kind not in (0x01, 0xD8):
            at += int.from_bytes(data[at : at + 2])
    return scans


def ended_jpeg(data: bytes) -> bytes:
    """Return a JPEG that breaks off with an end-of-image marker, at which decoders complete what they have.

    A table or a scan's header that is cut goes: it would take the marker for a part of itself.
    """
    at = 2
    while (found := _NEXT_MARKER.search(data, at)) is not None:
        at = found.end()
        if found[0][1] not in (0x01, 0xD8, 0xD9):
            at += int.from_bytes(data[at : at + 2]) if at + 2 <= len(data) else 2
        if at > len(data):
            data = data[: found.start()]
    return data.removesuffix(b"\xff") + b"\xff\xd9"


# --- BMP -----------------------------------------------------------------------------------------------------------


def _bmp(stream: Stream, name: str) -> Header:
    """Read the size, and whether it is run-length encoded (BITMAPINFOHEADER): Pillow decodes runs in Python."""
    head = stream.read(38)
    if head[14:15] == b"\x0c":
        return Header((int.from_bytes(head[18:20], "little"), int.from_bytes(head[20:22], "little")), 8, stream)
    if len(head) < 38:
        raise ImageError(f"{name}: begins as BMP, but its header is cut")
    # A negative height says that the first row is the upper one.
    width, height = int.from_bytes(head[18:22], "little"), abs(int.from_bytes(head[22:26], "little", signed=True))
    if head[30] in (1, 2):
        size = stream.seek(0, io.SEEK_END)
        if width * height > MAX_RLE_PIXELS or size > MAX_RLE_BYTES:
            raise ImageError(
                f"{name}: a run-length encoded BMP of {width * height:,} pixels and {size:,} bytes would be decoded "
                f"for minutes; at most {MAX_RLE_PIXELS:,} pixels and {MAX_RLE_BYTES:,} bytes are read. Convert it to "
                f"PNG."
            )
    return Header((width, height), 8, stream)


_READERS: dict[str, Callable[[Stream, str], Header]] = {
    "PNG": _png,
    "GIF": _gif,
    "WEBP": _webp,
    "JPEG": _jpeg,
    "BMP": _bmp,
}
