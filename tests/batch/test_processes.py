"""Several processes that do a job together: they do all of it, once, as one alone would."""

import itertools
import json
import threading

import pytest
from batch_jobs import BAD, GOOD, PlainEstimator, assert_same_job, make_images, outputs, rows

from dajax.batch.engine import run_batch
from dajax.batch.job_plan import plan_batch
from dajax.batch.job_settings import BatchSettings
from dajax.batch.local_storage import UNFINISHED, LocalStorage
from dajax.batch.manifest import Manifest
from dajax.batch.storage_kinds import open_storage
from dajax.errors import ConfigError, JobError


def do(images, output, process=(0, 1), estimator=None, **settings):
    index, count = process
    defaults = {"formats": ("npy", "color"), "workers": 1, "process_index": index, "process_count": count}
    settings = BatchSettings(**(defaults | settings))
    return run_batch(estimator or PlainEstimator(), images, output, settings, progress=False)


@pytest.mark.parametrize("shards", [None, 2])
def test_all_together_are_the_whole_job(images, tmp_path, shards):
    do(images, tmp_path / "whole", shards=shards)
    out, reports = tmp_path / "together", {}
    threads = [
        threading.Thread(target=lambda k=k: reports.setdefault(k, do(images, out, (k, 3), shards=shards)))
        for k in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.items for report in reports.values()) == GOOD + BAD
    assert sum(report.done for report in reports.values()) == GOOD
    assert sum(report.rejected for report in reports.values()) == BAD
    assert_same_job(out, tmp_path / "whole")
    assert sum(1 for _ in Manifest(open_storage(out)).rows()) == GOOD + BAD  # nothing twice
    for k in range(3):
        progress = json.loads((out / ".dajax" / f"progress-{k}-of-3.json").read_text())
        assert progress["finished"] == progress["total"] == reports[k].items
    # A later run, as one process or as another number of processes, has nothing left to do.
    assert do(images, out, shards=shards).earlier == GOOD + BAD
    assert do(images, out, (1, 2), shards=shards).done == 0


def test_processes_have_even_parts_that_do_not_overlap(images, tmp_path):
    def planned(**settings):
        return plan_batch(images, tmp_path / "out", BatchSettings(**settings))

    plans = [planned(process_index=k, process_count=5) for k in range(5)]
    left = [plan.left for plan in plans]
    assert sorted(itertools.chain(*left)) == list(range(GOOD + BAD))
    assert max(map(len, left)) - min(map(len, left)) <= 1
    # An output shard is one process's.
    assert planned(process_index=1, process_count=2, shards=4).left[:5] == [
        4,
        5,
        6,
        7,
        *([12] if GOOD + BAD > 12 else []),
    ]
    assert planned(process_index=0, process_count=2, shards=4).left[:8] == [0, 1, 2, 3, 8, 9, 10, 11]


def test_the_same_process_index_twice_is_refused_and_so_is_the_whole_job(tmp_path, monkeypatch):
    monkeypatch.setattr("dajax.batch.local_storage._PATIENCE", 0.1)
    first, again, second = (open_storage(tmp_path, k, 2) for k in (0, 0, 1))
    whole = open_storage(tmp_path)
    said = "another process works on this job, either on all of it or as process 0 of 2 too"
    with first.locked():
        with pytest.raises(JobError, match=said):
            again.locked().__enter__()
        with second.locked(), pytest.raises(JobError, match=r"another process works on this job$"):
            whole.locked().__enter__()
    with whole.locked(), pytest.raises(JobError, match=said):
        first.locked().__enter__()


def test_processes_clean_up_behind_themselves_alone(tmp_path):
    def unfinished():
        return {path.name for path in (tmp_path / ".dajax").glob("unfinished*")}

    alive, dead, mine = (open_storage(tmp_path, k, 4) for k in range(3))
    whole = open_storage(tmp_path, 0, 1)
    for storage in (alive, dead, mine, whole):
        storage.stage(b"half")
    assert len(unfinished()) == 4
    with alive.locked(), mine.locked():
        mine.clean()
        # Whether the others are dead cannot be told where locks hold on one machine only.
        assert unfinished() == {"unfinished-0-of-4", "unfinished-1-of-4"}
    with whole.locked():
        whole.clean()
    assert not unfinished()
    assert isinstance(whole, LocalStorage)
    assert UNFINISHED.endswith("unfinished")


def test_killed_and_gone_on_with_by_others(images, tmp_path):
    class Dying(PlainEstimator):
        def stream(self, images, **options):
            for place, depth in enumerate(super().stream(images, **options)):
                if place == 2:
                    raise KeyboardInterrupt
                yield depth

    do(images, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        do(images, tmp_path / "out", (0, 2), Dying())
    for k in (2, 0, 1):
        do(images, tmp_path / "out", (k, 3))
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_a_source_that_grew_is_for_one_process_first(tmp_path):
    source = make_images(tmp_path / "images", 4, 0)
    do(source, tmp_path / "out", (0, 2))
    make_images(tmp_path / "images", 6, 0)
    with pytest.raises(JobError, match="Run this once as one process"):
        do(source, tmp_path / "out", (1, 2))
    do(source, tmp_path / "out")
    assert len(outputs(tmp_path / "out")) == 12


@pytest.mark.parametrize(
    ("index", "count", "said"),
    [
        (2, 2, r"process_index counts from 0, so it must be less than process_count \(2\); got 2"),
        (1, 1, "process_index counts from 0"),
        (-1, 2, "process_index must be a whole number of at least 0, got -1"),
        (0, 0, "process_count must be a whole number of at least 1, got 0"),
        (0, 2.0, "process_count must be a whole number"),
        (True, 2, "process_index must be a whole number"),
    ],
)
def test_processes_that_cannot_be(index, count, said):
    with pytest.raises(ConfigError, match=said):
        BatchSettings(process_index=index, process_count=count).check()


def test_the_last_process_index_can_be():
    BatchSettings(process_index=1, process_count=2).check()
