"""Finds out whether a video file ends within a part of itself, as one does whose download or recording broke off."""

from __future__ import annotations

import os
from typing import BinaryIO

# Matroska (RFC 9559, 5.1): the header, the segment and its parts, and the parts of a cluster.
_EBML = 0x1A45DFA3
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_PARTS = {
    _EBML, _SEGMENT, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, _CLUSTER,
    0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0xEC, 0xBF,
}  # fmt: skip
# ISO/IEC 14496-12 and QuickTime: the boxes at the top of a file.
_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"free", b"skip", b"wide", b"sidx", b"styp", b"uuid", b"udta"}


def is_cut_off(path: str | os.PathLike[str]) -> bool:
    """Say whether an MP4, MOV, Matroska or WebM file ends before a part of it does.

    FFmpeg reads such Matroska files without a word. No length in seconds and no number of frames is looked at. Of other
    formats the answer is no.

    Raises:
        OSError: the file cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(4) == _EBML.to_bytes(4):
            file.seek(0)
            return _matroska_end(file, size) > size
        return _boxes_end(file, size) > size


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Return where the last box ends; 0 if what follows the boxes is no box."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4])
        if head[4:8] not in _BOXES:
            return 0
        if length == 1:  # eight bytes follow
            length = int.from_bytes(head[8:16])
        if length < 8:  # 0: the box goes to the end of the file
            return 0
        at += length
    return at


def _matroska_end(file: BinaryIO, size: int) -> int:
    """Return where the last part ends; 0 if it is not known."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        number = 4 if head[0] & 0xF0 == 0x10 else 1  # all identifiers above have four bytes or one
        kind = int.from_bytes(head[:number])
        if len(head) == number and kind in _PARTS:
            return size + 1
        if kind not in _PARTS or not head[number]:
            return 0
        width = 9 - head[number].bit_length()
        most = (1 << 7 * width) - 1
        length = int.from_bytes(head[number : number + width]) & most
        at += number + width
        if kind == _SEGMENT:  # its parts follow
            continue
        if length < most:
            at += length
        elif kind != _CLUSTER:  # all ones: the length is not known, and the parts of the cluster follow
            return 0
    return at
