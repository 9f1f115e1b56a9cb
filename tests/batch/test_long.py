"""Jobs that take minutes. Run with: pytest -m slow tests/batch."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from batch_jobs import PlainEstimator, make_images, outputs, rows

from dajax.batch.engine import run_batch
from dajax.batch.job_settings import BatchSettings

pytestmark = pytest.mark.slow


def resident():
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Watched(PlainEstimator):
    """Notes memory and open files on the way."""

    def __init__(self, every):
        super().__init__()
        self.every, self.memory, self.files = every, [], []

    def stream(self, images, **options):
        for place, depth in enumerate(super().stream(images, **options)):
            if place % self.every == 0:
                self.memory.append((place, resident()))
                self.files.append(len(os.listdir("/proc/self/fd")))
            yield depth


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc: run it on Linux")
def test_memory_and_files_stay_what_they_are(tmp_path):
    """20,000 images take less than 1 kB each, and leave no file open."""
    image = make_images(tmp_path / "one", good=1, bad=0) / "set0" / "image 0.jpg"
    source = tmp_path / "images"
    for i in range(20_000):
        path = source / f"{i // 1000}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(image, path)
    estimator = Watched(every=500)
    report = run_batch(estimator, source, tmp_path / "out", BatchSettings(workers=2), progress=False)
    assert report.done == 20_000
    places, memory = np.array(estimator.memory[4:], np.float64).T
    slope = np.polyfit(places, memory, 1)[0]
    print(f"{slope:.0f} bytes an image, {set(estimator.files[4:])} open files, {20_000 / report.seconds:.0f} a second")
    assert slope < 1000
    assert max(estimator.files[4:]) <= min(estimator.files[4:]) + 2


def test_a_storm_of_bad_files(tmp_path):
    """With as many bad files as good ones, all good outputs are equal, all bad ones have a row; memory stays."""
    clean, storm = tmp_path / "clean", tmp_path / "storm"
    make_images(clean, good=300, bad=0)
    make_images(storm, good=300, bad=300)
    found = {}
    for source in (clean, storm):
        estimator = Watched(every=20)
        run_batch(estimator, source, tmp_path / f"{source.name}-out", BatchSettings(workers=2), progress=False)
        found[source] = max(memory for _, memory in estimator.memory)
    assert outputs(tmp_path / "storm-out") == outputs(tmp_path / "clean-out")
    assert [row.key for row in rows(tmp_path / "storm-out") if row.status == "rejected"] == sorted(
        f"set1/bad {i}.jpg" for i in range(300)
    )
    assert found[storm] <= 1.2 * found[clean]
