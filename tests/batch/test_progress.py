"""The progress file: what it says while a job runs, and when it has ended or failed."""

import json

import pytest

from dajax.batch.local_storage import LocalStorage
from dajax.batch.progress import Progress
from dajax.errors import JobError


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("dajax.batch.progress.time.monotonic", lambda: now[0])
    return now


def said(tmp_path):
    found = json.loads((tmp_path / ".dajax" / "progress-1-of-3.json").read_text())
    del found["time"]
    return found


def test_what_is_finished_and_how_long_the_rest_takes(tmp_path, clock):
    storage = LocalStorage(tmp_path, "-1-of-3")
    storage.append(".dajax/manifest/x", b"")
    with Progress(storage, total=100, earlier=40, show=False) as progress:
        assert said(tmp_path) == {
            "total": 100, "finished": 40, "rejected_in_this_run": 0, "images_per_second": 0.0, "seconds_left": None,
            "running": True, "notes": [],
        }  # fmt: skip
        clock[0] += 4.0
        progress.advance(8, 2)
        assert said(tmp_path)["finished"] == 40  # it is not written that often
        clock[0] += 6.0
        progress.advance(12, 1)
        assert said(tmp_path) == {
            "total": 100, "finished": 60, "rejected_in_this_run": 3, "images_per_second": 2.0, "seconds_left": 20.0,
            "running": True, "notes": [],
        }  # fmt: skip
        progress.note("a remark")
        assert said(tmp_path)["notes"] == ["a remark"]
    assert not said(tmp_path)["running"]


def test_a_job_that_failed_does_not_run(tmp_path, clock, monkeypatch):
    storage = LocalStorage(tmp_path, "-1-of-3")

    def run(fault):
        with Progress(storage, total=2, earlier=0, show=False):
            fault()

    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
    assert not said(tmp_path)["running"]

    def full():
        def replace(*arguments):
            raise JobError("No space left on device")

        monkeypatch.setattr(storage, "replace", replace)
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        run(full)
    assert said(tmp_path)["running"]
