"""Several processes that share a job: between them they do all of it, once, as one alone would."""

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
from dajax.batch.storage import Storage
from dajax.errors import ConfigError, JobError


def do(images, output, share=None, estimator=None, **settings):
    settings = BatchSettings(**({"formats": ("npy", "color"), "workers": 1} | settings), share=share)
    return run_batch(estimator or PlainEstimator(), images, output, settings, progress=False)


@pytest.mark.parametrize("shards", [None, 2])
def test_all_together_are_the_whole_job(images, tmp_path, shards):
    do(images, tmp_path / "whole", shards=shards)
    out, reports = tmp_path / "shared", {}
    threads = [
        threading.Thread(target=lambda k=k: reports.setdefault(k, do(images, out, (k, 3), shards=shards)))
        for k in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.items for report in reports.values()) == GOOD + BAD
    assert sum(report.done for report in reports.values()) == GOOD
    assert sum(report.rejected for report in reports.values()) == BAD
    assert_same_job(out, tmp_path / "whole")
    assert sum(1 for _ in Manifest(Storage.of(out)).rows()) == GOOD + BAD  # nothing twice
    for k in (1, 2, 3):
        progress = json.loads((out / ".dajax" / f"progress-{k}-of-3.json").read_text())
        assert progress["finished"] == progress["total"] == reports[k].items
    # Whoever comes afterwards, alone or of other shares, has nothing left to do.
    assert do(images, out, shards=shards).earlier == GOOD + BAD
    assert do(images, out, (2, 2), shards=shards).done == 0


def test_shares_are_even_and_apart(images, tmp_path):
    plans = [plan_batch(images, tmp_path / "out", BatchSettings(share=(k, 5))) for k in range(1, 6)]
    left = [plan.left for plan in plans]
    assert sorted(itertools.chain(*left)) == list(range(GOOD + BAD))
    assert max(map(len, left)) - min(map(len, left)) <= 1
    # Whole shards, which one process writes.
    plan = plan_batch(images, tmp_path / "out", BatchSettings(share=(2, 2), shards=4))
    assert plan.left[:5] == [4, 5, 6, 7, *([12] if GOOD + BAD > 12 else [])]


def test_the_same_share_twice_is_refused_and_so_is_all_of_it(tmp_path):
    storage = [Storage.of(tmp_path, share) for share in ((1, 2), (1, 2), (2, 2), None)]
    with storage[0].locked():
        with pytest.raises(JobError, match="another process works on this job, on all of it or on share 1/2"):
            storage[1].locked().__enter__()
        with storage[2].locked(), pytest.raises(JobError, match=r"another process works on this job$"):
            storage[3].locked().__enter__()
    with storage[3].locked(), pytest.raises(JobError, match="on all of it or on share"):
        storage[0].locked().__enter__()


def test_shares_clean_up_behind_themselves_alone(tmp_path):
    def unfinished():
        return {path.name for path in (tmp_path / ".dajax").glob("unfinished*")}

    alive, dead, mine, whole = (Storage.of(tmp_path, share) for share in ((1, 4), (2, 4), (3, 4), None))
    for storage in (alive, dead, mine, whole):
        storage.stage(b"half")
    assert len(unfinished()) == 4
    with alive.locked(), mine.locked():
        mine.clean()
        # Whether the others are dead cannot be told where locks hold on one machine only.
        assert unfinished() == {"unfinished-1-of-4", "unfinished-2-of-4"}
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
        do(images, tmp_path / "out", (1, 2), Dying())
    for k in (3, 1, 2):
        do(images, tmp_path / "out", (k, 3))
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_a_source_that_grew_is_for_one_process_first(tmp_path):
    source = make_images(tmp_path / "images", 4, 0)
    do(source, tmp_path / "out", (1, 2))
    make_images(tmp_path / "images", 6, 0)
    with pytest.raises(JobError, match="run this once without a share"):
        do(source, tmp_path / "out", (2, 2))
    do(source, tmp_path / "out")
    assert len(outputs(tmp_path / "out")) == 12


@pytest.mark.parametrize("share", [(0, 2), (3, 2), (1, 0)])
def test_shares_that_cannot_be(share):
    with pytest.raises(ConfigError, match="k from 1 to n"):
        BatchSettings(share=share).check()
