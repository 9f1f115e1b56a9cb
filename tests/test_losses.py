import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dajax.losses import affine_invariant_loss, silog_loss

SHAPE = (3, 11, 13)


def reference_silog(prediction, target, mask, focus=0.5):
    """Pooled over the batch, in float64."""
    g = np.log(target[mask].astype(np.float64)) - np.log(prediction[mask].astype(np.float64))
    return np.sqrt(np.mean(g**2) - focus * np.mean(g) ** 2)


def reference_affine_invariant(prediction, target, mask):
    """Picture by picture, in float64, with the lower median."""

    def normalise(values):
        values = values.astype(np.float64)
        shift = np.sort(values)[(len(values) - 1) // 2]
        return (values - shift) / np.abs(values - shift).mean()

    differences = [
        np.abs(normalise(p[m]) - normalise(t[m])) for p, t, m in zip(prediction, target, mask, strict=True) if m.any()
    ]
    return np.concatenate(differences).mean()


LOSSES = {"silog": (silog_loss, reference_silog), "affine": (affine_invariant_loss, reference_affine_invariant)}


# Compiled once for all tests.
COMPILED = {loss: jax.jit(function) for loss, (function, _) in LOSSES.items()}
GRADIENTS = {loss: jax.jit(jax.value_and_grad(function, argnums=(0, 1))) for loss, (function, _) in LOSSES.items()}
MAPPED = {loss: jax.jit(jax.vmap(function, in_axes=(None, None, 0))) for loss, function in GRADIENTS.items()}


def some_maps(seed=0, share=0.6):
    random = np.random.default_rng(seed)
    prediction, target = random.uniform(0.1, 80, (2, *SHAPE)).astype(np.float32)
    return prediction, target, random.random(SHAPE) < share


def assert_near(found, expected):
    error = abs(float(found) - expected) / abs(expected)
    print(f"relative error {error:.1e}")
    assert error < 1e-5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.9, 1.1])
@pytest.mark.parametrize("seed", range(3))
def test_value(loss, share, seed):
    maps = some_maps(seed, share)
    assert_near(COMPILED[loss](*maps), LOSSES[loss][1](*maps))


@pytest.mark.parametrize("focus", [0, 0.15, 0.85, 0.99])
def test_variance_focus(focus):
    maps = some_maps()
    assert_near(silog_loss(*map(jnp.asarray, maps), variance_focus=focus), reference_silog(*maps, focus))


def test_by_hand():
    # g is log 2 where only the scale is wrong: sqrt(g^2 - g^2 / 2).
    target = jnp.ones((1, 2, 2))
    mask = jnp.ones((1, 2, 2), bool)
    assert_near(silog_loss(target / 2, target, mask), np.log(2) / np.sqrt(2))
    # Medians 1 and 0, mean deviations 1 and 0.5.
    prediction, target = jnp.float32([[[0, 1, 3]]]), jnp.float32([[[0, 0, 1.5]]])
    expected = np.abs(np.array([-1, 0, 2]) - np.array([0, 0, 3])).mean()
    assert_near(affine_invariant_loss(prediction, target, jnp.ones((1, 1, 3), bool)), expected)


def test_affine_invariance():
    prediction, target, mask = map(jnp.asarray, some_maps())
    scale, shift = jnp.float32([3, 0.2, 40])[:, None, None], jnp.float32([-7, 5, 100])[:, None, None]
    base = float(affine_invariant_loss(prediction, target, mask))
    assert_near(affine_invariant_loss(scale * prediction + shift, target, mask), base)
    assert_near(affine_invariant_loss(prediction, scale * target + shift, mask), base)
    assert float(affine_invariant_loss(scale * target + shift, target, mask)) < 1e-5


def test_scale_invariance():
    """With all of the mean taken away, a scale costs nothing."""
    prediction, target, mask = map(jnp.asarray, some_maps())
    values = [float(silog_loss(prediction * s, target, mask, variance_focus=1.0)) for s in (1.0, 0.1, 30.0)]
    assert_near(values[1], values[0])
    assert_near(values[2], values[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_masked_pixels_do_not_count(loss):
    """Whatever stands there: not in the value, and with no gradient."""
    function = GRADIENTS[loss]
    prediction, target, mask = map(jnp.asarray, some_maps())
    value, (gradient, _) = function(prediction, target, mask)
    for junk in (0.0, -1.0, jnp.nan, jnp.inf, -jnp.inf):
        spoilt = function(jnp.where(mask, prediction, junk), jnp.where(mask, target, junk), mask)
        np.testing.assert_array_equal(spoilt[0], value)
        np.testing.assert_array_equal(spoilt[1][0], gradient)
    assert (np.asarray(gradient)[~np.asarray(mask)] == 0).all()
    assert np.abs(gradient).max() > 0


MASKS = {
    "empty": np.zeros(SHAPE, bool),
    "full": np.ones(SHAPE, bool),
    "one picture empty": np.arange(3)[:, None, None] != np.ones(SHAPE, int),
    "one pixel": np.arange(np.prod(SHAPE)).reshape(SHAPE) == 100,
    "two pixels": np.arange(np.prod(SHAPE)).reshape(SHAPE) % 200 == 100,
    **{f"random {i}": np.random.default_rng(i).random(SHAPE) < 0.5 for i in range(3)},
}
MAPS = {
    "ordinary": some_maps()[:2],
    "equal": (some_maps()[0],) * 2,
    "zero prediction": (np.zeros(SHAPE, np.float32), some_maps()[1]),
    "zero target": (some_maps()[0], np.zeros(SHAPE, np.float32)),
    "both zero": (np.zeros(SHAPE, np.float32),) * 2,
    "constant": (np.full(SHAPE, 7, np.float32), np.full(SHAPE, 3, np.float32)),
    "some zeros": tuple(np.where(x > 40, x, 0) for x in some_maps()[:2]),
    "negative prediction": (-some_maps()[0], some_maps()[1]),
    "smallest": (np.full(SHAPE, np.finfo(np.float32).tiny), some_maps()[1]),
    "tiny": (some_maps()[0] * np.float32(1e-30), some_maps()[1]),
    "huge": (some_maps()[0] * np.float32(1e15), some_maps()[1]),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("maps", MAPS)
def test_gradients_are_finite(loss, maps):
    """Under any mask, plain, compiled and mapped, with respect to both maps."""
    prediction, target = MAPS[maps]
    for name, mask in MASKS.items():
        value, gradients = GRADIENTS[loss](prediction, target, mask)
        assert np.isfinite(value), name
        assert value >= 0
        assert all(np.isfinite(gradient).all() for gradient in gradients), name
        if name == "empty":
            assert value == 0
            assert not any(gradient.any() for gradient in gradients)
    values, gradients = MAPPED[loss](prediction, target, np.stack(list(MASKS.values())))
    assert np.isfinite(values).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("loss", LOSSES)
def test_vmap_is_a_loop(loss):
    prediction, target, _ = some_maps()
    masks = np.stack(list(MASKS.values()))
    mapped = MAPPED[loss](prediction, target, masks)[0]
    np.testing.assert_allclose(mapped, [COMPILED[loss](prediction, target, mask) for mask in masks], rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_the_slope(loss):
    reference = LOSSES[loss][1]
    prediction, target, mask = some_maps(share=0.8)
    gradient = np.asarray(GRADIENTS[loss](prediction, target, mask)[1][0], np.float64)
    direction = np.random.default_rng(5).normal(size=SHAPE) * prediction / 100
    step = 1e-4
    wide = prediction.astype(np.float64)
    slope = (reference(wide + step * direction, target, mask) - reference(wide - step * direction, target, mask)) / (
        2 * step
    )
    error = abs((gradient * direction).sum() - slope) / abs(slope)
    print(f"relative error {error:.1e}")
    assert error < 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_other_types_of_target(loss):
    """The loss is computed in the prediction's type."""
    prediction, target, mask = some_maps()
    target = target.astype(np.float16)
    found = COMPILED[loss](prediction, target, mask)
    assert found.dtype == jnp.float32
    assert_near(found, LOSSES[loss][1](prediction, target, mask))
