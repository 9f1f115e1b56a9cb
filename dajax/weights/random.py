"""Random parameters that behave like trained ones, for demonstrations and tests without a download.

A freshly initialised Depth Anything gives depth maps near zero, on which any two implementations agree. These
parameters give depth maps whose mean and deviation are near one.

`python -m dajax.weights.random small FOLDER` writes a checkpoint of them.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from dajax.config import DepthAnythingConfig
from dajax.weights.shapes import Shape, parameter_shapes


def random_params(config: DepthAnythingConfig, seed: int = 0) -> dict[str, Any]:
    """Return params as a nested dict of numpy arrays, float32: the same on every machine and with every numpy."""
    return unflatten_dict({path: _draw(path, shape, seed) for path, shape in parameter_shapes(config).items()}, sep="/")


def _draw(path: str, shape: Shape, seed: int) -> np.ndarray:
    # Uniform numbers come straight from the generator's bits. How numpy makes normal ones may change.
    bits = np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}/{path}".encode())))
    unit = (bits.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(np.sqrt(12))  # standard deviation 1
    name = path.rsplit("/", 1)[-1]
    if name == "kernel":
        deviation, mean = np.sqrt(1.4 / np.prod(shape[:-1])), 0.0
    elif name == "scale":
        deviation, mean = 0.2, 1.0
    elif name == "lambda1":
        deviation, mean = 0.1, 0.3
    elif name == "bias":
        deviation, mean = 0.1, 1.0 if path.startswith("head/conv3") else 0.0
    else:
        deviation, mean = 0.5, 0.0  # tokens and positions
    return unit * np.float32(deviation) + np.float32(mean)


def _main() -> None:
    from dajax.model.depth_anything import DepthAnything
    from dajax.weights.saving import save

    size, folder = sys.argv[1:]
    config = DepthAnythingConfig.from_pretrained(size)
    save(folder, DepthAnything(config), random_params(config))
    print(f"wrote {folder}: {size} with RANDOM weights. It shows that everything runs; its depth maps are not depth.")


if __name__ == "__main__":
    _main()
