"""The record of a job: a row of JSON for each image.

Each process appends its rows to a file of its own, a *part* of the manifest. If a killed process left an incomplete row
at the end of its part, that row is ignored.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from json.encoder import encode_basestring_ascii
from typing import Literal

import numpy as np

from dajax.batch.storage import Storage
from dajax.batch.storage_kinds import open_storage
from dajax.depth_maps.naming import digest
from dajax.errors import JobRefusedError

Status = Literal["done", "rejected", "lost"]
_START, _END = b'{"key": "', b"}\n"
_STATUS, _STAMP_FIELD, _AFTER_STAMP = b'", "status": "', b'", "stamp": "', b'", "output": '
# The last bytes of a part may not have reached the disk when the machine went down: rows there are parsed as a check.
_TAIL = 1 << 20
# The statuses by their first letters, as `Known` has them.
DONE, REJECTED, LOST = b"drl"


@dataclass(frozen=True)
class Row:
    """What became of an image.

    Attributes:
        key: the key of the item.
        status: "done"; "rejected", for the given reason; or "lost": it was done, but `verify` found its output missing
            or changed.
        output: its files, relative to the output folder; or the one output shard that it is in.
        sha256: the SHA-256 of each of its files; for an output shard, of each file of this image in it.
        shape: [height, width] of the depth map.
        reason: Why it was rejected or is lost.
        notes: what the reader said about the image, such as that it has several frames, and what its files lack, such
            as values that do not fit into a PNG.
        quality: what tells good depth maps from bad ones, see `dajax.batch.quality.quality`; empty without depth map.
        stamp: what tells whether the image has changed since it was read, see `dajax.batch.stamps`; "" if not known.
        time: When the row was written, in UTC.
    """

    key: str
    status: Status
    output: list[str] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    shape: list[int] = field(default_factory=list)
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    quality: dict[str, float] = field(default_factory=dict)
    stamp: str = ""
    time: str = ""

    def line(self) -> bytes:
        """Return the row as a line of ASCII, with the present time if it has none."""
        now = self.time or datetime.now(UTC).isoformat(timespec="seconds")
        # The first three are found again without parsing the row, see `_parts`.
        first = {"key": self.key, "status": self.status, "stamp": self.stamp}
        return json.dumps(first | asdict(self) | {"time": now}).encode("ascii") + b"\n"


_STAMP = "%Y%m%dT%H%M%S.%fZ"


class Manifest:
    """All parts of a job's manifest; this process appends to one of its own.

    Args:
        storage: the output folder.
        folder: the folder of the parts, relative to the output folder.
    """

    def __init__(self, storage: Storage, folder: str = ".dajax/manifest") -> None:
        self._storage, self._folder = storage, folder
        self._name = ""

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows. On return they survive a crash."""
        data = b"".join(row.line() for row in rows)
        if data:
            self._name = self._name or self._new_name()
            self._storage.append(self._name, data)

    def parts(self) -> list[str]:
        """Return the names of all parts, oldest first."""
        return [name for name in self._storage.list(self._folder) if name.endswith(".jsonl")]

    def _new_name(self) -> str:
        """Return a name that is sorted after those of all parts, whatever the clocks of the machines say."""
        now = datetime.now(UTC)
        for name in self.parts():
            with suppress(ValueError):
                stamp = datetime.strptime(name.rpartition("/")[2].partition("-")[0], _STAMP).replace(tzinfo=UTC)
                now = max(now, stamp + timedelta(microseconds=1))
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]
        return f"{self._folder}/{now.strftime(_STAMP)}-{host}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"

    def rows(self) -> Iterator[Row]:
        """Yield all rows, those of the oldest part first. If a key has several rows, the last one counts."""
        for line in self._lines():
            yield _row(line)

    def latest(self) -> dict[str, Row]:
        """Return the last row of each key."""
        return {row.key: row for row in self.rows()}

    def rejects(self) -> list[Row]:
        """Return the rows of the rejected keys. The memory that this takes depends on their number alone."""
        found: dict[bytes, Row] = {}
        for line in self._lines():
            key, status, _ = _parts(line)
            if status == REJECTED:
                found[_digest_of_text(key)] = _row(line)
            elif found:
                found.pop(_digest_of_text(key), None)
        return list(found.values())

    def known(self) -> Known:
        """Return what the last rows of all keys say, in short. Ten million rows take less than a minute."""
        digests, statuses, stamps = bytearray(), bytearray(), array("q")
        folders: dict[bytes, int] = {}
        for line in self._lines():
            key, status, stamp = _parts(line)
            digests += _digest_of_text(key)
            statuses.append(status)
            stamps.append(stamp)
            if key.endswith(b"/"):
                folders[key] = status
        unlisted = [json.loads(b'"' + key + b'"') for key, status in folders.items() if status == REJECTED]
        return Known(digests, statuses, stamps, unlisted)

    def _lines(self) -> Iterator[bytes]:
        for name in self.parts():
            with self._storage.open(name) as file:
                size = self._storage.size(name)
                place = 0
                for line in file:
                    place += len(line)
                    if not _is_whole(line, careful=place > size - _TAIL):
                        if place < size:
                            raise JobRefusedError(
                                f"{name}: the row at byte {place - len(line)} is damaged, and it is not the last one: "
                                "something else than dajax has written to this file. Move the file away; then the "
                                "images that it recorded are done again"
                            )
                        break
                    yield line


class Known:
    """Status and stamp of very many keys, in 25 bytes each.

    Args:
        digests: the digests of the rows' keys, one behind the other.
        statuses: the status of each row, see `DONE`.
        stamps: `stamp_number` of each row.
        unlisted: the rejected keys of folders.

    Attributes:
        unlisted: the folders that could not be listed.
    """

    def __init__(
        self,
        digests: bytes | bytearray,
        statuses: bytes | bytearray,
        stamps: Sequence[int],
        unlisted: Sequence[str] = (),
    ) -> None:
        self.unlisted = list(unlisted)
        pairs = np.frombuffer(digests, np.dtype([("high", ">u8"), ("low", ">u8")]))
        high, low = pairs["high"].astype(np.uint64), pairs["low"].astype(np.uint64)
        # The sort is stable: the last one of several rows with the same key stays last.
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        last = np.ones(len(order), bool)
        last[:-1] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        kept = order[last]
        self._high, self._low = high[last], low[last]
        self._statuses = np.frombuffer(statuses, np.uint8)[kept]
        self._stamps = np.asarray(stamps, np.int64)[kept]

    def __len__(self) -> int:
        return len(self._high)

    def look_up(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return uint8 [keys], the status of each key or 0, and int64 [keys], the number of its stamp or 0."""
        pairs = np.frombuffer(b"".join(map(_digest_of, keys)), np.dtype([("high", ">u8"), ("low", ">u8")]))
        high, low = pairs["high"].astype(np.uint64), pairs["low"].astype(np.uint64)
        statuses, stamps = np.zeros(len(keys), np.uint8), np.zeros(len(keys), np.int64)
        place = np.searchsorted(self._high, high)
        # Keys whose digests have the same first half are next to each other.
        open_ = np.arange(len(keys))
        while len(open_):
            open_ = open_[place[open_] < len(self._high)]
            open_ = open_[self._high[place[open_]] == high[open_]]
            hit = self._low[place[open_]] == low[open_]
            found = open_[hit]
            statuses[found], stamps[found] = self._statuses[place[found]], self._stamps[place[found]]
            open_ = open_[~hit]
            place[open_] += 1
        return statuses, stamps


def stamp_number(stamp: str) -> int:
    """Return a number that stands for a stamp within this process; 0 for "", which tells nothing."""
    return _number(_json_text(stamp)) if stamp else 0


def _number(text: bytes) -> int:
    return hash(text) if text else 0


def _parts(line: bytes) -> tuple[bytes, int, int]:
    """Return a row's key as JSON text, the first letter of its status, and the number of its stamp."""
    # The status begins after the key, whose JSON text has no quotation mark without a backslash; so has the stamp.
    end = line.index(_STATUS)
    status = end + len(_STATUS)
    stamp = line.index(_STAMP_FIELD, status) + len(_STAMP_FIELD)
    return line[len(_START) : end], line[status], _number(line[stamp : line.index(_AFTER_STAMP, stamp)])


def _digest_of(key: str) -> bytes:
    return _digest_of_text(_json_text(key))


def _json_text(text: str) -> bytes:
    """Return what stands between the quotation marks where `json.dumps` writes this text."""
    return encode_basestring_ascii(text)[1:-1].encode("ascii")


def _digest_of_text(text: bytes) -> bytes:
    return digest(text.decode("ascii"))


def _is_whole(line: bytes, *, careful: bool) -> bool:
    if not (line.startswith(_START) and line.endswith(_END) and _STATUS in line and _STAMP_FIELD in line):
        return False
    if careful:
        try:
            _row(line)
        except (ValueError, TypeError, KeyError):
            return False
    return True


def _row(line: bytes) -> Row:
    return Row(**json.loads(line))


def read_rejects(output: str | os.PathLike[str]) -> list[Row]:
    """Return the rows of the images that a job left out.

    Args:
        output: the job's folder or fsspec address.

    Raises:
        JobError: the manifest cannot be read.
    """
    return Manifest(open_storage(output)).rejects()


def read_manifest(output: str | os.PathLike[str]) -> dict[str, Row]:
    """Return the row of each image of a job, by key.

    Args:
        output: the job's folder or fsspec address.

    Raises:
        JobError: the manifest cannot be read.
    """
    return Manifest(open_storage(output)).latest()
