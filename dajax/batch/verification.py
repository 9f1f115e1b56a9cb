"""Compares what a job has written with its manifest."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from dajax.batch.job import JOB
from dajax.batch.manifest import Manifest, Row
from dajax.batch.sinks import PARQUET, TAR, pyarrow_parquet
from dajax.batch.storage import Storage
from dajax.batch.storage_kinds import open_storage
from dajax.errors import ConfigError, JobRefusedError


@dataclass
class Verified:
    """What was found.

    Attributes:
        whole: how many images have the outputs that the manifest says.
        rejected: how many images have none.
        lost: the keys whose output is missing or damaged, and why. The next run of the job makes them again.
    """

    whole: int = 0
    rejected: int = 0
    lost: dict[str, str] = field(default_factory=dict)


def verify(output: str | os.PathLike[str]) -> Verified:
    """Compare every output with its SHA-256 in the manifest, and record those that differ as lost.

    Args:
        output: the job's folder or fsspec address.

    Raises:
        JobRefusedError: there is no job in this folder.
        JobError: Another process works on it.
        ConfigError: the job has Parquet files, and pyarrow is not installed.
    """
    storage = open_storage(output)
    if not storage.exists(JOB):
        raise JobRefusedError(f"{storage}: no job has written here ({JOB} is missing)")
    with storage.locked():
        return _verify(storage)


def _verify(storage: Storage) -> Verified:
    manifest = Manifest(storage)
    found = Verified()
    faults: list[tuple[Row, str]] = []
    of_shards: dict[str, list[Row]] = {}
    for row in manifest.latest().values():
        if row.status == "rejected":
            found.rejected += 1
        elif row.status == "lost":
            found.lost[row.key] = row.reason
        elif not row.output:
            continue  # a folder that could not be listed once
        elif row.output[0].endswith((TAR, PARQUET)):
            of_shards.setdefault(row.output[0], []).append(row)
        else:
            faults.append((row, _fault_of_files(storage, row)))
    for name, rows in of_shards.items():
        fault = _fault_of_shard(storage, name, rows)
        faults += [(row, fault) for row in rows]
    lost = [replace(row, status="lost", reason=fault, time="") for row, fault in faults if fault]
    found.whole = len(faults) - len(lost)
    found.lost |= {row.key: row.reason for row in lost}
    manifest.append(lost)
    return found


def _fault_of_files(storage: Storage, row: Row) -> str:
    """Return what is wrong with an image's files, or ""."""
    for name, digest in zip(row.output, row.sha256, strict=True):
        if not storage.exists(name):
            return f"{name} is missing"
        with storage.open(name) as file:
            if hashlib.sha256(file.read()).hexdigest() != digest:
                return f"{name} has changed"
    return ""


def _fault_of_shard(storage: Storage, name: str, rows: list[Row]) -> str:
    """Return what is wrong with an output shard, or "". A faulty one is made again as a whole."""
    if not storage.exists(name):
        return f"{name} is missing"
    with storage.open(name) as file:
        data = file.read()
    wanted = sorted(digest for row in rows for digest in row.sha256)
    try:
        found = sorted(hashlib.sha256(content).hexdigest() for content in _contents(name, data))
    except ConfigError:  # pyarrow is missing: nothing is known of the file
        raise
    except Exception as error:  # tarfile and pyarrow raise errors of many types
        return f"{name} cannot be read ({error})"
    return "" if found == wanted else f"{name} has changed"


def _contents(name: str, data: bytes) -> Iterator[bytes]:
    """Yield the files that an output shard holds."""
    if name.endswith(TAR):
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                if not member.name.endswith(".json"):
                    inside = archive.extractfile(member)
                    assert inside is not None
                    yield inside.read()
        return
    table = pyarrow_parquet().read_table(io.BytesIO(data))
    for name in [column.name for column in table.schema if str(column.type) == "large_binary"]:
        yield from (value.as_py() for value in table[name])
