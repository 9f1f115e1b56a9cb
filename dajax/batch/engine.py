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
from typing import TYPE_CHECKING, Any

import numpy as np

from dajax.batch.commit import Committer, FileCommitter, ShardCommitter
from dajax.batch.decode_pool import Decoded, Decoders
from dajax.batch.items import Item
from dajax.batch.job import claim, describe_estimator, keys_digest
from dajax.batch.job_plan import Plan, plan_batch
from dajax.batch.job_settings import BatchSettings
from dajax.batch.manifest import Manifest
from dajax.batch.progress import Progress
from dajax.batch.remote import is_remote
from dajax.batch.sinks import Encoding, encoded, make_shards, rejected
from dajax.batch.storage_kinds import open_storage
from dajax.depth_maps.encode import ENDINGS, described
from dajax.depth_maps.naming import output_names
from dajax.errors import JobRefusedError
from dajax.preprocessing.buckets import Buckets, ProcessedImage

if TYPE_CHECKING:
    from dajax.inference.estimator import DepthEstimator


@dataclass(frozen=True)
class Report:
    """What became of a job.

    Attributes:
        items: of the source that this process does.
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
    """Estimate the depth of all images of a source; go on where an earlier run was stopped.

    Every item ends as a row of the manifest (`dajax.batch.manifest.read_manifest`): done, or rejected with a reason.
    A row is written when its outputs are on disk, so that the process may be killed at any moment: the same call goes
    on, and does once more what was in flight (twelve batches, 32 images and two for each reader at most, or the open
    shards). Batches are always computed whole, so that outputs are, to the bit, those of an undisturbed run on the same
    kind of device.

    Args:
        estimator: what estimates.
        source: see `dajax.batch.items.find_items`.
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
        storage = open_storage(output, settings.process_index, settings.process_count)
        stack.enter_context(storage.locked())
        plan = plan_batch(source, output, settings)
        keys = [item.key for item in plan.source.items]
        parameters = _parameters(estimator, os.fspath(source), settings, batch_size, model)
        same_items = claim(storage, parameters, keys_digest(keys))
        if shards is not None and not same_items:
            raise JobRefusedError(
                f"{source} has not the items that it had when this job was begun, and its shards depend on all of "
                "them: choose another output folder"
            )
        if settings.process_count > 1 and not same_items:
            # The names that other processes give right now are not known here.
            raise JobRefusedError(
                f"{source} has not the items that it had when this job was begun, and several processes that work at "
                "the same time cannot name new items: run this once as one process (process count 1), or choose "
                "another output folder"
            )
        storage.clean()
        stack.callback(storage.clean)
        manifest = Manifest(storage)
        # Where the source has changed, what is done keeps its name, and nothing new takes one of those.
        names = plan.names if same_items else output_names(keys, _earlier_names(manifest))
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

    def images() -> Iterator[ProcessedImage]:
        for decoded, name in zip(decoders.read(todo.items()), todo.names(), strict=True):
            if stop.is_set():
                raise _Stopped
            if decoded.image is None:
                outcome = rejected(decoded.item, name, decoded.reason, decoded.notes)
                outcomes.append(pool.submit(committer.stage, outcome))
                collect(most)
                continue
            in_work.append((decoded, name))
            yield decoded.image

    def finish(decoded: Decoded, name: str, depth: np.ndarray) -> Any:
        assert decoded.image is not None
        if settings.size == "source":
            sizes = [decoded.image.source_size]
            depth = processor.post_process_depth_estimation(depth[None], sizes)[0]["predicted_depth"]
        return committer.stage(encoded(encoding, decoded.item, name, depth, decoded.notes))

    def collect(at_most: int) -> None:
        while outcomes and (outcomes[0].done() or len(outcomes) > at_most):
            committer.add(outcomes.popleft().result())
        committer.flush(force=False)

    stream: Any = estimator.stream(
        images(),
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


def _earlier_names(manifest: Manifest) -> dict[str, str]:
    """Return the output names that earlier runs gave, by key."""
    earlier = {}
    for key, row in manifest.latest().items():
        if row.output:
            first = row.output[0]
            earlier[key] = next(first.removesuffix(end) for end in ENDINGS.values() if first.endswith(end))
    return earlier


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
