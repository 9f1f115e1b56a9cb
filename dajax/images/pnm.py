"""PNM files (netpbm's pbm, pgm and ppm) that Pillow decodes sample by sample in Python, a second for each megapixel.

These are the plain ones (P1 to P3), whose numbers are text, and those whose largest value is neither 255 nor 65535,
such as the 4095 of a sensor of 12 bits. The formats are those of netpbm's manual pages pbm(5), pgm(5) and ppm(5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dajax.errors import ImageError
from dajax.images.formats import Stream
from dajax.images.pixels import ValueRange, chosen_range, narrow_range, scaled

_MAX_HEADER = 65_536
# Bytes of text that are read at once.
_TEXT_AT_ONCE = 1 << 20
_TOKEN = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*(\d{1,9})")
_COMMENT = re.compile(rb"#[^\r\n]*[\r\n]?")


@dataclass(frozen=True)
class Pnm:
    """What the header of a PNM file says.

    Attributes:
        kind: the digit of its first two bytes, 1 to 6.
        size: (width, height).
        white: the largest value, 1 for the kinds 1 and 4.
        start: where the samples begin.
    """

    kind: int
    size: tuple[int, int]
    white: int
    start: int

    @property
    def channels(self) -> int:
        """3 for colours, otherwise 1."""
        return 3 if self.kind in (3, 6) else 1

    @property
    def is_slow(self) -> bool:
        """Whether Pillow would take a second for each megapixel, and colours of 16 bits lose their range."""
        quick = (255,) if self.channels == 3 else (255, 65_535)
        return self.kind <= 3 or (self.kind != 4 and self.white not in quick)


def read_pnm_header(stream: Stream, name: str) -> Pnm | None:
    """Read the header; None for the kinds that are not of netpbm (PFM and Pillow's own).

    Raises:
        ImageError: the header is cut or damaged.
    """
    stream.seek(0)
    head = stream.read(_MAX_HEADER)
    if not b"1" <= head[1:2] <= b"6":
        return None
    kind, at, numbers = int(head[1:2]), 2, []
    for _ in range(2 if kind in (1, 4) else 3):
        found = _TOKEN.match(head, at)
        if found is None:
            raise ImageError(f"{name}: begins as PNM, but its header is cut or damaged")
        at = found.end()
        numbers.append(int(found[1]))
    white = 1 if kind in (1, 4) else numbers[2]
    if not 0 < white < 65_536:
        raise ImageError(f"{name}: begins as PNM, but its largest value is {white}; expected 1 to 65535")
    return Pnm(kind, (numbers[0], numbers[1]), white, at + 1)


def read_pnm(
    stream: Stream, header: Pnm, name: str, value_range: ValueRange | None, partial: bool, notes: list[str]
) -> Image.Image:
    """Read the samples as an 8-bit image of mode L or RGB; 0 is black and the header's largest value white.

    Args:
        stream: the file.
        header: what `read_pnm_header` says of it.
        name: what messages call the image.
        value_range: (black, white) or "auto", for values of more than 8 bits.
        partial: whether to take what there is of a file that breaks off.
        notes: what is to be said about the image is put here.

    Raises:
        ImageError: samples are missing, too large, or no numbers.
    """
    width, height = header.size
    count = width * height * header.channels
    samples = np.zeros(count, np.uint8 if header.white < 256 else np.uint16)
    stream.seek(header.start)
    found = _read_text(stream, samples, header, name) if header.kind <= 3 else _read_bytes(stream, samples)
    if found < count:
        if not partial:
            raise ImageError(
                f"{name}: begins as PNM, but is truncated: {found:,} of {count:,} samples are there. Pass "
                f"allow_truncated=True to take what there is."
            )
        notes.append("is truncated; what is missing is blank")
    largest = int(samples.max())
    if largest > header.white:
        raise ImageError(
            f"{name}: begins as PNM, but has a sample {largest}, more than its largest value {header.white}"
        )
    if header.kind == 1:
        np.subtract(1, samples, out=samples)  # in a bitmap 1 is black
    levels, is_wide = (0.0, float(header.white)), header.white > 255
    if is_wide:
        extent = (float(samples[:found].min(initial=largest)), float(largest))
        if value_range is not None:
            levels = chosen_range(extent, name, value_range, unsigned_bits=16, what="a PNM")
        narrow_range(extent, levels, notes, is_chosen=value_range is not None)
    pixels = scaled(samples.reshape(height, width, header.channels), *levels)
    return Image.fromarray(pixels if header.channels == 3 else pixels[:, :, 0])


def _read_bytes(stream: Stream, samples: np.ndarray) -> int:
    """Fill in the samples of a raw file, and return how many there are. Two bytes are big-endian."""
    read = stream.readinto(samples.view(np.uint8).data)
    if samples.dtype == np.uint16:
        samples.byteswap(inplace=True)
    return int(read) // samples.itemsize


def _read_text(stream: Stream, samples: np.ndarray, header: Pnm, name: str) -> int:
    """Fill in the samples of a plain file, and return how many there are. A comment goes to the end of its line."""
    at, rest = 0, b""
    while at < len(samples):
        read = stream.read(_TEXT_AT_ONCE)
        text, rest = rest + read, b""
        if read:
            # What may go on in the next part is left for it: a comment, or a number.
            text, rest = _divided(text, header.kind == 1)
            if len(rest) > 2 * _TEXT_AT_ONCE:
                raise ImageError(f"{name}: begins as PNM, but has no end of a line or number for a megabyte")
        text = _COMMENT.sub(b" ", text)
        values = _numbers(text, header.kind == 1)
        if values is None or (values.size and (values.min() < 0 or values.max() > header.white)):
            raise ImageError(f"{name}: begins as PNM, but its samples are not numbers from 0 to {header.white}")
        values = values[: len(samples) - at]
        samples[at : at + len(values)] = values
        at += len(values)
        if not read:
            break
    return at


def _divided(text: bytes, are_digits: bool) -> tuple[bytes, bytes]:
    comment = text.rfind(b"#")
    if comment >= 0 and not re.search(rb"[\r\n]", text[comment:]):
        return text[:comment], text[comment:]
    if are_digits:
        return text, b""
    cut = max(text.rfind(space) for space in (b" ", b"\n", b"\t", b"\r")) + 1
    return text[:cut], text[cut:]


def _numbers(text: bytes, are_digits: bool) -> np.ndarray | None:
    """Return the numbers in a text; in a plain bitmap every digit is one, with or without space between them."""
    if are_digits:
        digits = np.frombuffer(b"".join(text.split()), np.uint8)
        return None if digits.size and not np.isin(digits, (48, 49)).all() else digits.astype(np.int64) - 48
    if text.translate(None, b"0123456789 \t\r\n\v\f"):
        return None
    return np.fromstring(text, np.int64, sep=" ") if text.strip() else np.zeros(0, np.int64)
