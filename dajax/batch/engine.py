"""Runs a job: from a source's items to committed outputs, each accounted for."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dajax.errors import ConfigError, JobRefusedError
from dajax.images.buckets import Buckets, Policy, ProcessedPicture
from dajax.images.encode import ENDINGS, Values, described

from .commit import Committer, FileCommitter, ShardCommitter
from .decoders import Decoded, Decoders
from .job import claim, describe_estimator, keys_digest
from .manifest import Manifest
from .naming import output_names
from .progress import Progress
from .remote import is_remote
from .sinks import Encoding, encoded, make_shards, rejected
from .sources import Item, Source, find_items
from .storage import LocalStorage, Storage

if TYPE_CHECKING:
    from dajax.inference.estimator import DepthEstimator

Size = Literal["source", "model"]
ShardFormat = Literal["tar", "parquet"]


@dataclass(frozen=True)
class BatchSettings:
    """How a job is done. What decides about outputs is kept in the output folder, and a resume has to say the same.

    Attributes:
        formats: of the outputs: any of "color", "npy", "npz", "png16", "tiff", "pfm", "exr".
        values: "float32" or "float16", of npy and npz.
        size: maps of the "source" pictures' sizes, or of the "model".
        colormap: of "color".
        shards: pictures in each shard; None: files of its own for each picture.
        shard_format: "tar" (WebDataset) or "parquet".
        batch_size: pictures that are run together; None: the estimator's.
        buckets: see `DepthEstimator.stream`.
        policy: see `DepthEstimator.stream`.
        workers: processes that read pictures; None: one for each core, 16 at most.
        decode_timeout: seconds that reading one picture may take.
        max_rejects: stop when more than so many pictures had to be left out; None: never.
        retry_rejects: try those again that an earlier run left out.
        column: of a CSV or Parquet source.
        share: (k, n): this process does the k-th of n shares of the pictures, counted from 1; others may do theirs in
            the same output folder at the same time. None: all of them, and nobody else works there.
    """

    formats: tuple[str, ...] = ("npy",)
    values: Values = "float32"
    size: Size = "source"
    colormap: str = "Spectral_r"
    shards: int | None = None
    shard_format: ShardFormat = "tar"
    batch_size: int | None = None
    buckets: int | None = None
    policy: Policy = "resize"
    workers: int | None = None
    decode_timeout: float = 60.0
    max_rejects: int | None = None
    retry_rejects: bool = False
    column: str | None = None
    share: tuple[int, int] | None = None

    def check(self) -> None:
        """Raise ConfigError where a value cannot be used."""
        if self.size not in get_args(Size):
            raise ConfigError(f"size must be source or model, got {self.size!r}")
        for name in ("shards", "batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not self.decode_timeout > 0:
            raise ConfigError(f"decode_timeout must be positive, got {self.decode_timeout!r}")
        if self.max_rejects is not None and self.max_rejects < 0:
            raise ConfigError(f"max_rejects must be at least 0, got {self.max_rejects}")
        if self.shards is not None and self.retry_rejects:
            raise ConfigError("retry_rejects goes with files: a shard that is whole is not written again")
        if self.share is not None and not 1 <= self.share[0] <= self.share[1]:
            raise ConfigError(f"share must be (k, n) with k from 1 to n, got {self.share!r}")


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


@dataclass(frozen=True)
class Report:
    """What became of a job.

    Attributes:
        items: of the source, or of the share of it.
        repeated: entries of the source that named an item once more.
        earlier: finished by earlier runs.
        done: written by this run.
        rejected: left out by this run; the manifest has the reasons.
        seconds: that this run took.
        interrupted: it was asked to stop before the end.
    """

    items: int
    repeated: int
    earlier: int
    done: int
    rejected: int
    seconds: float
    interrupted: bool


def plan_batch(source: str | os.PathLike[str], output: str | os.PathLike[str], settings: BatchSettings) -> Plan:
    """Return what a job has to do. Nothing is written.

    Raises:
        ImageError, ConfigError, JobError: see `dajax.batch.sources.find_items`; or source and output are one folder.
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


def run_batch(
    estimator: DepthEstimator,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: BatchSettings | None = None,
    *,
    model: str = "",
    progress: bool = True,
    stop: threading.Event | None = None,
) -> Report:
    """Estimate the depth of all pictures of a source; go on where an earlier run was stopped.

    Every item ends as a row of the manifest (`dajax.batch.manifest.read_manifest`): done, or rejected with a reason.
    A row is written when its outputs are on disk, so that the process may be killed at any moment: the same call goes
    on, and does once more what was in flight (twelve batches, 32 pictures and two for each reader at most, or the open
    shards). Batches are always computed whole, so that outputs are, to the bit, those of an undisturbed run on the same
    kind of device.

    Args:
        estimator: what estimates.
        source: see `dajax.batch.sources.find_items`.
        output: folder or fsspec address; made if need be.
        settings: how.
        model: name to put into the files.
        progress: show a bar.
        stop: set it from another thread or a signal's handler to end early; what is finished is committed.

    Raises:
        ConfigError, ImageError: settings or source cannot be used.
        JobError: the job cannot go on (a full disk, too many rejects), or was begun with other parameters.
    """
    settings = BatchSettings() if settings is None else settings
    settings.check()
    began = time.monotonic()
    stop = threading.Event() if stop is None else stop
    metric = estimator.model.config.is_metric
    kind = "metric" if metric else "relative"
    encoding = Encoding(settings.formats, settings.values, settings.colormap, kind, model, estimator.model.config.style)
    encoding.check()
    buckets = Buckets(estimator.processor, settings.buckets, settings.policy)
    shards = make_shards(settings.shard_format) if settings.shards else None
    batch_size = settings.batch_size or estimator.batch_size
    with ExitStack() as stack:
        storage = Storage.of(output, settings.share)
        if isinstance(storage, LocalStorage):
            stack.enter_context(storage.locked())
        plan = plan_batch(source, output, settings)
        keys = keys_digest(item.key for item in plan.source.items)
        parameters = _parameters(estimator, os.fspath(source), settings, batch_size, model)
        same_items = claim(storage, parameters, keys)
        if shards is not None and not same_items:
            raise JobRefusedError(
                f"{source} has not the items that it had when this job was begun, and its shards depend on all of "
                "them: choose another output folder"
            )
        if settings.share is not None and not same_items:
            # Names that others are giving right now are not known here.
            raise JobRefusedError(
                f"{source} has not the items that it had when this job was begun: what is new is named by one process "
                "alone, so run this once without a share, or choose another output folder"
            )
        storage.clean()
        stack.callback(storage.clean)
        manifest = Manifest(storage)
        names = plan.names if same_items else _names_beside(plan, manifest)
        bar = stack.enter_context(Progress(storage, plan.items, plan.earlier, show=progress))
        todo = _Todo(plan, names)
        committer: Committer = (
            FileCommitter(storage, manifest, bar, settings.max_rejects)
            if shards is None or settings.shards is None
            else ShardCommitter(storage, manifest, bar, settings.max_rejects, shards, settings.shards, plan)
        )
        workers = settings.workers or min(os.cpu_count() or 1, 16)
        decoders = Decoders(
            workers, buckets.options(), timeout=settings.decode_timeout, ahead=max(2 * batch_size, 2 * workers)
        )
        stack.callback(decoders.close)
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        _run(estimator, todo, decoders, pool, committer, encoding, settings, batch_size, stop)
        committer.finish(complete=not stop.is_set())
        return Report(
            plan.items,
            plan.source.repeated,
            plan.earlier,
            committer.done,
            committer.rejected,
            time.monotonic() - began,
            stop.is_set(),
        )


class _Stopped(Exception):
    pass


class _Todo:
    """The items that are to be done, with their places and names."""

    def __init__(self, plan: Plan, names: list[str]) -> None:
        self._plan, self._names = plan, names

    def items(self) -> Iterator[Item]:
        for place in self._plan.left:
            yield self._plan.source.items[place]

    def names(self) -> Iterator[str]:
        for place in self._plan.left:
            yield self._names[place]


def _run(
    estimator: DepthEstimator,
    todo: _Todo,
    decoders: Decoders,
    pool: ThreadPoolExecutor,
    committer: Committer,
    encoding: Encoding,
    settings: BatchSettings,
    batch_size: int,
    stop: threading.Event,
) -> None:
    in_work: deque[tuple[Decoded, str]] = deque()
    # In order, so that shards are filled in order.
    outcomes: deque[Future[Any]] = deque()
    most = 4 * batch_size
    processor = estimator.processor

    def pictures() -> Iterator[ProcessedPicture]:
        for decoded, name in zip(decoders.read(todo.items()), todo.names(), strict=True):
            if stop.is_set():
                raise _Stopped
            if decoded.picture is None:
                outcome = rejected(decoded.item, name, decoded.reason, decoded.notes)
                outcomes.append(pool.submit(committer.stage, outcome))
                collect(most)
                continue
            in_work.append((decoded, name))
            yield decoded.picture

    def finish(decoded: Decoded, name: str, depth: np.ndarray) -> Any:
        assert decoded.picture is not None
        if settings.size == "source":
            sizes = [decoded.picture.source_size]
            depth = processor.post_process_depth_estimation(depth[None], sizes)[0]["predicted_depth"]
        return committer.stage(encoded(encoding, decoded.item, name, depth, decoded.notes))

    def collect(at_most: int) -> None:
        while outcomes and (outcomes[0].done() or len(outcomes) > at_most):
            committer.add(outcomes.popleft().result())
        committer.flush(force=False)

    stream: Any = estimator.stream(
        pictures(),
        batch_size=batch_size,
        whole_batches=True,
        source_size=False,
        on_smaller_batch=committer.note_smaller_batch,
    )
    try:
        for depth in stream:
            outcomes.append(pool.submit(finish, *in_work.popleft(), depth))
            collect(most)
            if stop.is_set():
                raise _Stopped
    except _Stopped:
        pass
    finally:
        stream.close()
    collect(0)


def _names_beside(plan: Plan, manifest: Manifest) -> list[str]:
    """Return names where the source has changed: what is done keeps its own, and nothing new takes one of those."""
    taken = {}
    for key, row in manifest.latest().items():
        if row.output:
            taken[key] = next(
                row.output[0].removesuffix(end) for end in ENDINGS.values() if row.output[0].endswith(end)
            )
    items = plan.source.items
    new = [i for i in range(len(items)) if items[i].key not in taken]
    names = [taken.get(item.key, "") for item in items]
    found = output_names([items[i].key for i in new], list(taken.values()))
    for i, name in zip(new, found, strict=True):
        names[i] = name
    return names


def _check_apart(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path | None:
    """Return the local output folder; it must neither be nor hold the source folder."""
    if is_remote(os.fspath(output)):
        return None
    target = Path(output)
    folder = Path(source)
    if folder.is_dir() and target.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(
            f"the output folder {str(target)!r} is or holds the source folder {str(folder)!r}: outputs would be read "
            "as pictures. Choose another one; inside the source folder is possible"
        )
    return target


def _parameters(
    estimator: DepthEstimator, source: str, settings: BatchSettings, batch_size: int, model: str
) -> dict[str, Any]:
    return {
        "model": model,
        "dajax": described("relative", "")["version"],
        **describe_estimator(estimator),
        "source": source if is_remote(source) else os.path.abspath(source),
        "column": settings.column,
        "formats": list(settings.formats),
        "values": settings.values,
        "size": settings.size,
        "colormap": settings.colormap if "color" in settings.formats else None,
        "shards": settings.shards,
        "shard_format": settings.shard_format if settings.shards else None,
        "batch_size": batch_size,
        "buckets": settings.buckets,
        "policy": settings.policy if settings.buckets else None,
    }
