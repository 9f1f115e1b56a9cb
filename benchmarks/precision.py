"""`python -m benchmarks.precision`: measures the errors of half precision in the depth, over images and sizes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from .machine import describe, versions
from .measure import checkpoint_of

IMAGES = ("astronaut", "coffee", "chelsea", "rocket", "stereo_motorcycle")
CROPS = 50
RANDOM_INPUTS = 1000
SIZES = ("tiny", "small", "base", "large")


def crops() -> list[np.ndarray]:
    """Return 50 parts of scikit-image's images, uint8 [height, width, 3]: of all aspect ratios from 9:16 to 16:9."""
    from skimage import data

    images = [getattr(data, name)() for name in IMAGES]
    images = [image[0] if isinstance(image, tuple) else image for image in images]
    rng, found = np.random.default_rng(0), []
    for i in range(CROPS):
        image = images[i % len(images)]
        fraction, ratio = rng.uniform(0.5, 1), 2 ** rng.uniform(-0.83, 0.83)
        height, width = image.shape[:2]
        side = fraction * min(height * ratio, width)
        size = int(side / ratio), int(side)
        top, left = (int(rng.integers(0, full - part + 1)) for full, part in zip((height, width), size, strict=True))
        found.append(np.ascontiguousarray(image[top : top + size[0], left : left + size[1]]))
    return found


def errors(depth: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return the errors of a depth map against the float32 one.

    `mean` and `max` are relative to the largest depth. `absrel` is relative to the depth of each pixel, over pixels
    above the 5th percentile (near zero a relative error says nothing). `mean_std` and `max_std` are in standard
    deviations.
    """
    distance = np.abs(depth.astype(np.float64) - reference)
    kept = reference > max(np.quantile(reference, 0.05), 0)
    return {
        "mean": float(distance.mean() / reference.max()),
        "max": float(distance.max() / reference.max()),
        "absrel": float((distance[kept] / reference[kept]).mean()),
        "mean_std": float(distance.mean() / reference.std()),
        "max_std": float(distance.max() / reference.std()),
    }


def measure(
    checkpoint: Path | str, dtypes: tuple[str, ...], images: list[np.ndarray], platform: str | None = None
) -> dict[str, dict[str, list[float]]]:
    """Return {type: {error: [its mean and its largest over the images]}} against float32.

    With a platform, each type is computed and rounded as that platform does it: kernels of a TPU are interpreted.
    """
    import dajax

    reference = [dajax.DepthEstimator(checkpoint)(image) for image in images]
    found = {}
    for dtype in dtypes:
        with dajax.kernels.target(platform, interpreted=platform == "tpu"):
            estimator = dajax.DepthEstimator(checkpoint, dtype=dtype)
            rows = [errors(estimator(image), exact) for image, exact in zip(images, reference, strict=True)]
        found[dtype] = {
            name: [float(f"{f([row[name] for row in rows]):.3g}") for f in (np.mean, np.max)] for name in rows[0]
        }
    return found


def not_finite(checkpoint: Path | str, dtype: str) -> int:
    """Return how many of 1,000 random inputs give a depth map that is not finite. They are flat colours with noise."""
    import dajax

    estimator = dajax.DepthEstimator(checkpoint, dtype=dtype)
    rng, bad = np.random.default_rng(0), 0
    for _ in range(RANDOM_INPUTS // 10):
        contrast = rng.uniform(0, 4, (10, 1, 1, 1))
        pixels = rng.uniform(-2, 2, (10, 1, 1, 3)) + contrast * rng.standard_normal((10, 126, 126, 3))
        maps = np.asarray(estimator.predict(pixels.astype(np.float32)))
        bad += int((~np.isfinite(maps).all((1, 2))).sum())
    return bad


def table(results: dict[str, Any]) -> str:
    """Return the stored errors as a table in Markdown."""
    names = ("mean", "max", "absrel", "mean_std", "max_std")
    lines = ["|  | type | " + " | ".join(_TITLES[name] for name in names) + " |", "| --- " * (len(names) + 2) + "|"]
    for size, row in sorted(results["sizes"].items(), key=lambda item: SIZES.index(item[0])):
        for dtype, found in row.items():
            if isinstance(found, dict):
                cells = [" (".join(_figure(value, name) for value in found[name]) + ")" for name in names]
                lines.append(f"| {size.capitalize()} | {dtype} | {' | '.join(cells)} |")
    counts = [
        f"{size.capitalize()}: {row['float16_not_finite']} of {row['random_inputs']:,}"
        for size, row in results["sizes"].items()
        if "random_inputs" in row
    ]
    images = {row["images"] for row in results["sizes"].values()}
    of = str(*images) if len(images) == 1 else f"{min(images)} to {max(images)}"
    told = f"Means over {of} images; the largest in brackets."
    if counts:
        told += f" Random inputs whose depth map is not finite in float16: {'; '.join(counts)}."
    return "\n".join([told, "", *lines])


_TITLES = {
    "mean": "mean error / largest depth",
    "max": "largest error / largest depth",
    "absrel": "AbsRel above the 5th percentile",
    "mean_std": "mean error / deviation",
    "max_std": "largest error / deviation",
}


def _figure(value: float, name: str) -> str:
    return f"{value:.1e}" if name.endswith("std") else f"{value:.2%}"


def main(argv: list[str] | None = None) -> None:
    """Measure the sizes that the arguments name and add them to the JSON file."""
    parser = argparse.ArgumentParser("python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16"])
    parser.add_argument("--images", type=int, default=CROPS)
    parser.add_argument("--target", choices=("cuda", "tpu"), help="compute and round as this platform does")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="for checkpoints")
    options = parser.parse_args(argv)

    import jax

    name = "precision.json" if options.target is None else f"precision_{options.target}.json"
    out = options.out or Path("docs/performance") / name
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"sizes": {}}
    results |= {"machine": describe(jax.devices()[0]), "versions": versions()}
    images = crops()[: options.images]
    for size in options.sizes:
        # tiny is the only one whose trained weights come with dajax.
        checkpoint = "tiny" if size == "tiny" else checkpoint_of(size, options.folder)
        row: dict[str, Any] = {"images": len(images)} | measure(
            checkpoint, tuple(options.dtypes), images, options.target
        )
        if "float16" in options.dtypes and options.target is None:
            row |= {"random_inputs": RANDOM_INPUTS, "float16_not_finite": not_finite(checkpoint, "float16")}
        results["sizes"][size] = row
        print(size, json.dumps(row), flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
