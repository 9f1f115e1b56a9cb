"""What a job has to do: a source's items, less those that the manifest knows, less those of other shares."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dajax.batch.items import Source, find_items
from dajax.batch.job_settings import BatchSettings
from dajax.batch.manifest import Manifest
from dajax.batch.remote import is_remote
from dajax.batch.storage import Storage
from dajax.depth_maps.naming import output_names
from dajax.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        source: all items.
        finished: bool for each item: its row is in the manifest already.
        shared: bool for each item: it is of this process's share.
        names: of the outputs, without ending, for each item.
    """

    source: Source
    finished: np.ndarray
    shared: np.ndarray
    names: list[str]

    @property
    def left(self) -> list[int]:
        """Places of the items that this process has still to do."""
        return [int(i) for i in np.flatnonzero(self.shared & ~self.finished)]

    @property
    def items(self) -> int:
        """How many items are this process's."""
        return int(self.shared.sum())

    @property
    def earlier(self) -> int:
        """How many of them are finished."""
        return int((self.shared & self.finished).sum())


def plan_batch(source: str | os.PathLike[str], output: str | os.PathLike[str], settings: BatchSettings) -> Plan:
    """Return what a job has to do. Nothing is written.

    Raises:
        ImageError, ConfigError, JobError: see `dajax.batch.items.find_items`; or source and output are one folder.
    """
    settings.check()
    leave_out = _check_apart(source, output)
    found = find_items(source, column=settings.column, leave_out=leave_out)
    keys = [item.key for item in found.items]
    storage = Storage.of(output)
    finished = Manifest(storage).finished(rejected=not settings.retry_rejects)
    done = finished.contains(keys)
    if settings.shards:
        # A shard is done where all of it is: of a row that was torn off, the shard is made again.
        for start in range(0, len(done), settings.shards):
            done[start : start + settings.shards] = done[start : start + settings.shards].all()
    shared = np.ones(len(done), bool)
    if settings.share is not None:
        share, shares = settings.share
        shared = np.arange(len(done)) // (settings.shards or 1) % shares == share - 1
    return Plan(found, done, shared, output_names(keys))


def _check_apart(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path | None:
    """Return the local output folder; it must neither be nor hold the source folder."""
    if is_remote(os.fspath(output)):
        return None
    target = Path(output)
    folder = Path(source)
    if folder.is_dir() and target.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(
            f"the output folder {str(target)!r} is or holds the source folder {str(folder)!r}: outputs would be read "
            "as images. Choose another one; inside the source folder is possible"
        )
    return target
