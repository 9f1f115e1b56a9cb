"""Measures what few sizes cost: python -m benchmarks.buckets. Prints a table and writes it into docs/batch.md.

Time: Small with random weights and input_size 252, 200 images of 40 sizes, whole batches of one; programs are compiled
beforehand. Accuracy: `tiny` on synthetic scenes of those aspect ratios, aligned by scale and shift in inverse depth.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np

import dajax
from dajax.evaluation.metrics import align_inverse_depth, average_metrics, depth_metrics
from dajax.preprocessing.buckets import Buckets
from dajax.training.batches import HELD_OUT_SEED
from dajax.training.data.synthetic import MAX_DEPTH, render_scenes
from dajax.weights.random import random_params

PAGE = Path(__file__).parents[1] / "docs" / "batch.md"
HEAD = "| buckets | programs | time, of the images one by one | AbsRel of `tiny` | delta1 |\n|---|---|---|---|---|\n"
CASES: list[tuple[str, int | None, str]] = [
    ("none", None, "resize"),
    ("4, resize", 4, "resize"),
    ("4, pad", 4, "pad"),
    ("1, resize", 1, "resize"),
    ("1, pad", 1, "pad"),
]
SIZES = [(round(300 / ratio**0.5), round(300 * ratio**0.5)) for ratio in np.geomspace(9 / 16, 16 / 9, 40)]
EACH = 5


def seconds(estimator: dajax.DepthEstimator, count: int | None, policy: str) -> tuple[int, float]:
    """Return how many programs 200 images need, and the seconds that they run."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES for _ in range(EACH)]
    order = rng.permutation(len(images))
    buckets = Buckets(estimator.processor, count, policy)
    taken = [buckets.process(images[i]) for i in order]
    sizes = {image.pixels.shape[:2] for image in taken}
    for size in sizes:
        np.asarray(estimator.predict(np.zeros((1, *size, 3), np.float32)))
    start = time.perf_counter()
    for _ in estimator.stream(taken, batch_size=1, source_size=False):
        pass
    return len(sizes), time.perf_counter() - start


def accuracy(estimator: dajax.DepthEstimator, count: int | None, policy: str) -> tuple[float, float]:
    """Return AbsRel and delta1 on scenes of eight of the sizes."""
    found = []
    for number, size in enumerate(SIZES[::5]):
        taken = render_scenes(HELD_OUT_SEED, range(2000 + 30 * number, 2030 + 30 * number), size)
        for depth, inverse in zip(
            taken.depth, estimator.stream(taken.image, buckets=count, policy=policy), strict=True
        ):
            metres = align_inverse_depth(inverse, depth, depth > 0, max_depth=MAX_DEPTH)
            found.append(depth_metrics(np.clip(metres, 1e-3, MAX_DEPTH), depth, depth > 0))
    mean = average_metrics(found).mean
    return mean.abs_rel, mean.delta1


def main() -> None:
    """Measure, print and write the table."""
    config = dajax.DepthAnythingConfig.small()
    timed = dajax.DepthEstimator((dajax.DepthAnything(config), random_params(config)), input_size=252)
    tiny = dajax.DepthEstimator("tiny")
    times: dict[str, list[float]] = {name: [] for name, *_ in CASES}
    programs = {}
    for _ in range(3):  # in turns
        for name, count, policy in CASES:
            programs[name], spent = seconds(timed, count, policy)
            times[name].append(spent)
    rows = ""
    for name, count, policy in CASES:
        ratio = float(np.median(times[name]) / np.median(times["none"]))
        abs_rel, delta1 = accuracy(tiny, count, policy)
        rows += f"| {name} | {programs[name]} | {ratio:.2f} | {abs_rel:.3f} | {delta1:.3f} |\n"
    print(HEAD + rows)
    page = PAGE.read_text()
    PAGE.write_text(re.sub(re.escape(HEAD) + r"(\|.*\n)*", lambda _: HEAD + rows, page))


if __name__ == "__main__":
    main()
