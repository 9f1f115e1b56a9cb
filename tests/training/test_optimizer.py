"""The optimizer's groups, schedule, decay and accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from tiny import single_config

from dajax.errors import ConfigError
from dajax.training.optimizer import decay_mask, encoder_only, make_optimizer, poly_schedule
from dajax.weights.random import random_params


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, random_params(single_config()))


def ones(params):
    return jax.tree.map(jnp.ones_like, params)


def updates(optimizer, params, gradients, count=1):
    state = optimizer.init(params)
    for _ in range(count):
        found, state = jax.jit(optimizer.update)(gradients, state, params)
    return flatten_dict(found, sep="/")


def test_schedule_by_hand():
    schedule = poly_schedule(2.0, steps=110, warmup=10, power=0.9)
    assert [float(schedule(step)) for step in (0, 5, 10)] == [0, 1, 2]
    np.testing.assert_allclose(
        [schedule(step) for step in (35, 60, 109, 110, 500)], [2 * s**0.9 for s in (0.75, 0.5, 0.01, 0, 0)], rtol=1e-5
    )
    assert float(poly_schedule(2.0, steps=4)(0)) == 2


def test_encoder_and_the_rest_have_their_rates(params):
    found = updates(make_optimizer(params, steps=100, learning_rate=1e-3, weight_decay=0), params, ones(params))
    for path, update in found.items():
        # Adam's first step is the rate itself, whatever the gradient's size.
        np.testing.assert_allclose(update, -1e-4 if path.startswith("backbone/") else -1e-3, rtol=1e-3)


def test_a_rate_of_zero_freezes_the_encoder(params):
    found = updates(make_optimizer(params, steps=100, encoder_learning_rate=0), params, ones(params), count=3)
    for path, update in found.items():
        assert np.all(update == 0) == path.startswith("backbone/"), path


def test_only_kernels_decay(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(params, steps=100, learning_rate=1e-2, encoder_learning_rate=1e-2, weight_decay=0.5)
    decayed = {path for path, update in updates(optimizer, params, zeros).items() if np.any(update != 0)}
    assert decayed == {path for path in flatten_dict(params, sep="/") if path.endswith("/kernel")}
    assert decayed == {path for path, decays in flatten_dict(decay_mask(params), sep="/").items() if decays}


def test_clipping_is_of_all_gradients_together(params):
    sgd = optax.chain(optax.clip_by_global_norm(1.0))
    clipped = make_optimizer(params, steps=100, clip_norm=1.0)
    huge = jax.tree.map(lambda leaf: 1e6 * leaf, ones(params))
    state = clipped.init(params)
    _, state = jax.jit(clipped.update)(huge, state, params)  # operation by operation it takes ten times as long
    moments = [leaf for path, leaf in flatten_dict({"state": _dict(state)}, sep="/").items() if "/mu/" in path]
    expected, _ = jax.jit(sgd.update)(huge, sgd.init(params))
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in moments)) / (1 - 0.9)
    np.testing.assert_allclose(
        norm, np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(expected))), rtol=1e-4
    )


def _dict(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_accumulation_is_one_update_of_the_mean(params):
    accumulating = make_optimizer(params, steps=100, accumulate=2)
    gradients = ones(params)
    state = accumulating.init(params)
    update = jax.jit(accumulating.update)  # operation by operation it takes ten times as long
    first, state = update(jax.tree.map(lambda leaf: 3 * leaf, gradients), state, params)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(first))
    second, _ = update(jax.tree.map(lambda leaf: -leaf, gradients), state, params)
    expected = updates(make_optimizer(params, steps=100), params, gradients)
    for path, update in flatten_dict(second, sep="/").items():
        np.testing.assert_allclose(update, expected[path], rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": 5, "warmup": 5},
        {"steps": 5, "accumulate": 0},
        {"steps": 5, "learning_rate": -1.0},
        {"steps": True},
    ],
)
def test_bad_numbers(params, options):
    with pytest.raises(ConfigError, match=next(key for key in reversed(options))):
        make_optimizer(params, **options)


def test_encoder_only(params):
    fresh = jax.tree.map(lambda leaf: leaf + 1, params)
    for path, leaf in flatten_dict(encoder_only(params, fresh), sep="/").items():
        source = params if path.startswith("backbone/") else fresh
        np.testing.assert_array_equal(leaf, flatten_dict(source, sep="/")[path])
