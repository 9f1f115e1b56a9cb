"""Shows that a device computes the depth maps that it should: what `dajax check` does."""

from __future__ import annotations

import time
from importlib import resources
from typing import Any, NamedTuple

import jax
import numpy as np

from dajax.errors import ConfigError
from dajax.inference.estimator import DepthEstimator
from dajax.kernels.targets import current_target

# For each dtype the largest mean and the largest single error, in standard deviations of the depth map. Those of half
# precision are the largest of 50 images (python -m benchmarks.precision), those of float32 what the tests hold to.
BOUNDS = {"float32": (1e-5, 3e-5), "bfloat16": (5.3e-3, 4.1e-2), "float16": (9.8e-4, 9.5e-3)}
# GPUs and TPUs compute neck and head in bfloat16 too. Measured likewise, with --target tpu, interpreted.
ROUNDED_BOUNDS = {"bfloat16": (1.05e-2, 7.3e-2)}
_SHAPES = ("landscape", "portrait")
_TIMED = 10


class Agreement(NamedTuple):
    """How near the depth maps of a device are to the stored ones.

    Attributes:
        dtype: the computation dtype.
        device: the kind of device, and the number of devices if there are several.
        mean: the mean error of the worst depth map, in its standard deviations.
        largest: the largest error of a pixel, in standard deviations of its depth map.
        bounds: (mean, largest) that are allowed.
        seconds: the time of the network for an image of 168x224 pixels, the median of ten runs.
    """

    dtype: str
    device: str
    mean: float
    largest: float
    bounds: tuple[float, float]
    seconds: float

    @property
    def is_within(self) -> bool:
        """Whether both errors are allowed. An error that is not a number is not."""
        return self.mean <= self.bounds[0] and self.largest <= self.bounds[1]


def check_device(dtype: str = "float32", *, mesh: Any = None, kernels: str = "auto") -> Agreement:
    """Run `tiny` on stored images, alone and in batches, and compare with depth maps that were computed in float64.

    Args:
        dtype: "float32", "bfloat16" or "float16".
        mesh: the devices, as for `dajax.DepthEstimator`.
        kernels: "auto" for those that this device would use, "reference" for the plain formulas.

    Raises:
        ConfigError: the dtype is another one.
    """
    if dtype not in BOUNDS:
        raise ConfigError(f"dtype must be one of {', '.join(BOUNDS)}, got {dtype!r}")
    estimator = DepthEstimator("tiny", dtype=dtype, mesh=mesh, kernels=kernels)
    rounded = current_target().platform != "cpu"
    bounds = ROUNDED_BOUNDS.get(dtype, BOUNDS[dtype]) if rounded else BOUNDS[dtype]
    stored = read_stored()
    means, largest = [], []
    for batch_size in (estimator.batch_size, 2 * estimator.batch_size):
        shapes = [shape for shape in _SHAPES for _ in range(batch_size)]
        images = [stored[f"{shape}_image"] for shape in shapes]
        depths = estimator.stream(images, batch_size=batch_size, source_size=False)
        for shape, depth in zip(shapes, depths, strict=True):
            expected = stored[f"{shape}_depth"].astype(np.float64)
            error = np.abs(depth - expected) / expected.std()
            means.append(error.mean())
            largest.append(error.max())
    # np.max keeps what is not a number.
    return Agreement(
        dtype,
        estimator.device,
        float(np.max(means)),
        float(np.max(largest)),
        bounds,
        _seconds(estimator, stored["landscape_image"]),
    )


def read_stored() -> dict[str, np.ndarray]:
    """Return the stored images, uint8 [height, width, 3], and their depth maps, float32 [height, width]."""
    with (resources.files("dajax") / "assets" / "tiny" / "check.npz").open("rb") as file, np.load(file) as stored:
        return dict(stored)


def _seconds(estimator: DepthEstimator, image: np.ndarray) -> float:
    pixels, _ = estimator.processor.preprocess_one(image)
    batch = np.repeat(pixels[None], estimator.batch_size, axis=0)
    times = []
    for _ in range(_TIMED):
        start = time.perf_counter()
        jax.block_until_ready(estimator.predict(batch))
        times.append(time.perf_counter() - start)
    return float(np.median(times)) / estimator.batch_size
