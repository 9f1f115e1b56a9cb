"""What one, four and eight devices make of the same images, as JSON.

Run as a process of its own by test_parallel.py: the number of devices is set before jax starts.
"""

import json
import warnings

import jax
import numpy as np
from jax.sharding import Mesh
from seeded import error, pixels
from tiny import tiny_config

from dajax import DepthAnything, DepthEstimator
from dajax.inference.parallel import param_shardings
from dajax.weights.random import random_params

warnings.simplefilter("error")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")

devices = np.array(jax.devices())
config = tiny_config()
model, params = DepthAnything(config), random_params(config)
images = pixels(56, 70, batch=8)


def by(rows: int, estimator: DepthEstimator) -> np.ndarray:
    return np.concatenate([np.asarray(estimator.predict(images[i : i + rows])) for i in range(0, 8, rows)])


def mesh(count: int) -> Mesh:
    return Mesh(devices[:count], ("data",))


def sharded(over: Mesh) -> DepthEstimator:
    placed = jax.tree.map(jax.device_put, params, param_shardings(config, over))
    return DepthEstimator((model, placed), mesh=over)


expected = by(1, DepthEstimator((model, params)))

maps, alone = {}, {}
for count in (1, 4, 8):
    for parallel in ("jit", "pmap"):
        estimator = DepthEstimator((model, params), mesh=mesh(count), parallel=parallel)
        maps[f"{parallel}, {count} devices, one image on each"] = by(count, estimator)
        if count == 1 and parallel == "jit":
            maps["jit, one device, eight images"] = by(8, estimator)
        if count == 8:
            few = estimator.predict(images[:5])
            holed = images.copy()
            holed[3] = np.nan
            rest = np.delete(np.asarray(estimator.predict(holed)), 3, axis=0)
            alone[parallel] = [bool((few == expected[:5]).all()), bool((rest == np.delete(expected, 3, axis=0)).all())]

# Explicit axes in newer versions of jax.
fsdp = sharded(jax.make_mesh((8,), ("data",)))
tensor = sharded(jax.make_mesh((2, 4), ("data", "model")))
maps["params sharded over the images' axis"] = by(8, fsdp)
maps["params sharded over another axis"] = by(8, tensor)

results = {
    "maps": {what: [bool((depth == expected).all()), error(depth, expected)] for what, depth in maps.items()},
    "alone": alone,
    "sharded": {
        name: list(estimator.predict(images).sharding.spec) for name, estimator in (("fsdp", fsdp), ("tensor", tensor))
    },
    "deviation": float(expected.std()),
}
print(json.dumps(results))
