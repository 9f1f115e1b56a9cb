"""The end of an item's way: its outputs get their names, and then a row of the manifest says so."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dajax.batch.job_plan import Plan
from dajax.batch.manifest import Manifest, Row
from dajax.batch.progress import Progress
from dajax.batch.sinks import Outcome, Shards, row_of
from dajax.batch.storage import Storage
from dajax.errors import JobError

# Flushing to the disk is slow, so it is done for this many images together, or after this many seconds.
GROUP, GROUP_SECONDS = 32, 1.0


class Committer(ABC):
    """Commits the outcomes of items, and counts them.

    Args:
        storage: the output folder.
        manifest: where the rows go.
        progress: Is told how many items are finished.
        max_rejects: Stop the job when more images than this were left out; None: never.

    Attributes:
        done: how many outputs this run has committed.
        rejected: how many images this run has left out.
        noted: how many outputs of this run have notes in the manifest.
    """

    def __init__(self, storage: Storage, manifest: Manifest, progress: Progress, max_rejects: int | None) -> None:
        self._storage, self._manifest, self._progress = storage, manifest, progress
        self._max_rejects = max_rejects
        self.done = self.rejected = self.noted = 0

    @abstractmethod
    def stage(self, outcome: Outcome) -> Any:
        """Do what any thread may do at any time; the result goes to `add`."""

    @abstractmethod
    def add(self, staged: Any) -> None:
        """Take what was staged. Outcomes come in the order of the source, but rejects may come earlier."""

    @abstractmethod
    def flush(self, *, force: bool) -> None:
        """Commit what there is if it is much or old, or if `force` is set."""

    @abstractmethod
    def finish(self, *, complete: bool) -> None:
        """Commit the rest; `complete` says that all items were added."""

    def note_smaller_batch(self, batch_size: int) -> None:
        """Record that the device's memory was short, and that later outputs are computed in smaller batches."""
        self._progress.note(f"out of device memory: batches of {batch_size} from here on")

    def _record(self, rows: list[Row]) -> None:
        """Append rows to the manifest, and count them."""
        self._manifest.append(rows)
        rejected = sum(row.status == "rejected" for row in rows)
        self.rejected += rejected
        self.done += len(rows) - rejected
        self.noted += sum(row.status == "done" and bool(row.notes) for row in rows)
        self._progress.advance(len(rows), rejected)
        if self._max_rejects is not None and self.rejected > self._max_rejects:
            last = next(row for row in reversed(rows) if row.status == "rejected")
            raise JobError(
                f"stopped: {self.rejected} images had to be left out, and max_rejects is {self._max_rejects}. The "
                f"last: {last.key!r}: {last.reason}"
            )


class _Staged(NamedTuple):
    row: Row
    files: list[tuple[Any, str]]


class FileCommitter(Committer):
    """Writes files for each item.

    Args:
        arguments: those of `Committer`.
        earlier: by key, the files that earlier runs wrote of items which are done again. If such an item is rejected
            now, they go.
    """

    def __init__(self, *arguments: Any, earlier: Mapping[str, Sequence[str]]) -> None:
        super().__init__(*arguments)
        self._earlier = earlier
        self._group: list[_Staged] = []
        self._since = time.monotonic()

    def stage(self, outcome: Outcome) -> _Staged:
        """See `Committer`."""
        names = [outcome.name + ending for ending, _ in outcome.files]
        files = [(self._storage.stage(data), name) for (_, data), name in zip(outcome.files, names, strict=True)]
        return _Staged(row_of(outcome, names), files)

    def add(self, staged: _Staged) -> None:
        """See `Committer`."""
        self._group.append(staged)

    def flush(self, *, force: bool) -> None:
        """See `Committer`."""
        due = len(self._group) >= GROUP or time.monotonic() - self._since > GROUP_SECONDS
        if not self._group or not (force or due):
            return
        group, self._group = self._group, []
        refused = self._storage.commit([file for staged in group for file in staged.files])
        rows = [self._row(staged, refused) for staged in group]
        for row in rows:
            for name in self._earlier.get(row.key, ()) if row.status == "rejected" else ():
                self._storage.remove(name)
        self._record(rows)
        self._since = time.monotonic()

    def _row(self, staged: _Staged, refused: dict[str, Any]) -> Row:
        """Return the row of an item; if one of its names could not be given, take back its other files."""
        reasons = [str(refused[name]) for _, name in staged.files if name in refused]
        if not reasons:
            return staged.row
        for token, name in staged.files:
            if name in refused:
                self._storage.discard(token)
            else:
                self._storage.remove(name)
        return Row(staged.row.key, "rejected", reason=reasons[0], notes=staged.row.notes, stamp=staged.row.stamp)

    def finish(self, *, complete: bool) -> None:
        """See `Committer`."""
        self.flush(force=True)


class ShardCommitter(Committer):
    """Writes an output shard for each `size` items in the order of the source, as soon as all of them are there."""

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        progress: Progress,
        max_rejects: int | None,
        shards: Shards,
        size: int,
        plan: Plan,
    ) -> None:
        super().__init__(storage, manifest, progress, max_rejects)
        self._shards, self._size = shards, size
        self._place = {plan.source.items[i].key: i for i in plan.left}
        self._items = len(plan.source.items)
        self._open: dict[int, list[Outcome]] = {}

    def stage(self, outcome: Outcome) -> Outcome:
        """See `Committer`."""
        return outcome

    def add(self, staged: Outcome) -> None:
        """See `Committer`."""
        number = self._place[staged.item.key] // self._size
        outcomes = self._open.setdefault(number, [])
        outcomes.append(staged)
        if len(outcomes) == min(self._size, self._items - number * self._size):
            self._write(number, self._open.pop(number))

    def _write(self, number: int, outcomes: list[Outcome]) -> None:
        # Rejects come before the images that the network still works on.
        outcomes.sort(key=lambda outcome: self._place[outcome.item.key])
        name = self._shards.name(number)
        refused = self._storage.commit([(self._storage.stage(self._shards.pack(outcomes)), name)])
        for error in refused.values():
            raise JobError(str(error)) from error
        self._record([row_of(outcome, [name]) for outcome in outcomes])

    def flush(self, *, force: bool) -> None:
        """See `Committer`."""

    def finish(self, *, complete: bool) -> None:
        """See `Committer`."""
        if complete and self._open:
            raise AssertionError(f"shards {sorted(self._open)} lack images")
