"""What a process has to do: its part of the source's items, without those that the manifest has already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dajax.batch.items import Item, Source, find_items
from dajax.batch.job_settings import BatchSettings
from dajax.batch.manifest import DONE, LOST, REJECTED, Manifest, stamp_number
from dajax.batch.remote import is_remote
from dajax.batch.stamps import stamp_of
from dajax.batch.storage_kinds import open_storage
from dajax.depth_maps.naming import output_names
from dajax.errors import ConfigError

# How many images `check_inputs` looks at in one task, and how many tasks at once.
_GROUP, _LOOKERS = 256, 16


@dataclass(frozen=True)
class Plan:
    """What a process has to do.

    Attributes:
        source: all items of the source, those of other processes included.
        finished: bool [items]: the manifest has a row that says so.
        mine: bool [items]: this process does it.
        names: the output name of each item, without ending.
        changed: bool [items]: the item is finished, but its image has changed since.
        remade: bool [items]: it had changed like this, and is done again.
        has_outputs: bool [items]: an earlier run wrote outputs of it.
        listed_now: the rejected keys of folders that can be listed by now.
    """

    source: Source
    finished: np.ndarray
    mine: np.ndarray
    names: list[str]
    changed: np.ndarray
    remade: np.ndarray
    has_outputs: np.ndarray
    listed_now: list[str]

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
    leave_out = check_apart(source, output)
    found = find_items(source, column=settings.column, leave_out=leave_out)
    keys = [item.key for item in found.items]
    known = Manifest(open_storage(output)).known()
    status, stamps = known.look_up(keys)
    is_searched = found.kind in ("folder", "pattern") and settings.process_index == 0
    listed_now = sorted(set(known.unlisted) - {key for key in keys if key.endswith("/")}) if is_searched else []
    done = (status == DONE) | ((status == REJECTED) & (not settings.retry_rejects))
    shard = settings.shards or 1
    done = _whole_shards(done, shard)
    mine = np.arange(len(done)) // shard % settings.process_count == settings.process_index
    changed = done & mine & _have_changed(found.items, stamps, done & mine if settings.check_inputs else None)
    remade = changed & settings.remake_changed
    done = _whole_shards(done & ~remade, shard)
    had_outputs = (status == DONE) | (status == LOST)
    return Plan(found, done, mine, output_names(keys), changed & ~remade, remade, had_outputs, listed_now)


def _whole_shards(done: np.ndarray, shard: int) -> np.ndarray:
    """Return bool [items]: an output shard is done if all its rows are. If not, the whole shard is made again."""
    if shard == 1:
        return done
    starts = np.arange(0, len(done), shard)
    return np.repeat(np.logical_and.reduceat(done, starts), shard)[: len(done)]


def _have_changed(items: Sequence[Item], recorded: np.ndarray, looked_at: np.ndarray | None) -> np.ndarray:
    """Return bool [items]: whether an image is another one than when it was read.

    Args:
        items: the items.
        recorded: `stamp_number` of each item when it was read; 0 if that is not known.
        looked_at: bool [items]: which images are looked at if the listing does not say their stamps. None: none.
    """
    now = np.fromiter((stamp_number(item.stamp) for item in items), np.int64, len(items))
    if looked_at is not None:
        places = np.flatnonzero(looked_at & (recorded != 0) & (now == 0))
        groups = [places[start : start + _GROUP] for start in range(0, len(places), _GROUP)]

        def look(group: np.ndarray) -> list[int]:
            return [stamp_number(stamp_of(items[i].location.path)) for i in group]

        # A network disk takes its time for each file, and does several at once.
        with ThreadPoolExecutor(_LOOKERS) as pool:
            for group, numbers in zip(groups, pool.map(look, groups), strict=True):
                now[group] = numbers
    # What is gone, or was never recorded, is not compared.
    return (recorded != 0) & (now != 0) & (recorded != now)


def check_apart(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path | None:
    """Return the local output folder; None if it is an address.

    Raises:
        ConfigError: it is or holds the source folder.
    """
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
