"""Measures what a process keeps that lives long: python -m benchmarks.service. Prints the rows of docs/service.md.

New sizes: Small with random weights, which compiles a program for each. Calls: 2,000 calls of `tiny` at 98 pixels by
four threads, with images of 200 sizes.
"""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import dajax
from dajax.preprocessing.buckets import Buckets
from dajax.weights.random import random_params

SIZES = [(60 + 3 * row, 200 - 7 * column) for row in range(20) for column in range(10)]
NEW_WIDTHS = [518 + 14 * i for i in range(1, 13)]


def resident() -> float:
    """Return the memory of this process in MB."""
    gc.collect()
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def new_sizes() -> tuple[float, float]:
    """Return the seconds and the MB that a new size takes, the mean of twelve."""
    config = dajax.DepthAnythingConfig.small()
    estimator = dajax.DepthEstimator((dajax.DepthAnything(config), random_params(config)))

    def run(width: int) -> float:
        start = time.perf_counter()
        np.asarray(estimator.predict(np.zeros((1, 518, width, 3), np.float32)))
        return time.perf_counter() - start

    run(518)  # the first size also takes the memory that every program uses
    before, seconds = resident(), []
    for width in NEW_WIDTHS:
        seconds.append(run(width) - run(width))
    return float(np.median(seconds)), (resident() - before) / len(NEW_WIDTHS)


def calls(buckets: int | None) -> tuple[int, float, float]:
    """Return at how many sizes images are processed, and the process's MB after 600 and after 2,000 calls."""
    estimator = dajax.DepthEstimator("tiny", input_size=98, buckets=buckets)
    images = [np.full((*size, 3), 100, np.uint8) for size in SIZES]
    readings = []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            list(pool.map(estimator, images))
            readings.append(resident())
    found = Buckets(estimator.processor, buckets)
    return len({found.size_of(*size) for size in SIZES}), readings[2], readings[-1]


def main() -> None:
    """Measure and print."""
    seconds, memory = new_sizes()
    print(f"a new size of Small: {seconds:.1f} s and {memory:.0f} MB")
    for buckets in (4, None):
        sizes, first, last = calls(buckets)
        print(f"buckets={buckets}: {sizes} programs; {first:.0f} MB after 600 calls, {last:.0f} after 2,000")


if __name__ == "__main__":
    main()
