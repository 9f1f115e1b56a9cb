"""Reads the zip archive that a PyTorch file is, and checks its records against their checksums.

Python's zipfile takes much that torch.save never writes. Here an archive is what torch.save makes of it: records are
stored as they are, without holes or overlaps from the file's first byte to its directory, all in one folder; a
record's own header says what the directory says; and the directory ends the file.

The format: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dajax import limits
from dajax.errors import WeightsError, shown

# In the directory: signature, flags, method, checksum, stored size, size, lengths of name, extra fields and comment,
# disk, position. Versions, time, date and attributes are not read.
_ENTRY = struct.Struct("<4s4x2H4x3L4H6xL")
# Before a record: signature, flags, method, checksum, stored size, size, lengths of name and extra fields.
_HEADER = struct.Struct("<4s2x2H4x3L2H")
# Behind a record: signature, checksum, stored size, size.
_DESCRIPTORS = (struct.Struct("<4s3L"), struct.Struct("<4sL2Q"))
# At the end: signature, disks, counts of records, size and position of the directory, length of a comment.
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ4x2L4Q")
_LOCATOR = struct.Struct("<4sLQL")

_SATURATED = 0xFFFFFFFF  # the number is in an extra field of 64 bits
_DESCRIPTOR_FLAG, _UTF8_FLAG = 1 << 3, 1 << 11
# During zlib's work other threads can run, and what it reads is still in the cache.
_CHUNK = 1 << 20


class Record(NamedTuple):
    """The place of one record in the file, and its CRC-32."""

    start: int
    size: int
    crc: int


class TorchZip:
    """An archive whose directory has been read and checked.

    Attributes:
        records: {name below the archive's one folder: where it lies}.

    Raises:
        WeightsError: it is damaged, or other than torch.save writes.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._verified: set[str] = set()
        self.records = _below_root(_read_records(file, path), path)

    def content(self, name: str, most: int) -> bytes:
        """Return a whole record.

        Raises:
            WeightsError: it has more than `most` bytes, or is damaged.
        """
        size = self.records[name].size
        if size > most:
            raise WeightsError(f"{self._path}: {shown(name)} has {size:,} bytes; at most {most:,} are read")
        data = bytearray(size)
        self.read(name, 0, memoryview(data))
        return bytes(data)

    def read(self, name: str, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes of a record from `start` on, after checking the whole record against its checksum.

        Several threads may read at once.

        Raises:
            WeightsError: the record is damaged.
        """
        record = self.records[name]
        if len(view) == record.size:
            self._check(name, view)
        else:
            self.verify(name)
            _pread(self._file, view, record.start + start, self._path)

    def verify(self, name: str) -> None:
        """Check a record against its checksum if that has not been done.

        Raises:
            WeightsError: it is damaged.
        """
        if name not in self._verified:
            self._check(name, None)

    def _check(self, name: str, view: memoryview | None) -> None:
        """Check a record against its checksum, and leave its bytes in `view`."""
        record, crc = self.records[name], 0
        chunk = memoryview(bytearray(0 if view is not None else min(_CHUNK, record.size)))
        for done in range(0, record.size, _CHUNK):
            part = chunk[: record.size - done] if view is None else view[done : done + _CHUNK]
            _pread(self._file, part, record.start + done, self._path)
            crc = zlib.crc32(part, crc)
        if crc != record.crc:
            raise WeightsError(
                f"{self._path} is damaged: record {shown(name)} has checksum {crc:08x}, {record.crc:08x} was expected"
            )
        self._verified.add(name)


def _pread(file: BinaryIO, view: memoryview, position: int, path: Path) -> None:
    # pread keeps no position, so threads can read at the same time.
    done = 0
    while done < len(view):
        got = os.preadv(file.fileno(), [view[done:]], position + done)
        if not got:
            raise WeightsError(f"{path} became shorter while it was read")
        done += got


def _bytes_at(file: BinaryIO, position: int, count: int, path: Path) -> bytes:
    if position < 0 or position + count > os.fstat(file.fileno()).st_size:
        raise WeightsError(f"{path} is cut off or damaged: bytes {position}..{position + count} are not in it")
    data = bytearray(count)
    _pread(file, memoryview(data), position, path)
    return bytes(data)


class _Entry(NamedTuple):
    name: str
    raw_name: bytes
    flags: int
    crc: int
    size: int
    start: int


def _read_records(file: BinaryIO, path: Path) -> dict[str, Record]:
    directory, count, directory_start = _read_directory(file, path)
    entries, position = [], 0
    for _ in range(count):
        entry, position = _read_entry(directory, position, path)
        entries.append(entry)
    if position != len(directory):
        raise WeightsError(f"{path} has a damaged directory: {len(directory) - position} bytes belong to no record")
    name, times = Counter(entry.name for entry in entries).most_common(1)[0]
    if times > 1:
        raise WeightsError(f"{path}: record {shown(name)} stands {times} times in the directory")
    entries.sort(key=lambda entry: entry.start)
    records, position = {}, 0
    for entry, stop in zip(entries, [*(entry.start for entry in entries[1:]), directory_start], strict=True):
        if entry.start != position:
            raise WeightsError(f"{path}: bytes {position}..{entry.start} belong to no record")
        records[entry.name] = _locate(file, entry, stop, path)
        position = stop
    return records


def _read_directory(file: BinaryIO, path: Path) -> tuple[bytes, int, int]:
    """Return the directory, the number of its entries, and where it starts."""
    size = os.fstat(file.fileno()).st_size
    end_at = size - _END.size
    signature, *disks, count_here, count, length, start, comment = _END.unpack(_bytes_at(file, end_at, _END.size, path))
    if signature != b"PK\5\6" or comment:
        raise WeightsError(
            f"{path} is cut off, or something was appended: it does not end in a zip archive's directory"
        )
    locator_at = end_at - _LOCATOR.size
    if locator_at >= 0 and (locator := _bytes_at(file, locator_at, _LOCATOR.size, path)).startswith(b"PK\6\7"):
        _, disk, end64_at, all_disks = _LOCATOR.unpack(locator)
        signature, rest, *disks64, count_here64, count64, length64, start64 = _END64.unpack(
            _bytes_at(file, locator_at - _END64.size, _END64.size, path)
        )
        pairs = ((count_here, count_here64, 0xFFFF), (count, count64, 0xFFFF), (length, length64, _SATURATED),
                 (start, start64, _SATURATED))  # fmt: skip
        if (
            (signature, rest, disk, all_disks, disks64) != (b"PK\6\6", _END64.size - 12, 0, 1, [0, 0])
            or end64_at != locator_at - _END64.size
            or any(narrow not in (wide, saturated) for narrow, wide, saturated in pairs)
        ):
            raise WeightsError(f"{path} has a damaged directory: its two ends do not agree")
        end_at, count_here, count, length, start = end64_at, count_here64, count64, length64, start64
    if disks != [0, 0] or count_here != count or start + length != end_at:
        raise WeightsError(f"{path} has a damaged directory: it is not where and as long as its end says")
    if not 0 < count <= limits.MAX_TORCH_RECORDS or length > count * limits.MAX_TORCH_ENTRY_BYTES:
        raise WeightsError(
            f"{path} has a directory of {count:,} records in {length:,} bytes; "
            f"1 to {limits.MAX_TORCH_RECORDS:,} of up to {limits.MAX_TORCH_ENTRY_BYTES} bytes each are read"
        )
    return _bytes_at(file, start, length, path), count, start


def _read_entry(directory: bytes, position: int, path: Path) -> tuple[_Entry, int]:
    """Return one entry of the directory, and the position of the next one."""
    name_at = position + _ENTRY.size
    if name_at > len(directory):
        raise WeightsError(f"{path} has a damaged directory: it ends within a record's entry")
    (signature, flags, method, crc, stored, size, name_length, extra_length, comment_length, disk, start) = (
        _ENTRY.unpack_from(directory, position)
    )
    extra_at = name_at + name_length
    stop = extra_at + extra_length + comment_length
    if signature != b"PK\1\2" or disk or stop > len(directory):
        raise WeightsError(f"{path} has a damaged directory: no record's entry at its byte {position}")
    raw_name = directory[name_at:extra_at]
    name = _checked_name(raw_name, path)
    size, stored, start = _widen([size, stored, start], directory[extra_at : extra_at + extra_length], name, path)
    if flags & ~(_DESCRIPTOR_FLAG | _UTF8_FLAG):
        raise WeightsError(f"{path}: record {shown(name)} is encrypted, or of another kind than torch.save writes")
    if method != 0 or stored != size:
        raise WeightsError(
            f"{path}: record {shown(name)} is compressed: the file is TorchScript's, or was packed anew. "
            "Save model.state_dict() with torch.save"
        )
    return _Entry(name, raw_name, flags, crc, size, start), stop


def _checked_name(raw: bytes, path: Path) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise WeightsError(f"{path}: the name of record {shown(raw)} is not UTF-8") from None
    parts = name.split("/")
    # The name is never used as a path, but no honest file has such a name.
    if re.search(r"[\\\0]", name) or re.match("[A-Za-z]:", name) or len(parts) < 2 or {"", ".", ".."} & {*parts}:
        raise WeightsError(f"{path}: a record is named {shown(name)}: expected folder/name")
    return name


def _widen(numbers: list[int], extra: bytes, name: str, path: Path) -> list[int]:
    """Replace numbers that do not fit into 32 bits by those of the extra field with number 1."""
    if _SATURATED not in numbers:
        return numbers
    position, wide = 0, b""
    while position + 4 <= len(extra):
        number, length = struct.unpack_from("<2H", extra, position)
        if number == 1:
            wide = extra[position + 4 : position + 4 + length]
            break
        position += 4 + length
    if len(wide) != 8 * numbers.count(_SATURATED):
        raise WeightsError(f"{path}: the sizes of record {shown(name)} are damaged")
    values = iter(struct.unpack(f"<{len(wide) // 8}Q", wide))
    return [next(values) if number == _SATURATED else number for number in numbers]


def _locate(file: BinaryIO, entry: _Entry, stop: int, path: Path) -> Record:
    """Check the headers around a record against the directory, and return the place of the record."""
    header = _bytes_at(file, entry.start, _HEADER.size + len(entry.raw_name), path)
    signature, flags, method, crc, stored, size, name_length, extra_length = _HEADER.unpack_from(header)
    start = entry.start + len(header) + extra_length
    if stored == _SATURATED or size == _SATURATED:
        extra = _bytes_at(file, start - extra_length, extra_length, path)
        size, stored = _widen([size, stored], extra, entry.name, path)
    expected = (entry.crc, entry.size, entry.size)
    behind = stop - start - entry.size
    if flags & _DESCRIPTOR_FLAG:
        kind = next((kind for kind in _DESCRIPTORS if kind.size == behind), None)
        described = (
            (crc, stored, size) in (expected, (0, 0, 0))
            and kind is not None
            and kind.unpack(_bytes_at(file, stop - behind, behind, path)) == (b"PK\7\x08", *expected)
        )
    else:
        described = (crc, stored, size) == expected and behind == 0
    same = (signature, flags, method, name_length) == (b"PK\3\4", entry.flags, 0, len(entry.raw_name))
    if not same or not described or header[_HEADER.size :] != entry.raw_name:
        raise WeightsError(f"{path}: record {shown(entry.name)} is not what the directory says of it")
    return Record(start, entry.size, entry.crc)


def _below_root(records: dict[str, Record], path: Path) -> dict[str, Record]:
    """Return the records, keyed by their names within the archive's folder."""
    roots = sorted({name.split("/")[0] for name in records})
    if len(roots) > 1:
        raise WeightsError(
            f"{path} has several folders, {shown(roots[0])} and {shown(roots[1])}: torch.save writes one"
        )
    pickles = [name for name in records if name.endswith("/data.pkl")]
    if pickles != [f"{roots[0]}/data.pkl"]:
        raise WeightsError(
            f"{path} is a zip archive, but not one that torch.save wrote: expected one data.pkl, found {shown(pickles)}"
        )
    return {name.partition("/")[2]: record for name, record in records.items()}
