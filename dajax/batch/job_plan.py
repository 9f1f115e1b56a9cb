"""What a process has to do: its part of the source's items, without those that the manifest has already."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dajax.batch.items import Source, find_items
from dajax.batch.job_settings import BatchSettings
from dajax.batch.manifest import Manifest
from dajax.batch.remote import is_remote
from dajax.batch.storage_kinds import open_storage
from dajax.depth_maps.naming import output_names
from dajax.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """What a process has to do.

    Attributes:
        source: all items of the source, those of other processes included.
        finished: bool [items]: the manifest has a row that says so.
        mine: bool [items]: this process does it.
        names: the output name of each item, without ending.
    """

    source: Source
    finished: np.ndarray
    mine: np.ndarray
    names: list[str]

    @property
    def left(self) -> list[int]:
        """Places, in `source.items`, of what this process has still to do."""
        return [int(i) for i in np.flatnonzero(self.mine & ~self.finished)]

    @property
    def items(self) -> int:
        """How many items this process does."""
        return int(self.mine.sum())

    @property
    def earlier(self) -> int:
        """How many of this process's items are finished."""
        return int((self.mine & self.finished).sum())


def plan_batch(source: str | os.PathLike[str], output: str | os.PathLike[str], settings: BatchSettings) -> Plan:
    """Return what a process has to do. Nothing is written.

    Args:
        source: see `dajax.batch.items.find_items`.
        output: the job's folder or fsspec address; it need not exist.
        settings: how the job is done.

    Raises:
        ConfigError: a setting cannot be used, or the output folder is or holds the source folder.
        ImageError, JobError: see `dajax.batch.items.find_items`.
    """
    settings.check()
    leave_out = _check_apart(source, output)
    found = find_items(source, column=settings.column, leave_out=leave_out)
    keys = [item.key for item in found.items]
    done = Manifest(open_storage(output)).finished(rejected=not settings.retry_rejects).contains(keys)
    shard = settings.shards or 1
    if shard > 1:
        # A shard is finished if all its rows are there: if one was lost, the whole shard is made again.
        for start in range(0, len(done), shard):
            done[start : start + shard] = done[start : start + shard].all()
    mine = np.arange(len(done)) // shard % settings.process_count == settings.process_index
    return Plan(found, done, mine, output_names(keys))


def _check_apart(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path | None:
    """Return the local output folder; it must neither be nor hold the source folder."""
    if is_remote(os.fspath(output)):
        return None
    target = Path(output)
    folder = Path(source)
    if folder.is_dir() and target.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(
            f"the output folder {str(target)!r} is or holds the source folder {str(folder)!r}, so that outputs would "
            "be read as images. Choose another output folder; it may be inside the source folder"
        )
    return target
