"""A training step, on one device and on several."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from seeded import pixels, uniform
from tiny import single_config, single_metric_config

from dajax import DepthAnything
from dajax.errors import ConfigError
from dajax.losses import affine_invariant_loss, silog_loss
from dajax.training.optimizer import make_optimizer
from dajax.training.step import TrainState, make_train_step
from dajax.weights.random import random_params


def per_image(prediction, target, mask):
    """Return the mean over images of the means over their pixels."""
    error = jnp.where(mask, (prediction - target) ** 2, 0).sum((1, 2))
    return (error / jnp.maximum(mask.sum((1, 2)), 1)).mean()


@pytest.fixture(scope="module")
def metric():
    return model_of(single_metric_config())


def model_of(config):
    return DepthAnything(config), jax.tree.map(jnp.asarray, random_params(config))


SGD = optax.sgd(1e-2)
# An update for every second batch.
SGD_OF_TWO = optax.MultiSteps(optax.sgd(1e-2), 2)


def batch_of(count, size=42, seed=0):
    labels = 5 + np.abs(uniform(f"labels {seed}", (count, size, size))).astype(np.float32)
    mask = uniform(f"mask {seed}", (count, size, size)) > -1 + 0.5 * np.arange(count)[:, None, None] / count
    x = uniform(f"x {seed}", (count, size, size, 3)).astype(np.float32)
    return {"pixel_values": jnp.asarray(x), "labels": jnp.asarray(labels), "mask": jnp.asarray(mask)}


def part(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


@cache
def compiled_step(model, optimizer, loss, **options):
    """Tests that take the same step share its program."""
    return jax.jit(make_train_step(model, optimizer, loss, **options))


def states_of(model, params, batches, loss=silog_loss, optimizer=SGD, **options):
    """Return the state after each batch, and the losses."""
    step = compiled_step(model, optimizer, loss, **options)
    states = [TrainState.create(params, optimizer, ema=options.get("ema_decay") is not None)]
    losses = []
    for batch in batches:
        state, metrics = step(states[-1], batch)
        states.append(state)
        losses.append(float(metrics["loss"]))
    return states[1:], losses


def trained(*arguments, **options):
    """Return the last state, and the losses."""
    states, losses = states_of(*arguments, **options)
    return states[-1], losses


def largest(found, expected):
    """Return the largest difference, divided by the largest number in the expected tree."""
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs) / size


def change(state, params):
    return jax.tree.map(lambda new, old: new - old, state.params, params)


def test_a_step_descends(metric):
    model, params = metric
    batch = batch_of(4)
    state, losses = trained(model, params, [batch] * 8, optimizer=make_optimizer(params, steps=100, learning_rate=1e-3))
    assert losses[-1] < 0.9 * losses[0]
    assert int(state.step) == 8


def test_sgd_by_hand(metric):
    model, params = metric
    batch = batch_of(2)
    # The rate is one, so that the change is not lost in the rounding of the params.
    state, _ = trained(model, params, [batch], optimizer=optax.sgd(1.0))

    def loss(params):
        return silog_loss(
            model.apply({"params": params}, batch["pixel_values"]).predicted_depth, batch["labels"], batch["mask"]
        )

    expected = jax.tree.map(lambda leaf: -leaf, jax.jit(jax.grad(loss))(params))
    assert largest(change(state, params), expected) < 1e-4


def assert_devices_are_one(model, params, count, loss):
    """Compare losses, updates and params on `count` devices with those on one device."""
    batch = batch_of(4)
    mesh = Mesh(np.asarray(jax.devices()[:count]), ("data",))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    alone, losses = trained(model, params, [batch] * 2, loss)
    cut = jax.device_put(batch, rows)
    assert len({shard.device for shard in cut["labels"].addressable_shards}) == count
    together, losses_cut = trained(model, jax.device_put(params, whole), [cut] * 2, loss)
    assert np.abs(np.subtract(losses_cut, losses)).max() / losses[0] < 1e-5
    # The updates are differences of params, which are rounded.
    assert largest(change(together, params), change(alone, params)) < 1e-4
    assert largest(together.params, alone.params) < 1e-5


FOUR = """
import sys; sys.path[:0] = {paths!r}
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_disable_most_optimizations", True)  # halves the time of compilation
import test_step
for loss in (test_step.silog_loss, test_step.affine_invariant_loss):
    test_step.assert_devices_are_one(*test_step.model_of(test_step.single_metric_config()), 4, loss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("loss", [silog_loss, affine_invariant_loss])
def test_two_devices_are_one(metric, loss):
    """These losses pool the pixels of a batch, so their sums are sums over all devices."""
    assert_devices_are_one(*metric, 2, loss)


@pytest.mark.slow
def test_four_devices_are_one():
    here = Path(__file__).parent
    code = FOUR.format(paths=[str(here), str(here.parent), str(here.parents[1])])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_accumulation_equals_the_large_batch_for_losses_of_images(metric):
    model, params = metric
    batch = batch_of(4)
    halves = [part(batch, slice(0, 2)), part(batch, slice(2, 4))]
    for loss, equal in ((per_image, True), (silog_loss, False)):
        large, _ = trained(model, params, [batch], loss)
        small, _ = trained(model, params, halves, loss, SGD_OF_TWO)
        found = largest(change(small, params), change(large, params))
        # SiLog pools the pixels of a batch: the mean of the losses of two halves is not the loss of the whole.
        assert (found < 1e-4) == equal, found


def test_frozen_parts_stay_and_have_no_gradient(metric):
    model, params = metric
    state, _ = trained(model, params, [batch_of(2)] * 2, freeze=("backbone",))
    for path, moved in flatten_dict(change(state, params), sep="/").items():
        if path.startswith("backbone/"):
            assert np.all(moved == 0)
    assert np.any(change(state, params)["head"]["conv2"]["kernel"] != 0)


def test_running_mean(metric):
    model, params = metric
    batches = [batch_of(2, seed=i) for i in range(3)]
    states, _ = states_of(model, params, batches, ema_decay=0.75)
    expected = params
    for state in states:
        expected = jax.tree.map(lambda mean, new: 0.75 * mean + 0.25 * new, expected, state.params)
    assert largest(states[-1].ema, expected) < 1e-6


def test_running_mean_waits_for_updates(metric):
    model, params = metric
    (first, second, third), _ = states_of(model, params, [batch_of(2)] * 3, optimizer=SGD_OF_TWO, ema_decay=0.5)
    assert largest(first.ema, params) == 0
    expected = jax.tree.map(lambda old, new: 0.5 * old + 0.5 * new, params, second.params)
    assert largest(second.ema, expected) < 1e-6
    assert largest(third.ema, second.ema) < 1e-6
    assert largest(third.ema, third.params) > 1e-6


def test_half_precision_has_float32_params(metric):
    model, params = metric
    state, losses = trained(model.clone(dtype="bfloat16", remat=True), params, [batch_of(2)] * 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    _, exact = trained(model, params, [batch_of(2)] * 3)
    np.testing.assert_allclose(losses, exact, rtol=1e-3)  # 6e-5 was measured
    assert losses != exact


def test_an_empty_mask_changes_nothing():
    for config, loss in ((single_config(), affine_invariant_loss), (single_metric_config(), silog_loss)):
        model, params = model_of(config)
        batch = batch_of(2) | {"mask": jnp.zeros((2, 42, 42), bool), "pixel_values": jnp.asarray(pixels(42, 42, 2))}
        state, losses = trained(model, params, [batch], loss)
        assert losses == [0]
        assert largest(state.params, params) == 0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_params_in_half_precision_are_trained_in_float32(metric, dtype):
    """After a step they are those of float32 that start at the same values, to the last bit."""
    model, params = metric
    batch = batch_of(2)
    halves = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    same_values = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves)
    optimizer = make_optimizer(params, steps=100, learning_rate=1e-5)
    found, _ = trained(model, halves, [batch], optimizer=optimizer, ema_decay=0.5)
    expected, _ = trained(model, same_values, [batch], optimizer=optimizer, ema_decay=0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves((found.params, found.ema))} == {jnp.dtype(jnp.float32)}
    for mine, theirs, before in zip(*map(jax.tree.leaves, (found.params, expected.params, halves)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert np.isfinite(mine).all()
        # An Adam step of 1e-6 or more is lost in half precision, as here most of them are.
        assert mine.size < 100 or np.mean(np.asarray(mine) != before.astype(jnp.float32)) > 0.5 or (mine == 0).all()


def test_an_optimizer_refuses_params_in_half_precision(metric):
    _, params = metric
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    for options in ({}, {"accumulate": 2}, {"clip_norm": 1.0}):
        with pytest.raises(ConfigError, match=r"params are bfloat16.*TrainState\.create"):
            make_optimizer(halves, steps=2, **options).init(halves)


def test_a_state_is_of_floating_point_params():
    with pytest.raises(ConfigError, match="head/count is int32"):
        TrainState.create({"head": {"count": jnp.zeros(3, jnp.int32)}}, SGD)
