import zlib

import numpy as np
from flax.traverse_util import flatten_dict
from tiny import tiny_config

from dajax.weights.random import random_params
from dajax.weights.shapes import parameter_shapes


def test_the_same_everywhere():
    """Written down once: neither numpy's version nor the machine changes a bit of them."""
    flat = flatten_dict(random_params(tiny_config()), sep="/")
    assert {path: leaf.shape for path, leaf in flat.items()} == parameter_shapes(tiny_config())
    digest = zlib.crc32(b"".join(flat[path].tobytes() for path in sorted(flat)))
    assert digest == 1313427274


def test_deviations():
    flat = flatten_dict(random_params(tiny_config(), seed=1), sep="/")
    assert {leaf.dtype for leaf in flat.values()} == {np.dtype(np.float32)}
    kernel = flat["backbone/layer_0/mlp/fc1/kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(1.4 / 32), rtol=0.05)
    np.testing.assert_allclose(flat["backbone/embeddings/position_embeddings"].std(), 0.5, rtol=0.1)
    assert flat["backbone/layer_0/layer_scale1/lambda1"].min() > 0.1
    assert (flat["backbone/layer_0/mlp/fc1/kernel"] != flat["backbone/layer_1/mlp/fc1/kernel"]).all()
    other = flatten_dict(random_params(tiny_config(), seed=2), sep="/")
    assert (kernel != other["backbone/layer_0/mlp/fc1/kernel"]).mean() > 0.99
