"""What format a file is in, by the bytes it begins with, whatever its name says."""

from __future__ import annotations

import io
import re

# A file that is open for reading and can seek.
Stream = io.BytesIO | io.BufferedReader
# Formats that may reach a decoder, under Pillow's names. Not among them are those that run programs (EPS) or are no
# images (PSD, FITS, PDF, DDS, ...). MPO comes through JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")
# Bytes that are enough for `format_of`.
HEAD_BYTES = 512

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
# The sizes that the second header of a BMP can have stand after the first header's 14 bytes.
_BEGINNINGS = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("GIF", rb"GIF8[79]a"),
    ("WEBP", rb"RIFF....WEBP"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]|MM\*\0|II\0\*"),
    ("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    ("PPM", rb"P[1-6f][\s#]|P0CMYK|PyP|PyRGBA|PyCMYK"),
)
_PATTERNS = tuple((name, re.compile(pattern, re.DOTALL)) for name, pattern in _BEGINNINGS)
# What people also bring: a message that names it helps more than its first bytes.
_OTHERS = (
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"PF", "a PFM file with three channels"),
    (b"P7", "a PAM file"),
    (b"8BPS", "a Photoshop file"),
    (b"%!PS", "PostScript"),
    (b"%PDF", "a PDF file"),
    (b"DDS ", "a DDS texture"),
    (b"SIMPLE  =", "a FITS file"),
    (b"II\xbc", "a JPEG XR image"),
    (b"IIRO", "a camera's raw file"),
    (b"IIRS", "a camera's raw file"),
    (b"IIU\x00", "a camera's raw file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
)


def format_of(head: bytes) -> str | None:
    """Return the format that a file begins as: one of `FORMATS`, "HEIF", or None for anything else.

    Args:
        head: the first bytes of the file, `HEAD_BYTES` of them if it has so many.
    """
    if head[4:8] == b"ftyp":
        return _format_of_box(head)
    return next((name for name, pattern in _PATTERNS if pattern.match(head)), None)


def kind_of_other(head: bytes) -> str:
    """Return what a file is that is in none of the formats, such as "a PDF file"; "" if that is not known."""
    if head[4:12] == b"ftypcrx ":
        return "a camera's raw file"
    return next((what for beginning, what in _OTHERS if head.startswith(beginning)), "")


def _format_of_box(head: bytes) -> str | None:
    """By the brands of the file-type box (ISO/IEC 14496-12, 4.3); HEIC and AVIF share some of the brands."""
    box = head[8 : int.from_bytes(head[:4])]
    major, brands = head[8:12], {box[at : at + 4] for at in range(0, len(box), 4)}
    if major in _AVIF_BRANDS or (major in _HEIC_BRANDS and brands & _AVIF_BRANDS):
        return "AVIF"
    return "HEIF" if major in _HEIC_BRANDS else None
