"""A training step, on one device and on several."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from seeded import pixels, uniform
from tiny import shallow_config, shallow_metric_config

from dajax import DepthAnything
from dajax.losses import affine_invariant_loss, silog_loss
from dajax.training.optimizer import make_optimizer
from dajax.training.step import TrainState, make_train_step
from dajax.weights.random import random_params


def per_image(prediction, target, mask):
    """A mean over images of means over their pixels."""
    error = jnp.where(mask, (prediction - target) ** 2, 0).sum((1, 2))
    return (error / jnp.maximum(mask.sum((1, 2)), 1)).mean()


@pytest.fixture(scope="module")
def metric():
    config = shallow_metric_config()
    return DepthAnything(config), jax.tree.map(jnp.asarray, random_params(config))


def batch_of(count, size=42, seed=0):
    labels = 5 + np.abs(uniform(f"labels {seed}", (count, size, size))).astype(np.float32)
    mask = uniform(f"mask {seed}", (count, size, size)) > -1 + 0.5 * np.arange(count)[:, None, None] / count
    x = uniform(f"x {seed}", (count, size, size, 3)).astype(np.float32)
    return {"pixel_values": jnp.asarray(x), "labels": jnp.asarray(labels), "mask": jnp.asarray(mask)}


def part(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def trained(model, params, batches, loss=silog_loss, optimizer=None, **options):
    optimizer = optimizer or optax.sgd(1e-2)
    step = jax.jit(make_train_step(model, optimizer, loss, **options))
    state = TrainState.create(params, optimizer, ema=options.get("ema_decay") is not None)
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


def largest(found, expected):
    """Largest difference, in the largest number of the expected tree."""
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
    # At a rate of one, or the change is rounded to the params' last digits.
    state, _ = trained(model, params, [batch], optimizer=optax.sgd(1.0))

    def loss(params):
        return silog_loss(
            model.apply({"params": params}, batch["pixel_values"]).predicted_depth, batch["labels"], batch["mask"]
        )

    expected = jax.tree.map(lambda leaf: -leaf, jax.jit(jax.grad(loss))(params))
    assert largest(change(state, params), expected) < 1e-4


def apart_on_four_devices(loss):
    """Largest differences in losses, updates and params, from those of one device."""
    config = shallow_metric_config()
    model, params, batch = DepthAnything(config), jax.tree.map(jnp.asarray, random_params(config)), batch_of(4)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    alone, losses = trained(model, params, [batch] * 2, loss)
    cut = jax.device_put(batch, rows)
    assert len(cut["labels"].addressable_shards) == 4
    together, losses_cut = trained(model, jax.device_put(params, whole), [cut] * 2, loss)
    updates = largest(change(together, params), change(alone, params))
    return np.abs(np.subtract(losses_cut, losses)).max() / losses[0], updates, largest(together.params, alone.params)


FOUR = """
import sys; sys.path[:0] = {paths!r}
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_disable_most_optimizations", True)  # compiled in half the time
import test_step
for loss in (test_step.silog_loss, test_step.affine_invariant_loss):
    print(*test_step.apart_on_four_devices(loss))
"""


def test_four_devices_are_one():
    """The pooled losses as well: a batch's sums are sums over all devices."""
    here = Path(__file__).parent
    code = FOUR.format(paths=[str(here), str(here.parent), str(here.parents[1])])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = [[float(word) for word in line.split()] for line in result.stdout.splitlines()]
    assert len(rows) == 2
    for loss, updates, params in rows:
        assert loss < 1e-5
        assert updates < 1e-4  # differences of params, which are rounded
        assert params < 1e-5


def test_accumulation_equals_the_large_batch_for_losses_of_images(metric):
    model, params = metric
    batch = batch_of(4)
    halves = [part(batch, slice(0, 2)), part(batch, slice(2, 4))]
    for loss, equal in ((per_image, True), (silog_loss, False)):
        large, _ = trained(model, params, [batch], loss, optax.sgd(1e-2))
        small, _ = trained(model, params, halves, loss, optax.MultiSteps(optax.sgd(1e-2), 2))
        found = largest(change(small, params), change(large, params))
        # SiLog pools the pixels of a batch: the mean of two halves' losses is another number than that of the whole.
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
    states = [trained(model, params, batches[:i], ema_decay=0.75)[0] for i in range(4)]
    expected = params
    for state in states[1:]:
        expected = jax.tree.map(lambda mean, new: 0.75 * mean + 0.25 * new, expected, state.params)
    assert largest(states[-1].ema, expected) < 1e-6


def test_running_mean_waits_for_updates(metric):
    model, params = metric
    batch = batch_of(2)
    optimizer = optax.MultiSteps(optax.sgd(1e-2), 2)
    first, _ = trained(model, params, [batch], optimizer=optimizer, ema_decay=0.5)
    assert largest(first.ema, params) == 0
    second, _ = trained(model, params, [batch] * 2, optimizer=optimizer, ema_decay=0.5)
    expected = jax.tree.map(lambda old, new: 0.5 * old + 0.5 * new, params, second.params)
    assert largest(second.ema, expected) < 1e-6
    third, _ = trained(model, params, [batch] * 3, optimizer=optimizer, ema_decay=0.5)
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
    for config, loss in ((shallow_config(), affine_invariant_loss), (shallow_metric_config(), silog_loss)):
        params = jax.tree.map(jnp.asarray, random_params(config))
        batch = batch_of(2) | {"mask": jnp.zeros((2, 42, 42), bool), "pixel_values": jnp.asarray(pixels(42, 42, 2))}
        state, losses = trained(DepthAnything(config), params, [batch], loss)
        assert losses == [0]
        assert largest(state.params, params) == 0
