"""Compares a whole job with the network alone: python -m benchmarks.batch.

Small with random weights, on images of one size, float32. What `dajax batch` adds (reading, resizing, encoding,
writing, flushing, the manifest) should run beside the network and cost little.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

import dajax
from dajax.batch import BatchSettings, run_batch
from dajax.preprocessing.buckets import Buckets
from dajax.weights.random import random_params


def main(count: int, batch_size: int, rounds: int) -> None:
    """Measure both in turns; print images per second and the ratio of the medians."""
    config = dajax.DepthAnythingConfig.small()
    estimator = dajax.DepthEstimator((dajax.DepthAnything(config), random_params(config)), batch_size=batch_size)
    image = skimage.data.coffee()
    taken = Buckets(estimator.processor, None).process(image)
    pixels = np.stack([taken.pixels] * batch_size)
    np.asarray(estimator.predict(pixels))
    alone, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "images")
        source.mkdir()
        for i in range(count):
            Image.fromarray(np.roll(image, i, axis=1)).save(source / f"{i:04}.jpg", quality=92)
        for number in range(rounds):
            start = time.perf_counter()
            for _ in range(count // batch_size):
                np.asarray(estimator.predict(pixels))
            alone.append(count // batch_size * batch_size / (time.perf_counter() - start))
            settings = BatchSettings(formats=("npy",), batch_size=batch_size)
            report = run_batch(estimator, source, Path(folder, f"out{number}"), settings, progress=False)
            whole.append(report.done / report.seconds)
            print(f"network alone {alone[-1]:.2f}, whole job {whole[-1]:.2f} images a second")
    print(f"median: {np.median(whole) / np.median(alone):.3f} of the network alone, {count} images a round")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.count, arguments.batch_size, arguments.rounds)
