"""Runs a job: from the items of a source to committed outputs, with a row of the manifest for each item."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dajax.batch.commit import Committer, FileCommitter, ShardCommitter
from dajax.batch.decode_pool import Decoded, Decoders
from dajax.batch.job import claim, job_parameters, keys_digest
from dajax.batch.job_plan import Plan, check_apart, plan_batch
from dajax.batch.job_settings import BatchSettings
from dajax.batch.manifest import Manifest, Row
from dajax.batch.progress import Progress
from dajax.batch.sinks import Encoding, encoded, make_shards, rejected
from dajax.batch.storage_kinds import open_storage
from dajax.depth_maps.encode import ENDINGS
from dajax.depth_maps.naming import output_names
from dajax.errors import JobRefusedError
from dajax.inference.confidence import disagreement
from dajax.preprocessing.buckets import Buckets, ProcessedImage

if TYPE_CHECKING:
    from dajax.inference.estimator import DepthEstimator


@dataclass(frozen=True)
class Report:
    """What became of a job.

    Attributes:
        items: how many items of the source this process does.
        repeated: how many entries of the source named an item once more.
        earlier: how many of this process's items earlier runs have finished.
        done: how many images this run wrote the outputs of.
        rejected: how many images this run left out; the manifest has the reasons.
        seconds: how long this run took.
        interrupted: whether it was asked to stop before the end.
        changed: how many images have changed since their depth maps were made, and were not made again.
        passed_over: how many files and folders of the source were passed over, by kind.
        noted: how many of those that it did have notes in the manifest, such as values that do not fit into a PNG.
    """

    items: int
    repeated: int
    earlier: int
    done: int
    rejected: int
    seconds: float
    interrupted: bool
    changed: int = 0
    passed_over: Mapping[str, int] = field(default_factory=dict)
    noted: int = 0


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

    Every item ends as a row of the manifest (`dajax.batch.read_manifest`): done, or rejected with a reason. A row is
    written after its outputs are on disk, so the process may be killed at any moment: the same call goes on, and
    repeats at most what was in flight (twelve batches, 32 images and two for each reader, or the open shards). Batches
    are always computed whole, so the outputs are, to the bit, those of an undisturbed run on the same kind of device.

    Args:
        estimator: Estimates the depth.
        source: see `dajax.batch.items.find_items`.
        output: the folder or fsspec address for the outputs; it is made if it does not exist.
        settings: how the job is done; `BatchSettings()` if None.
        model: the model's name, which is written into the files; if "", the name that the estimator was made from.
        progress: Show a bar on standard error.
        stop: Set it from another thread or a signal handler to end early; what is finished is committed.

    Raises:
        ConfigError, ImageError: the settings or the source cannot be used.
        JobRefusedError: the job was begun with other parameters.
        JobError: the job cannot go on (a full disk, too many rejects).
    """
    settings = BatchSettings() if settings is None else settings
    settings.check()
    check_apart(source, output)  # before a lock is put there
    began = time.monotonic()
    stop = threading.Event() if stop is None else stop
    model = model or estimator.name
    encoding = _encoding(estimator, settings, model)
    encoding.check()
    shards = make_shards(settings.shard_format, encoding.about()) if settings.shards else None
    buckets = Buckets(estimator.processor, settings.buckets, settings.policy)
    batch_size = settings.batch_size or estimator.batch_size
    with ExitStack() as stack:
        storage = open_storage(output, settings.process_index, settings.process_count)
        stack.enter_context(storage.locked())
        plan = plan_batch(source, output, settings)
        parameters = job_parameters(estimator, os.fspath(source), settings, batch_size, model)
        keys = [item.key for item in plan.source.items]
        same_items = claim(storage, parameters, keys_digest(keys))
        manifest = Manifest(storage)
        # If the source has changed, what is done keeps its name, and nothing new takes one of those.
        names = plan.names if same_items else _names_beside(plan, manifest, settings)
        storage.clean()
        stack.callback(storage.clean)
        earlier = _earlier_files(plan, names, settings)
        manifest.append(_rows_of_what_is_known(plan, earlier))
        bar = stack.enter_context(Progress(storage, plan.items, plan.earlier, show=progress))
        common = (storage, manifest, bar, settings.max_rejects)
        committer: Committer = (
            FileCommitter(*common, earlier=earlier)
            if shards is None or settings.shards is None
            else ShardCommitter(*common, shards, settings.shards, plan)
        )
        workers = settings.workers or min(os.cpu_count() or 1, 16)
        ahead = max(2 * batch_size, 2 * workers)
        reading = {"value_range": settings.value_range, "allow_truncated": settings.allow_truncated}
        decoders = Decoders(workers, buckets.options(), timeout=settings.decode_timeout, ahead=ahead, reading=reading)
        stack.callback(decoders.close)
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        if settings.buckets and len(plan.left):
            count = len(set(buckets.sizes))
            programs = "1 program" if count == 1 else f"{count} programs"
            bar.say(f"compiling {programs} while images are read", show=progress)
            stack.enter_context(_compiling(estimator, settings, batch_size))
        run = _Run(estimator, decoders, pool, committer, encoding, settings, batch_size, stop)
        run(plan, names)
        committer.finish(complete=not stop.is_set())
        counts = (plan.items, plan.source.repeated, plan.earlier, committer.done, committer.rejected)
        changed = int(plan.changed.sum())
        return Report(
            *counts, time.monotonic() - began, stop.is_set(), changed, plan.source.passed_over, committer.noted
        )


@contextmanager
def _compiling(estimator: DepthEstimator, settings: BatchSettings, batch_size: int) -> Iterator[None]:
    """Compile the programs of all buckets in a thread of their own, while the first images are read.

    At the end it waits for the program that is being compiled, because Python cannot end a thread within XLA.

    Raises:
        Exception: what has stopped the compilation, if the job itself has not failed.
    """
    over = threading.Event()
    failed: list[Exception] = []

    def work() -> None:
        try:
            estimator.compile(
                batch_size=batch_size, buckets=settings.buckets, whole_batches=True, progress=False, stop=over
            )
        except Exception as error:
            # A batch for which memory is short is halved where it runs.
            if "RESOURCE_EXHAUSTED" not in str(error):
                failed.append(error)

    thread = threading.Thread(target=work, name="dajax-compile", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


def _encoding(estimator: DepthEstimator, settings: BatchSettings, model: str) -> Encoding:
    config = estimator.model.config
    kind, end = ("metric", float(config.max_depth)) if config.is_metric else ("relative", None)
    about = (kind, model, config.style)
    return Encoding(settings.formats, settings.values, settings.colormap, *about, settings.png_scale, end)


def _rows_of_what_is_known(plan: Plan, earlier: Mapping[str, list[str]]) -> Iterator[Row]:
    """Yield rows before the work begins: of folders that are no rejects any more, and of outputs that are made anew.

    These count as lost. So if this run is killed, the next one makes them, whatever it is asked for.
    """
    for key in plan.listed_now:
        yield Row(key, "done", notes=["the folder can be listed now; its images have rows of their own"])
    for place in np.flatnonzero(plan.remade & plan.has_outputs):
        key = plan.source.items[place].key
        yield Row(key, "lost", earlier[key], reason="its image has changed since")


def _earlier_files(plan: Plan, names: list[str], settings: BatchSettings) -> dict[str, list[str]]:
    """Return the files that earlier runs wrote of what is done again, by key; none for output shards."""
    endings = [] if settings.shards else [ENDINGS[form] for form in settings.formats]
    again = [i for i in plan.left if plan.has_outputs[i]]
    return {plan.source.items[i].key: [names[i] + ending for ending in endings] for i in again}


def _names_beside(plan: Plan, manifest: Manifest, settings: BatchSettings) -> list[str]:
    """Return the output names for a source whose items are not those that the job was begun with.

    Raises:
        JobRefusedError: the settings do not allow it.
    """
    fixed = None
    if settings.shards is not None:
        fixed = "its output shards depend on all items. Choose another output folder"
    elif settings.process_count > 1:
        # The names that other processes give right now are not known here.
        fixed = (
            "several processes that work at the same time cannot name new items. Run this once as one process (process "
            "count 1), or choose another output folder"
        )
    if fixed:
        raise JobRefusedError(f"the source has not the items that it had when this job was begun, and {fixed}")
    earlier = {}
    for key, row in manifest.latest().items():
        if row.output:
            first = row.output[0]
            earlier[key] = next(first.removesuffix(end) for end in ENDINGS.values() if first.endswith(end))
    return output_names([item.key for item in plan.source.items], earlier)


class _Stopped(Exception):
    pass


class _Run:
    """Moves items from the decoders through the network to the committer, in order.

    Args:
        estimator: Estimates the depth.
        decoders: Read the images.
        pool: the threads that encode and write.
        committer: Takes the outcomes.
        encoding: which files a depth map becomes.
        settings: how the job is done.
        batch_size: images that are run together.
        stop: Ends the run when it is set.
    """

    def __init__(
        self,
        estimator: DepthEstimator,
        decoders: Decoders,
        pool: ThreadPoolExecutor,
        committer: Committer,
        encoding: Encoding,
        settings: BatchSettings,
        batch_size: int,
        stop: threading.Event,
    ) -> None:
        self._estimator, self._decoders, self._pool, self._committer = estimator, decoders, pool, committer
        self._encoding, self._batch_size, self._stop = encoding, batch_size, stop
        self._source_size, self._flips = settings.size == "source", settings.flip_disagreement
        self._in_network: deque[tuple[Decoded, str]] = deque()
        # They are taken in order, so that output shards are filled in order.
        self._outcomes: deque[Future[Any]] = deque()

    def __call__(self, plan: Plan, names: list[str]) -> None:
        """Do what the plan has left; `names` are the output names of all items."""
        stream: Any = self._estimator.stream(
            self._images(plan, names),
            batch_size=self._batch_size,
            whole_batches=True,
            source_size=False,
            on_smaller_batch=self._committer.note_smaller_batch,
        )
        try:
            for depth in stream:
                other = next(stream) if self._flips else None
                self._outcomes.append(self._pool.submit(self._finish, *self._in_network.popleft(), depth, other))
                self._collect(4 * self._batch_size)
                if self._stop.is_set():
                    raise _Stopped
        except _Stopped:
            pass
        finally:
            stream.close()
        self._collect(0)

    def _images(self, plan: Plan, names: list[str]) -> Iterator[ProcessedImage]:
        """Yield the images that could be read; the others become rejects."""
        left = plan.left
        for place, decoded in zip(left, self._decoders.read(plan.source.items[i] for i in left), strict=True):
            if self._stop.is_set():
                raise _Stopped
            if decoded.image is not None:
                self._in_network.append((decoded, names[place]))
                yield decoded.image
                if self._flips:
                    yield decoded.image.mirrored()
                continue
            outcome = rejected(decoded, names[place], decoded.reason)
            self._outcomes.append(self._pool.submit(self._committer.stage, outcome))
            self._collect(4 * self._batch_size)

    def _finish(self, decoded: Decoded, name: str, depth: np.ndarray, other: np.ndarray | None) -> Any:
        """Resize, encode and stage a depth map; `other` is that of the mirror image, if it was asked for."""
        assert decoded.image is not None
        flip = None
        if other is not None and np.isfinite(depth).all() and np.isfinite(other).all():
            is_metric = self._encoding.kind == "metric"
            flip = float(disagreement(depth, other[:, ::-1], is_metric=is_metric).mean(dtype=np.float64))
        if self._source_size:
            sizes = [decoded.image.source_size]
            results = self._estimator.processor.post_process_depth_estimation(depth[None], sizes)
            depth = results[0]["predicted_depth"]
        return self._committer.stage(encoded(self._encoding, decoded, name, depth, flip))

    def _collect(self, at_most: int) -> None:
        """Commit what is finished, and wait until no more than `at_most` outcomes are left."""
        while self._outcomes and (self._outcomes[0].done() or len(self._outcomes) > at_most):
            self._committer.add(self._outcomes.popleft().result())
        self._committer.flush(force=False)
