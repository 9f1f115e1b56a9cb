"""Small jobs: images, an estimator without a network, and comparisons of two runs."""

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image
from tiny import tiny_config

from dajax.batch.engine import run_batch
from dajax.batch.job_settings import BatchSettings
from dajax.batch.manifest import read_manifest
from dajax.preprocessing.buckets import ProcessedImage
from dajax.preprocessing.processor import DepthImageProcessor

# `make faults` uses more images.
GOOD, BAD = (475, 25) if "DAJAX_FAULTS" in os.environ else (9, 3)
FORMATS = ("npy", "color")
# What may stay in a job's own folder.
OWN = r"manifest|job\.json|(lock|progress)(-\d+-of-\d+)?(\.json)?"


def make_images(folder, good=GOOD, bad=BAD):
    """Write images of several sizes into several folders, and files that are no images."""
    rng = np.random.default_rng(0)
    for i in range(good):
        path = folder / f"set{i % 3}" / f"image {i}.{'png' if i % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + 10 * (i % 3), 60, 3), np.uint8)).save(path)
    for i in range(bad):
        path = folder / "set1" / f"bad {i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((b"", b"no image", b"\xff\xd8\xff" + bytes(50))[i % 3])
    return folder


class PlainEstimator:
    """Stands for a `DepthEstimator`: the mean of each pixel's channels. It needs no jax, so a process may fork."""

    def __init__(self, scale=1.0, config=None):
        self.params = {"scale": np.float32(scale)}
        self.model = SimpleNamespace(config=config or tiny_config())
        self.processor = DepthImageProcessor(input_size=28)
        self.batch_size, self.dtype, self.device, self.name = 2, "float32", "none", ""

    def compile(self, *, batch_size, buckets, whole_batches, progress, stop):
        assert (whole_batches, progress) == (True, False)
        self.compiled = (batch_size, buckets)

    def stream(self, images, *, batch_size, whole_batches, source_size, on_smaller_batch):
        # Outputs are equal to the bit because of these.
        assert (whole_batches, source_size) == (True, False)
        self.asked_batch_size, self.on_smaller_batch = batch_size, on_smaller_batch
        for image in images:
            assert isinstance(image, ProcessedImage)
            yield image.pixels.mean(-1) * self.params["scale"]


def do(images, output, estimator=None, *, stop=None, **settings):
    settings = BatchSettings(**({"formats": FORMATS, "workers": 2} | settings))
    return run_batch(estimator or PlainEstimator(), images, output, settings, progress=False, stop=stop)


def outputs(folder: Path):
    """Return the SHA-256 of every output, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".dajax" not in path.parts
    }


def rows(folder):
    """Return the rows of the manifest, sorted by key, without times."""
    return [replace(row, time="") for _, row in sorted(read_manifest(folder).items())]


def leftovers(folder):
    """Return what a job should not have left in its own folder."""
    found = {entry.name for entry in os.scandir(folder / ".dajax")}
    return {name for name in found if not re.fullmatch(OWN, name)}


def assert_same_job(folder, undisturbed):
    assert outputs(folder) == outputs(undisturbed)
    assert rows(folder) == rows(undisturbed)
    assert not leftovers(folder)
