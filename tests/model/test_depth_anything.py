"""The network as JAX users see it: shapes, transformations, types, errors."""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeded import error, pixels
from tiny import (
    shallow_config,
    shallow_metric_config,
    shallow_swiglu_config,
    tiny_config,
    tiny_metric_config,
    tiny_swiglu_config,
)

import dajax
import dajax.losses
from dajax import DepthAnything, DepthAnythingConfig
from dajax.errors import ConfigError, ImageError
from dajax.kernels import cpu
from dajax.weights.random import random_params

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
ALL_CONFIGS = {row.alias: DepthAnythingConfig.from_pretrained(row.alias) for row in dajax.list_models()} | {
    "giant": DepthAnythingConfig.giant()
}

# Programs that add in another order: each is up to 2e-5 of the deviation from float64 (tests/parity/test_model.py).
ROUNDING = 3e-5
TINY = {"relative": tiny_config(), "metric": tiny_metric_config(), "swiglu": tiny_swiglu_config()}


@pytest.fixture(scope="module")
def tiny():
    config = shallow_config()  # half the layers, compiled in half the time
    return DepthAnything(config), jax.device_put(random_params(config))


@partial(jax.jit, static_argnums=0, static_argnames=("output_hidden_states", "output_attentions", "deterministic"))
def run(model, params, x, **options):
    """Jitted: op by op, a test takes ten times as long."""
    return model.apply({"params": params}, x, **options)


def depth(model, params, x, **options):
    return run(model, params, x, **options).predicted_depth


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_every_size_has_the_shapes_of_its_inputs(name):
    """By shape alone: nothing of this size is ever in memory."""
    config = ALL_CONFIGS[name]
    model = DepthAnything(config)
    x = jax.ShapeDtypeStruct((2, 518, 686, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 14, 14, 3), jnp.float32))["params"]
    options = {"output_hidden_states": True, "output_attentions": True}
    output = jax.eval_shape(lambda params, x: model.apply({"params": params}, x, **options), params, x)
    backbone = config.backbone_config
    layers, tokens = backbone.num_hidden_layers, 37 * 49 + 1
    assert output.predicted_depth == jax.ShapeDtypeStruct((2, 518, 686), jnp.float32)
    assert [h.shape for h in output.hidden_states] == [(2, tokens, backbone.hidden_size)] * (
        backbone.num_hidden_layers + 1
    )
    heads = backbone.num_attention_heads
    assert [a.shape for a in output.attentions] == [(2, heads, tokens, tokens)] * layers
    assert output.loss is None


def test_nothing_is_returned_unasked(tiny):
    model, params = tiny
    output = run(model, params, pixels(28, 28))
    assert output.hidden_states is None
    assert output.attentions is None
    assert output.loss is None


def test_what_is_asked_for_does_not_change_the_depth(tiny):
    model, params = tiny
    plain = depth(model, params, pixels(56, 42))
    asked = depth(model, params, pixels(56, 42), output_hidden_states=True, output_attentions=True)
    assert error(asked, plain) < ROUNDING


@pytest.mark.parametrize(
    "config", [tiny_config(), tiny_metric_config(), tiny_swiglu_config()], ids=["relative", "metric", "swiglu"]
)
def test_jit_vmap_and_batches_agree(config):
    model, params = DepthAnything(config), random_params(config)
    x = pixels(56, 70, batch=3)
    plain = model.apply({"params": params}, x).predicted_depth
    jitted = depth(model, params, x)
    mapped = jax.vmap(lambda one: depth(model, params, one[None])[0])(jnp.asarray(x))
    singles = jnp.concatenate([depth(model, params, x[i : i + 1]) for i in range(3)])
    for other in (jitted, mapped, singles):
        assert error(other, plain) < ROUNDING


def test_pmap_agrees(tiny):
    model, params = tiny
    devices = jax.local_device_count()
    assert devices == 2
    x = pixels(42, 42, batch=2)
    mapped = jax.pmap(partial(depth, model), in_axes=(None, 0))(params, x[:, None])
    assert error(mapped[:, 0], depth(model, params, x)) < ROUNDING


def test_a_nan_image_leaves_its_neighbours_alone(tiny):
    model, params = tiny
    forward = jax.jit(partial(depth, model))
    x = pixels(56, 56, batch=3)
    clean = np.asarray(forward(params, x))
    x[1] = np.nan
    dirty = np.asarray(forward(params, x))
    np.testing.assert_array_equal(dirty[[0, 2]], clean[[0, 2]])
    # The ReLU at the end would make a plain zero of a NaN in some frameworks.
    assert np.isnan(dirty[1]).all()


@pytest.mark.parametrize("config", [shallow_config(), shallow_swiglu_config()], ids=["relative", "swiglu"])
def test_remat_gives_the_same_gradients(config):
    x, params = pixels(42, 56), random_params(config)
    labels = 1 + np.abs(pixels(42, 56)[..., 0])

    def gradients(remat):
        model = DepthAnything(config, remat=remat)
        loss = lambda params: model.apply({"params": params}, x, labels=labels).loss  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    (plain_loss, plain), (remat_loss, rematerialised) = gradients(False), gradients(True)
    assert float(plain_loss) == pytest.approx(float(remat_loss), rel=1e-6)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(rematerialised), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(a).max(), 1e-3))


def test_remat_recomputes():
    config = tiny_config()
    params = random_params(config)

    def jaxpr(remat):
        model = DepthAnything(config, remat=remat)
        return str(jax.make_jaxpr(jax.grad(lambda p: depth(model, p, pixels(28, 28)).sum()))(params))

    assert "checkpoint" in jaxpr(True) or "remat" in jaxpr(True)
    assert "checkpoint" not in jaxpr(False)


def test_gradient_is_that_of_finite_differences():
    config = tiny_config()
    with enable_x64(True):
        model = DepthAnything(config, dtype=jnp.float64)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_params(config))
        x = jnp.asarray(pixels(28, 28), jnp.float64)
        direction = x[:, ::-1]
        loss = jax.jit(lambda x: jnp.square(depth(model, params, x)).mean())
        slope = float(jnp.vdot(jax.grad(loss)(x), direction))
        step = 1e-6
        numeric = float(loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert slope == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("unused", ["backbone/embeddings/mask_token", "neck/fusion_0/residual_layer1"])
def test_unused_parameters_exist_and_have_no_gradient(tiny, unused):
    model, params = tiny
    gradient = jax.jit(jax.grad(lambda p: depth(model, p, pixels(28, 28)).sum()))(params)
    for part in unused.split("/"):
        gradient = gradient[part]
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


# --- batches on a CPU, image by image -------------------------------------------------------------------------


def is_one_by_one(model, params, x, **options) -> bool:
    """Whether the first loop of the program is over the images: those inside of it are over heads and strips."""
    jaxpr = str(
        jax.make_jaxpr(lambda params, x: model.apply({"params": params}, x, **options).predicted_depth)(params, x)
    )
    return f"length={len(x)}\n" in jaxpr.replace(" ", "") or f" length={len(x)} " in jaxpr.replace("\n", " ")


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(cpu, "_PATCHES", 1)


def test_images_of_a_batch_are_taken_in_turn(tiny, alone, monkeypatch):
    model, params = tiny
    x = pixels(42, 56, batch=5)
    options = {"output_hidden_states": True, "output_attentions": True}
    assert is_one_by_one(model, params, x)
    found = jax.jit(partial(model.apply, **options))({"params": params}, x)
    monkeypatch.setattr(cpu, "_PATCHES", 10**6)
    assert not is_one_by_one(model, params, x)
    expected = jax.jit(partial(model.apply, **options))({"params": params}, x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.shape == whole.shape
        assert error(ours, whole) < ROUNDING


def test_a_image_in_a_batch_is_the_image_alone(tiny, alone):
    model, params = tiny
    x = pixels(42, 56, batch=3)
    # XLA fuses the body of a loop otherwise than the same work outside of one.
    assert error(depth(model, params, x)[1:2], depth(model, params, x[1:2])) < ROUNDING


def test_what_is_inside_can_still_be_collected(tiny, alone):
    model, params = tiny
    x = pixels(42, 56, batch=3)
    collect = partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    output, state = jax.jit(collect)({"params": params}, x)
    assert state["intermediates"]["backbone"]["layer_0"]["mlp"]["__call__"][0].shape == (3, 13, 32)
    assert error(output.predicted_depth, depth(model, params, x)) < ROUNDING
    made = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert jax.tree.structure(made) == jax.tree.structure(params)


@pytest.mark.parametrize("way", ["params", "pixels"])
def test_gradients_of_a_batch_are_those_of_the_whole(tiny, alone, monkeypatch, way):
    model, params = tiny
    x = jnp.asarray(pixels(42, 56, batch=3))

    def loss(params, x):
        return (model.apply({"params": params}, x).predicted_depth ** 2).mean()

    argument = ["params", "pixels"].index(way)
    found = jax.jit(jax.grad(loss, argument))(params, x)
    monkeypatch.setattr(cpu, "_PATCHES", 10**6)
    expected = jax.jit(jax.grad(loss, argument))(params, x)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for ours, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(ours - whole).max() < 1e-5 * largest
    tangents = jax.tree.map(jnp.ones_like, (params, x))
    assert np.isfinite(jax.jit(lambda p, x: jax.jvp(loss, (p, x), tangents)[1])(params, x))


# --- types ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.2), ("float16", 0.02)])
def test_half_precision_is_near_and_returns_float32(tiny, dtype, bound):
    model, params = tiny
    x = pixels(70, 70)
    half = depth(model.clone(dtype=dtype), params, x)
    assert half.dtype == jnp.float32
    found = error(half, depth(model, params, x))
    assert 1e-5 < found < bound, found  # not equal: something must have been computed in half precision


def test_half_precision_params_compute_in_float32_unless_told(tiny, fully_optimised):
    model, params = tiny
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    back = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    np.testing.assert_array_equal(depth(model, rounded, pixels(42, 42)), depth(model, back, pixels(42, 42)))


def test_softmax_and_norms_stay_in_float32(tiny):
    """A mean of 2000 is beyond what bfloat16 can subtract exactly: norms in bfloat16 would lose the tokens."""
    from dajax.model.dinov2 import LayerNorm

    config = tiny_config().backbone_config
    tokens = jnp.asarray(pixels(14, 14)[0, :, :, 0])[None] + 2000
    norm = LayerNorm(config, jnp.dtype(jnp.bfloat16))
    variables = {"params": {"scale": jnp.ones(14), "bias": jnp.zeros(14)}}
    exact = (tokens - tokens.mean(-1, keepdims=True)) / tokens.std(-1, keepdims=True)
    assert np.abs(norm.apply(variables, tokens).astype(jnp.float32) - exact).max() < 0.02


def test_labels_give_a_loss():
    for config, name in ((shallow_config(), "affine_invariant_loss"), (shallow_metric_config(), "silog_loss")):
        model, params, x = DepthAnything(config), random_params(config), pixels(28, 42, batch=2)
        labels = np.abs(pixels(28, 42, batch=2)[..., 0]) + 0.5
        labels[0, :3] = [[0.0], [np.nan], [-1.0]]
        labels[1, 5, 5] = np.inf
        output = run(model, params, x, labels=labels)
        mask = jnp.asarray(np.isfinite(labels) & (labels > 0))
        target = jnp.where(mask, labels, jnp.float32(7))
        expected = jax.jit(getattr(dajax.losses, name))(output.predicted_depth, target, mask)
        assert output.loss.shape == ()
        assert float(output.loss) == pytest.approx(float(expected), rel=1e-6)
        assert np.isfinite(output.loss)
        gradient = jax.jit(jax.grad(lambda p: run(model, p, x, labels=labels).loss))(params)  # noqa: B023
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_valid_says_which_labels_count(tiny):
    """The sky of relative models has the label 0. Values from the losses themselves, and from a NaN for "no label"."""
    for config, loss in (
        (shallow_config(), dajax.losses.affine_invariant_loss),
        (shallow_metric_config(), dajax.losses.silog_loss),
    ):
        model, params, x = DepthAnything(config), random_params(config), pixels(28, 42, batch=2)
        labels = np.abs(pixels(28, 42, batch=2)[..., 0]) + 0.5
        labels[:, :9] = 0
        labels[0, 12] = np.nan
        valid = np.ones(labels.shape, bool)
        valid[1, 20:] = False
        mask = valid & np.isfinite(labels) & ((labels > 0) if config.is_metric else True)
        output = run(model, params, x, labels=labels, valid=valid)
        expected = jax.jit(loss)(output.predicted_depth, jnp.asarray(labels), jnp.asarray(mask))
        assert float(output.loss) == pytest.approx(float(expected), rel=1e-6)
        by_nan = run(model, params, x, labels=np.where(valid, labels, np.nan), valid=np.ones_like(valid))
        assert float(by_nan.loss) == float(output.loss)
        assert (float(run(model, params, x, labels=labels).loss) == float(output.loss)) == (valid.all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": np.ones((1, 28, 42), np.uint16)}, "labels must be floats, inverse depth, got uint16"),
        ({"labels": np.ones((1, 28, 42), bool)}, "labels must be floats, inverse depth, got bool"),
        ({"labels": np.ones((1, 28, 41), np.float32)}, "labels must have the shape"),
        (
            {"labels": np.ones((1, 28, 42), np.float32), "valid": np.ones((1, 28, 42), np.uint8)},
            "valid must be bool, got uint8",
        ),
        (
            {"labels": np.ones((1, 28, 42), np.float32), "valid": np.ones((28, 42), bool)},
            "valid must have the shape",
        ),
    ],
)
def test_labels_of_another_type_are_refused(tiny, options, message):
    model, params = tiny
    with pytest.raises(ImageError, match=message):
        jax.eval_shape(lambda: model.apply({"params": params}, pixels(28, 42), **options))


OPTIONS = """
import jax, numpy as np
import dajax
from dajax.errors import ConfigError
model, params = dajax.load("tiny")
for name in ("output_hidden_states", "output_attentions", "deterministic"):
    for call, value in ((jax.jit(model.apply), True), (model.apply, "yes")):
        try:
            call({"params": params}, np.zeros((1, 28, 42, 3), np.float32), **{name: value})
        except ConfigError as error:
            print(error)
"""


def test_options_are_known_when_the_model_is_compiled():
    """In a process of its own, where nothing else checks the types of arguments."""
    done = subprocess.run([sys.executable, "-c", OPTIONS], capture_output=True, text=True, check=True)
    names = ("output_hidden_states", "output_attentions", "deterministic")
    advice = f"must be known when the model is compiled: write jax.jit(model.apply, static_argnames={names})"
    expected = [line for name in names for line in (f"{name} {advice}", f"{name} must be True or False, got 'yes'")]
    assert done.stdout.splitlines() == expected


def test_the_advice_for_options_works(tiny):
    model, params = tiny
    names = ("output_hidden_states", "output_attentions", "deterministic")
    output = jax.jit(model.apply, static_argnames=names)({"params": params}, pixels(28, 42), output_hidden_states=True)
    assert len(output.hidden_states) == 3


@pytest.mark.parametrize("shape", ["b, 28, 42, 3", "1, 14 * h, 14 * w, 3"])
def test_symbolic_sizes_are_refused(tiny, shape):
    from jax import export

    model, params = tiny
    pixels = jax.ShapeDtypeStruct(export.symbolic_shape(shape), jnp.float32)
    with pytest.raises(ConfigError, match="pixels have the symbolic shape"):
        export.export(jax.jit(lambda x: model.apply({"params": params}, x).predicted_depth))(pixels)


def test_dropout_rates_apply_only_when_told():
    config = tiny_config()
    dropping = replace(
        config,
        backbone_config=replace(
            config.backbone_config, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, drop_path_rate=0.2
        ),
    )
    params, x = random_params(config), pixels(28, 28)
    plain = depth(DepthAnything(config), params, x)
    model = DepthAnything(dropping)
    np.testing.assert_array_equal(depth(model, params, x), plain)
    one, two = (depth(model, params, x, deterministic=False, rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
    assert error(one, two) > 1e-3
    again = depth(model, params, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(one, again)


@pytest.mark.parametrize(
    "shape", [(1, 27, 28, 3), (1, 28, 13, 3), (28, 28, 3), (1, 3, 28, 28), (1, 28, 28, 4), (1, 0, 28, 3)]
)
def test_pixels_of_another_shape_are_refused(tiny, shape):
    model, params = tiny
    with pytest.raises(ImageError, match=r"batch, height, width, 3.*DepthImageProcessor"):
        depth(model, params, np.zeros(shape, np.float32))


def test_images_are_not_taken_for_pixels(tiny):
    model, params = tiny
    with pytest.raises(ImageError, match="normalised floats, got uint8"):
        depth(model, params, np.zeros((1, 28, 28, 3), np.uint8))


def test_labels_of_another_shape_are_refused(tiny):
    model, params = tiny
    with pytest.raises(ImageError, match=r"\(1, 28, 28\), got \(1, 14, 14\)"):
        depth(model, params, pixels(28, 28), labels=np.ones((1, 14, 14), np.float32))


def test_integer_compute_is_refused(tiny):
    model, params = tiny
    with pytest.raises(ConfigError, match="int32"):
        depth(model.clone(dtype=jnp.int32), params, pixels(28, 28))


def test_an_empty_batch_gives_an_empty_batch(tiny):
    model, params = tiny
    assert depth(model, params, np.zeros((0, 28, 28, 3), np.float32)).shape == (0, 28, 28)


def test_other_numbers_of_taps_and_another_head_index():
    backbone = replace(tiny_config().backbone_config, out_indices=(0, 2, 4))
    config = tiny_config(
        backbone_config=backbone, reassemble_factors=(2, 1, 0.5), neck_hidden_sizes=(8, 12, 16), head_in_index=1
    )
    model = DepthAnything(config)
    assert depth(model, random_params(config), pixels(42, 42)).shape == (1, 42, 42)


def test_config_is_a_static_part_of_the_module():
    config = tiny_config()
    assert DepthAnything(config) == DepthAnything(config)
    assert hash(DepthAnything(config)) == hash(DepthAnything(config))
    assert isinstance(DepthAnything(config), nn.Module)
    assert DepthAnything(config).config is config
