"""Processes that are killed and disks that fail: a job goes on, and ends like a job without such faults."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from batch_jobs import FORMATS, GOOD, PlainEstimator, assert_same_job, do, make_images, outputs, rows
from PIL import Image

from dajax.batch.local_storage import LocalStorage
from dajax.batch.manifest import read_manifest
from dajax.errors import JobError

PRIMITIVES = ("_open", "_write", "_sync", "_rename", "_sync_folder")


class Counting(LocalStorage):
    """Calls `action` at the n-th call of a primitive: before it or after it."""

    action = None
    at = (10**9, "before")
    seen = 0
    names = ()


def _counted(name):
    real = getattr(LocalStorage, name)

    def primitive(self, *arguments):
        if name not in Counting.names:
            return real(self, *arguments)
        Counting.seen += 1
        mine, when = Counting.at
        if Counting.seen == mine and when == "before":
            Counting.action()
        result = real(self, *arguments)
        if Counting.seen == mine and when == "after":
            Counting.action()
        return result

    return primitive


for _name in PRIMITIVES:
    setattr(Counting, _name, _counted(_name))


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr("dajax.batch.storage_kinds.LocalStorage", Counting)
    Counting.seen, Counting.at, Counting.names = 0, (10**9, "before"), PRIMITIVES
    return Counting


def in_a_fork(action):
    """Run in a fork of this process, in which jax has not started; return the exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def faults(count):
    """Return how many of the possible faults are tried; `make faults` tries more."""
    return int(os.environ.get("DAJAX_FAULTS", count))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
@pytest.mark.parametrize("shards", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_a_crash_at_any_step(images, undisturbed, sharded, tmp_path, counting, shards):
    """Before and after every open, write, fsync and rename, of outputs and manifest alike."""
    do(images, tmp_path / "all", shards=shards)
    steps = [(n, when) for n in range(1, counting.seen + 1) for when in ("before", "after")]
    chosen = np.random.default_rng(0).permutation(len(steps))[: faults(6)]
    counting.action = lambda: os._exit(9)
    crashed = 0
    for number in chosen:
        output = tmp_path / str(number)
        counting.seen, counting.at = 0, steps[number]
        status = in_a_fork(lambda output=output: do(images, output, shards=shards))
        # How many rows are flushed together depends on the pace: a job may have a few steps less than the counted one.
        assert status in (9, 0)
        crashed += status == 9
        counting.at = (10**9, "before")
        do(images, output, shards=shards)
        assert_same_job(output, sharded if shards else undisturbed)
    assert crashed >= 0.9 * len(chosen)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
@pytest.mark.parametrize("shards", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_a_crash_at_any_step_of_a_remake(tmp_path, counting, shards):
    """One image has changed and another one became bad. Who goes on need not say that they are made again."""
    source = make_images(tmp_path / "images", good=5, bad=1)
    do(source, tmp_path / "before", shards=shards)
    Image.new("RGB", (61, 47), "red").save(source / "set0" / "image 0.jpg")
    (source / "set2" / "image 2.jpg").write_bytes(b"no image any more")
    do(source, tmp_path / "fresh", shards=shards)
    asked = {"shards": shards, "check_inputs": True, "remake_changed": True}
    shutil.copytree(tmp_path / "before", tmp_path / "all")
    counting.seen = 0
    do(source, tmp_path / "all", **asked)
    assert_same_job(tmp_path / "all", tmp_path / "fresh")
    steps = [(n, when) for n in range(1, counting.seen + 1) for when in ("before", "after")]
    counting.action = lambda: os._exit(9)
    for number in np.random.default_rng(2).permutation(len(steps))[: faults(2)]:
        output = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", output)
        counting.seen, counting.at = 0, steps[number]
        assert in_a_fork(lambda output=output: do(source, output, **asked)) in (9, 0)
        counting.at = (10**9, "before")
        if not any(row.status == "lost" for row in rows(output)):  # it crashed before it had begun, or at its end
            do(source, output, **asked)
        do(source, output, shards=shards)
        assert_same_job(output, tmp_path / "fresh")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE], ids=errno.errorcode.get)
def test_a_disk_that_fails(images, undisturbed, tmp_path, counting, number):
    full = number == errno.ENOSPC
    counting.names = ("_write",) if full else PRIMITIVES
    do(images, tmp_path / "all")
    last = counting.seen

    def fail():
        raise OSError(number, os.strerror(number))

    counting.action = fail
    count = faults(8) // 4
    # The first writes are the job's own records.
    steps = range(1, count + 1) if full else np.random.default_rng(number).permutation(np.arange(1, last + 1))[:count]
    for step in steps:
        output = tmp_path / str(step)
        counting.seen, counting.at = 0, (int(step), "before")
        with pytest.raises(JobError, match=os.strerror(number)):
            do(images, output)
        # No file with a final name is cut off.
        whole = outputs(undisturbed)
        assert all(whole[name] == digest for name, digest in outputs(output).items())
        counting.at = (10**9, "before")
        do(images, output)
        assert_same_job(output, undisturbed)


def start(images, output, **settings):
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from batch_jobs import PlainEstimator\n"
        "from dajax.batch.engine import run_batch\n"
        "from dajax.batch.job_settings import BatchSettings\n"
        f"settings = BatchSettings(**{ {'formats': FORMATS, 'workers': 2} | settings!r})\n"
        f"run_batch(PlainEstimator(), {str(images)!r}, {str(output)!r}, settings, progress=False)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("shards", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_at_any_moment(images, undisturbed, sharded, tmp_path, shards):
    rng = np.random.default_rng(0)
    with start(images, tmp_path / "timed", shards=shards) as process:
        began = time.monotonic()
        _, said = process.communicate()
        assert process.returncode == 0, said
    whole = time.monotonic() - began
    for number in range(faults(3)):
        output = tmp_path / str(number)
        with start(images, output, shards=shards) as process:
            time.sleep(rng.uniform(0.2, 1) * whole)
            process.kill()
        do(images, output, shards=shards)
        assert_same_job(output, sharded if shards else undisturbed)


def test_a_chain_of_kills(images, undisturbed, tmp_path):
    rng = np.random.default_rng(1)
    for chain in range(max(faults(10) // 10, 1)):
        output = tmp_path / str(chain)
        for _ in range(10 if faults(10) > 10 else 4):
            with start(images, output) as process:
                time.sleep(rng.uniform(0.2, 1.2))
                process.send_signal(signal.SIGKILL)
        do(images, output)
        assert_same_job(output, undisturbed)


class Died(BaseException):
    pass


@pytest.mark.parametrize("last", [0, 3, 6])
def test_work_done_twice_is_bounded(images, tmp_path, last):
    """At most what was in flight is done twice: counted as images that reach the network."""
    seen = []

    class Dying(PlainEstimator):
        last = 10**9

        def stream(self, images, **options):
            for place, depth in enumerate(super().stream(images, **options)):
                seen.append(place)
                yield depth
                if place == self.last:
                    raise Died

    first = Dying()
    first.last = last
    with pytest.raises(Died):
        do(images, tmp_path, first)
    do(images, tmp_path, Dying())
    assert GOOD <= len(seen) <= GOOD + last + 1


def test_a_row_of_rejects_stops_at_max_rejects(tmp_path):
    """If the disk with the images fails, the job does not go on to the last image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(400):
        (folder / f"{i:03}.jpg").write_bytes(b"")
    with pytest.raises(JobError, match="max_rejects is 5"):
        do(folder, tmp_path / "out", max_rejects=5)
    assert len(read_manifest(tmp_path / "out")) < 200
