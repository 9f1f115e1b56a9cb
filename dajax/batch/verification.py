"""Looks again at what a job has written."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from dajax.batch.commit import lost
from dajax.batch.job import JOB
from dajax.batch.manifest import Manifest, Row
from dajax.batch.storage import Storage
from dajax.batch.storage_kinds import open_storage
from dajax.errors import ConfigError, JobRefusedError


@dataclass
class Verified:
    """What was found.

    Attributes:
        whole: outputs that are what the manifest says.
        rejected: items that have none.
        lost: keys whose output is missing or damaged, and why; the next run of the job does them again.
    """

    whole: int = 0
    rejected: int = 0
    lost: dict[str, str] = field(default_factory=dict)


def verify(output: str | os.PathLike[str]) -> Verified:
    """Compare every output with its SHA-256 in the manifest, and record those that are not whole as lost.

    Raises:
        JobError: there is no job in this folder, or another process works on it.
    """
    storage = open_storage(output)
    if not storage.exists(JOB):
        raise JobRefusedError(f"{storage}: no job has written here ({JOB} is missing)")
    with storage.locked():
        return _verify(storage)


def _verify(storage: Storage) -> Verified:
    manifest = Manifest(storage)
    found = Verified()
    of_shards: dict[str, list[Row]] = {}
    rows = []

    def note(row: Row, reason: str) -> None:
        if reason:
            found.lost[row.key] = reason
            rows.append(lost(row, reason))
        else:
            found.whole += 1

    for row in manifest.latest().values():
        if row.status == "rejected":
            found.rejected += 1
        elif row.status == "lost":
            found.lost[row.key] = row.reason
        elif len(row.output) == len(row.sha256) and not row.output[0].endswith((".tar", ".parquet")):
            note(row, _fault_of_files(storage, row))
        else:
            of_shards.setdefault(row.output[0], []).append(row)
    for name, members in of_shards.items():
        fault = _fault_of_shard(storage, name, members)
        for row in members:
            note(row, fault)
    manifest.append(rows)
    return found


def _fault_of_files(storage: Storage, row: Row) -> str:
    for name, digest in zip(row.output, row.sha256, strict=True):
        if not storage.exists(name):
            return f"{name} is missing"
        with storage.open(name) as file:
            if hashlib.sha256(file.read()).hexdigest() != digest:
                return f"{name} has changed"
    return ""


def _fault_of_shard(storage: Storage, name: str, rows: list[Row]) -> str:
    """Return what is wrong with a shard; it is made again as a whole."""
    if not storage.exists(name):
        return f"{name} is missing"
    wanted = sorted(digest for row in rows for digest in row.sha256)
    try:
        with storage.open(name) as file:
            found = sorted(hashlib.sha256(data).hexdigest() for data in _contents(name, file.read()))
    except Exception as error:  # tarfile and pyarrow have errors of many types
        return f"{name} cannot be read ({error})"
    return "" if found == wanted else f"{name} has changed"


def _contents(name: str, data: bytes) -> Iterator[bytes]:
    if name.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                if not member.name.endswith(".json"):
                    inside = archive.extractfile(member)
                    assert inside is not None
                    yield inside.read()
        return
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError("Parquet shards need pyarrow: pip install pyarrow") from error
    table = pq.read_table(io.BytesIO(data))
    for column in table.column_names[3:]:
        yield from (value.as_py() for value in table[column])
