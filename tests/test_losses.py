import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusal import refused

from dajax.errors import ConfigError, ImageError
from dajax.losses import (
    affine_invariant_loss,
    aligned_l1_loss,
    aligned_log_loss,
    depth_anything_loss,
    feature_alignment_loss,
    gradient_matching_loss,
    least_squares_affine_invariant_loss,
    scale_and_shift,
    silog_loss,
)

SHAPE = (3, 11, 13)


def reference_silog(prediction, target, mask, focus=0.5):
    """Compute the loss over all pixels of the batch, in float64."""
    g = np.log(target[mask].astype(np.float64)) - np.log(prediction[mask].astype(np.float64))
    return np.sqrt(np.mean(g**2) - focus * np.mean(g) ** 2)


def normalise(depth, mask):
    """Subtract the lower median and divide by the mean deviation, in float64."""
    values = depth[mask].astype(np.float64)
    shift = np.sort(values)[(len(values) - 1) // 2]
    return (depth.astype(np.float64) - shift) / np.abs(values - shift).mean()


def reference_affine_invariant(prediction, target, mask, trim=0):
    """Compute the loss image by image, without the largest errors."""
    kept = []
    for p, t, m in zip(prediction, target, mask, strict=True):
        if m.any():
            errors = sorted(np.abs(normalise(p, m) - normalise(t, m))[m])
            kept.extend(errors[: len(errors) - int(trim * len(errors) + 1e-9)])
    return np.mean(kept)


def reference_least_squares(prediction, target, mask):
    """Compute the loss image by image, with numpy's solver."""
    squares = []
    for p, t, m in zip(prediction.astype(np.float64), target.astype(np.float64), mask, strict=True):
        columns = np.stack([p[m], np.ones(m.sum())], 1)
        squares.extend((columns @ np.linalg.lstsq(columns, t[m])[0] - t[m]) ** 2)
    return np.mean(squares) / 2


def reference_aligned_l1(prediction, target, mask):
    """Compute the loss image by image, with numpy's fit of a line."""
    differences = []
    for p, t, m in zip(prediction.astype(np.float64), target.astype(np.float64), mask, strict=True):
        if m.any():
            scale = np.polyfit(p[m], t[m], 1)[0]
            scale = max(scale, 0.1 * t[m].std() / p[m].std())
            fitted = scale * (p[m] - p[m].mean()) + t[m].mean()
            differences.extend(np.abs(fitted - t[m]) / t[m].std())
    return np.mean(differences)


def reference_aligned_log(prediction, target, mask, softening=0.02):
    """Compute the loss image by image, with numpy's fit of a line to the pixels that have a distance."""
    differences = []
    for p, t, m in zip(prediction.astype(np.float64), target.astype(np.float64), mask, strict=True):
        near = m & (t > 0)
        if near.any():
            scale = np.polyfit(p[near], t[near], 1)[0]
            scale = max(scale, 0.1 * t[near].std() / p[near].std())
            fitted = scale * (p[m] - p[near].mean()) + t[near].mean()
            below = np.log(softening) + fitted / softening
            log = np.where(fitted > 0, np.log(np.maximum(fitted, 0) + softening), below)
            far = np.maximum(fitted, 0) / t[near].std()
            differences.extend(np.where(t[m] > 0, np.abs(log - np.log(t[m] + softening)), far))
    return np.mean(differences)


def reference_gradient_matching(prediction, target, mask, scales=4):
    """Compute the loss pixel by pixel."""
    steps = np.zeros(scales)
    pixels = np.zeros(scales)
    for p, t, m in zip(prediction, target, mask, strict=True):
        if not m.any():
            continue
        difference = normalise(p, m) - normalise(t, m)
        for k in range(scales):
            d, valid = difference[:: 2**k, :: 2**k], m[:: 2**k, :: 2**k]
            pixels[k] += valid.sum()
            for y, x in np.argwhere(valid):
                for other in ((y, x + 1), (y + 1, x)):
                    if other[0] < d.shape[0] and other[1] < d.shape[1] and valid[other]:
                        steps[k] += abs(d[other] - d[y, x])
    return sum(steps[k] / pixels[k] for k in range(scales) if pixels[k])


def reference_depth_anything(prediction, target, mask):
    maps = prediction, target, mask
    return reference_affine_invariant(*maps) + 2 * reference_gradient_matching(*maps)


LOSSES = {
    "silog": (silog_loss, reference_silog),
    "affine": (affine_invariant_loss, reference_affine_invariant),
    "trimmed": (partial(affine_invariant_loss, trim=0.1), partial(reference_affine_invariant, trim=0.1)),
    "least squares": (least_squares_affine_invariant_loss, reference_least_squares),
    "aligned": (aligned_l1_loss, reference_aligned_l1),
    "aligned log": (aligned_log_loss, reference_aligned_log),
    "gradients": (gradient_matching_loss, reference_gradient_matching),
    "V2": (depth_anything_loss, reference_depth_anything),
}
AFFINE_INVARIANT = sorted(LOSSES.keys() - {"silog", "least squares", "aligned log"})


# Compiled once for all tests.
COMPILED = {loss: jax.jit(function) for loss, (function, _) in LOSSES.items()}
GRADIENTS = {loss: jax.jit(jax.value_and_grad(function, argnums=(0, 1))) for loss, (function, _) in LOSSES.items()}


def run(loss, *arrays, **options):
    """Compile the loss, which takes less time than one operation after the other."""
    return jax.jit(partial(loss, **options))(*arrays)


def some_depth(seed=0, fraction=0.6):
    random = np.random.default_rng(seed)
    prediction, target = random.uniform(0.1, 80, (2, *SHAPE)).astype(np.float32)
    return prediction, target, random.random(SHAPE) < fraction


def assert_near(found, expected):
    error = abs(float(found) - expected) / abs(expected)
    print(f"relative error {error:.1e}")
    assert error < 1e-5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.9, 1.1])
@pytest.mark.parametrize("seed", range(3))
def test_value(loss, fraction, seed):
    maps = some_depth(seed, fraction)
    assert_near(COMPILED[loss](*maps), LOSSES[loss][1](*maps))


@pytest.mark.parametrize("focus", [0, 0.15, 0.85, 0.99])
def test_variance_focus(focus):
    maps = some_depth()
    assert_near(run(silog_loss, *maps, variance_focus=focus), reference_silog(*maps, focus))


def test_by_hand():
    # g is log 2 where only the scale is wrong: sqrt(g^2 - g^2 / 2).
    target = jnp.ones((1, 2, 2))
    mask = jnp.ones((1, 2, 2), bool)
    assert_near(silog_loss(target / 2, target, mask), np.log(2) / np.sqrt(2))
    # Medians 1 and 0, mean deviations 1 and 0.5.
    prediction, target = jnp.float32([[[0, 1, 3]]]), jnp.float32([[[0, 0, 1.5]]])
    expected = np.abs(np.array([-1, 0, 2]) - np.array([0, 0, 3])).mean()
    assert_near(affine_invariant_loss(prediction, target, jnp.ones((1, 1, 3), bool)), expected)

    # The differences are -1, 0 and -1: of three pixels, 0.4 leaves one out.
    assert_near(run(affine_invariant_loss, prediction, target, jnp.ones((1, 1, 3), bool), trim=0.4), 0.5)
    # Its steps are 1 and -1, over three pixels; every second pixel is -1 and -1, without a step.
    mask = jnp.ones((1, 1, 3), bool)
    assert_near(run(gradient_matching_loss, prediction, target, mask, scales=1), 2 / 3)
    assert_near(run(gradient_matching_loss, prediction, target, mask, scales=2), 2 / 3)


def test_affine_invariance():
    prediction, target, mask = map(jnp.asarray, some_depth())
    scale, shift = jnp.float32([3, 0.2, 40])[:, None, None], jnp.float32([-7, 5, 100])[:, None, None]
    for loss in AFFINE_INVARIANT:
        function = COMPILED[loss]
        base = float(function(prediction, target, mask))
        assert_near(function(scale * prediction + shift, target, mask), base)
        assert_near(function(prediction, scale * target + shift, mask), base)
        assert float(function(scale * target + shift, target, mask)) < 3e-5
    function = COMPILED["least squares"]
    base = float(function(prediction, target, mask))
    assert_near(function(-scale * prediction + shift, target, mask), base)
    assert_near(function(prediction, 3 * target + shift, mask), 9 * base)
    assert float(function(scale * target + shift, target, mask)) < 1e-8 * base


def test_edges_out_of_place_cost_more_than_levels():
    """Gradient matching punishes a blurred edge more than the same error spread evenly."""
    target = np.zeros((1, 16, 16), np.float32)
    target[..., 8:] = 1
    noise = np.linspace(0, 1, 16, dtype=np.float32) * np.ones_like(target)
    blurred = np.clip((noise - 0.5) * 4 + 0.5, 0, 1)
    full = np.ones(target.shape, bool)
    sharp, soft = (float(run(gradient_matching_loss, p, target, full)) for p in (target, blurred))
    assert sharp < 1e-6 < 0.1 < soft


def test_a_step_needs_both_pixels():
    """A checkerboard has no valid neighbours, but at the next scale all its valid pixels are neighbours."""
    prediction, target, _ = some_depth()
    board = np.indices(SHAPE)[1:].sum(0) % 2 == 0
    assert run(gradient_matching_loss, prediction, target, board, scales=1) == 0
    assert run(gradient_matching_loss, prediction, target, board, scales=2) > 0.1


@pytest.mark.parametrize("scales", [1, 3, 9])
def test_scales(scales):
    """At the ninth scale single pixels are left, which have no neighbours."""
    maps = some_depth()
    expected = reference_gradient_matching(*maps, scales)
    assert_near(run(gradient_matching_loss, *maps, scales=scales), expected)


@pytest.mark.parametrize("trim", [0.0, 0.2, 0.7, 0.99])
def test_trim(trim):
    """Two, seven or nine of ten pixels are left out, or none."""
    prediction, target, _ = some_depth()
    mask = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 143 < [[[10]], [[20]], [[0]]]
    found = run(affine_invariant_loss, prediction, target, mask, trim=trim)
    assert_near(found, reference_affine_invariant(prediction, target, mask, trim))
    if not trim:
        assert found == COMPILED["affine"](prediction, target, mask)


def test_trimmed_pixels_have_no_say_but_in_the_normalisation():
    """A wrong label changes the loss only through the median and the scale."""
    prediction, target, mask = some_depth(fraction=1.1)
    spoilt = target.copy()
    spoilt[0, 5, 5] = 1000
    base, wrong = (float(COMPILED["affine"](target, t, mask)) for t in (target, spoilt))
    forgiven = float(COMPILED["trimmed"](target, spoilt, mask))
    assert base < 1e-6
    assert forgiven < wrong / 2
    level, slope = (float(COMPILED[loss](prediction, spoilt, mask)) for loss in ("trimmed", "gradients"))
    for weight in (2, 0.5):
        found = run(depth_anything_loss, prediction, spoilt, mask, trim=0.1, gradient_weight=weight)
        assert_near(found, level + weight * slope)


@pytest.mark.parametrize("trim", [-0.1, 1.0, 10, float("nan")])
def test_options_out_of_bounds(trim):
    maps = tuple(map(jnp.asarray, some_depth()))
    for loss in (affine_invariant_loss, depth_anything_loss):
        refused(lambda loss=loss: loss(*maps, trim=trim), ConfigError, f"trim.*{trim}")
    refused(lambda: gradient_matching_loss(*maps, scales=0), ConfigError, "scales.*0")


def test_scale_invariance():
    """With a variance_focus of 1, a wrong scale costs nothing."""
    prediction, target, mask = map(jnp.asarray, some_depth())
    values = [float(silog_loss(prediction * s, target, mask, variance_focus=1.0)) for s in (1.0, 0.1, 30.0)]
    assert_near(values[1], values[0])
    assert_near(values[2], values[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_masked_pixels_do_not_count(loss):
    """Masked pixels, whatever their values are, change no loss and have no gradient."""
    function = GRADIENTS[loss]
    prediction, target, mask = map(jnp.asarray, some_depth())
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
    "one image empty": np.arange(3)[:, None, None] != np.ones(SHAPE, int),
    "one pixel": np.arange(np.prod(SHAPE)).reshape(SHAPE) == 100,
    "two pixels": np.arange(np.prod(SHAPE)).reshape(SHAPE) % 200 == 100,
    **{f"random {i}": np.random.default_rng(i).random(SHAPE) < 0.5 for i in range(3)},
}
MAPS = {
    "ordinary": some_depth()[:2],
    "equal": (some_depth()[0],) * 2,
    "zero prediction": (np.zeros(SHAPE, np.float32), some_depth()[1]),
    "zero target": (some_depth()[0], np.zeros(SHAPE, np.float32)),
    "both zero": (np.zeros(SHAPE, np.float32),) * 2,
    "constant": (np.full(SHAPE, 7, np.float32), np.full(SHAPE, 3, np.float32)),
    "some zeros": tuple(np.where(x > 40, x, 0) for x in some_depth()[:2]),
    "negative prediction": (-some_depth()[0], some_depth()[1]),
    "smallest": (np.full(SHAPE, np.finfo(np.float32).tiny), some_depth()[1]),
    "tiny": (some_depth()[0] * np.float32(1e-30), some_depth()[1]),
    "huge": (some_depth()[0] * np.float32(1e15), some_depth()[1]),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("maps", MAPS)
def test_gradients_are_finite(loss, maps):
    """Gradients with respect to both arguments are finite under any mask: plain, compiled and under vmap."""
    prediction, target = MAPS[maps]
    for name, mask in MASKS.items():
        value, gradients = GRADIENTS[loss](prediction, target, mask)
        assert np.isfinite(value), name
        assert value >= 0
        assert all(np.isfinite(gradient).all() for gradient in gradients), name
        if name == "empty":
            assert value == 0
            assert not any(gradient.any() for gradient in gradients)


def thousand_masks():
    """Masks of every kind and density: noise, rows, columns, blocks, single pixels, whole images left out."""
    random = np.random.default_rng(11)
    masks = list(MASKS.values())
    y, x = np.indices(SHAPE)[1:]
    while len(masks) < 1000:
        kind = len(masks) % 5
        if kind == 0:
            mask = random.random(SHAPE) < random.random() ** 2
        elif kind == 1:
            mask = random.random((3, 11, 1)) < random.random()
        elif kind == 2:
            mask = random.random((3, 1, 13)) < random.random()
        elif kind == 3:
            mask = (abs(y - random.integers(11)) < random.integers(1, 6)) & (abs(x - random.integers(13)) < 3)
        else:
            mask = np.arange(429).reshape(SHAPE) == random.integers(429, size=(random.integers(1, 4), 1, 1, 1))
            mask = mask.any(0)
        masks.append(np.broadcast_to(mask, SHAPE) & (random.random((3, 1, 1)) < 0.8))
    return np.stack(masks)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_thousand_masks(loss):
    """Values and gradients are finite, with or without NaN beyond the mask; vmap agrees with a loop."""

    def spoilt(prediction, target, mask):
        return LOSSES[loss][0](jnp.where(mask, prediction, jnp.nan), jnp.where(mask, target, jnp.nan), mask)

    mapped = jax.jit(jax.vmap(jax.value_and_grad(spoilt, argnums=(0, 1)), in_axes=(None, None, 0)))
    masks = thousand_masks()
    for maps in ("ordinary", "some zeros"):
        values, gradients = mapped(*MAPS[maps], masks)
        assert values.shape == (1000,)
        assert np.isfinite(values).all()
        for gradient in map(np.asarray, gradients):
            assert np.isfinite(gradient).all()
            assert (gradient[~masks] == 0).all()
        if maps == "ordinary":
            assert (np.asarray(values) > 0).mean() > 0.5
            looped = [COMPILED[loss](*MAPS[maps], mask) for mask in masks[::7]]
            np.testing.assert_allclose(values[::7], looped, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_nan_is_not_hidden(loss):
    """NaN at a valid pixel of prediction or target makes the loss NaN, so that a training loop notices it."""
    prediction, target, mask = some_depth(fraction=1.1)
    spoilt = prediction.copy()
    spoilt[1, 5, 5] = np.nan
    assert np.isnan(COMPILED[loss](spoilt, target, mask))
    assert np.isnan(COMPILED[loss](target, spoilt, mask))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_the_slope(loss):
    reference = LOSSES[loss][1]
    prediction, target, mask = some_depth(fraction=0.8)
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
    """The loss is computed in the prediction's dtype."""
    prediction, target, mask = some_depth()
    target = target.astype(np.float16)
    found = COMPILED[loss](prediction, target, mask)
    assert found.dtype == jnp.float32
    assert_near(found, LOSSES[loss][1](prediction, target, mask))


@pytest.mark.parametrize("loss", ["silog", "affine", "least squares"])
def test_half_precision_is_widened(loss):
    prediction, target, mask = some_depth()
    half = jnp.asarray(prediction, jnp.bfloat16)
    found = COMPILED[loss](half, target, mask)
    assert found.dtype == jnp.float32
    assert_near(found, LOSSES[loss][1](np.asarray(half.astype(jnp.float32)), target, mask))


def solve(prediction, target, mask):
    """Return scale and shift of one image in float64, by numpy's solver."""
    columns = np.stack([prediction[mask].astype(np.float64), np.ones(mask.sum())], 1)
    return np.linalg.lstsq(columns, target[mask].astype(np.float64))[0]


SOLVERS = {"jax": jax.jit(scale_and_shift), "numpy": scale_and_shift}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("offset", [0, 3, 300])
def test_scale_and_shift(solver, offset):
    """The fitted map is compared, in deviations of the target; float32 has six digits less those of the offset."""
    prediction, target, mask = some_depth(2)
    prediction = prediction / 80 + np.float32(offset)
    target = target + 100 * prediction
    scale, shift = SOLVERS[solver](prediction, target, mask)
    assert scale.shape == shift.shape == (3,)
    for i in range(3):
        expected = solve(prediction[i], target[i], mask[i])
        assert scale[i] == pytest.approx(expected[0], rel=1e-5)
        wide = prediction[i].astype(np.float64)
        found = float(scale[i]) * wide + float(shift[i])
        error = np.abs(found - (expected[0] * wide + expected[1])).max() / target[i].std()
        print(f"scale {abs(scale[i] / expected[0] - 1):.1e}, map {error:.1e}")
        assert error < 2e-6 * (1 + offset)


def test_scale_and_shift_in_float64():
    """Arrays of numpy keep their dtype, and with float64 ten more digits."""
    prediction, target, mask = some_depth()
    prediction, target = prediction.astype(np.float64) / 80 + 1e4, target.astype(np.float64)
    scale, shift = scale_and_shift(prediction, target, mask)
    assert type(scale) is type(shift) is np.ndarray
    assert scale.dtype == shift.dtype == np.float64
    for i in range(3):
        centred = prediction[i] - 1e4  # exact
        expected = solve(centred, target[i], mask[i])
        assert scale[i] == pytest.approx(expected[0], rel=1e-12)
        assert shift[i] + 1e4 * scale[i] == pytest.approx(expected[1], rel=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("level", [0.0, 0.1, 1e-6, 1e4, 1e15])
def test_a_prediction_without_shape(solver, level):
    """The fit is the best constant. The mean of values of 0.1 is not exact in float32."""
    _, target, mask = some_depth()
    mask[1] = False
    mask[2] = np.arange(143).reshape(11, 13) == 50
    scale, shift = SOLVERS[solver](np.full(SHAPE, level, np.float32), target, mask)
    np.testing.assert_array_equal(scale, 0)
    np.testing.assert_allclose(shift, [target[0][mask[0]].mean(), 0, target[2].ravel()[50]], rtol=1e-6)
    # Only one pixel of a prediction that varies is valid.
    scale, shift = SOLVERS[solver](target[::-1].copy(), target, mask)
    assert (scale[2], shift[2]) == (0, target[2].ravel()[50])


@pytest.mark.parametrize("solver", SOLVERS)
def test_two_pixels_are_met_exactly(solver):
    prediction, target = np.float32([[[2, 3]]]), np.float32([[[10, 4]]])
    scale, shift = SOLVERS[solver](prediction, target, np.ones((1, 1, 2), bool))
    assert (float(scale[0]), float(shift[0])) == pytest.approx((-6, 22))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_scale_and_shift_of_small_and_large_depth(solver, size):
    """The squares of these values leave the range of float32."""
    prediction, target, mask = some_depth()
    scale, _ = SOLVERS[solver](prediction * np.float32(size), target, mask)
    expected = [solve(*maps)[0] / size for maps in zip(prediction, target, mask, strict=True)]
    np.testing.assert_allclose(scale, expected, rtol=1e-4)


def test_scale_and_shift_is_differentiable():
    prediction, target, mask = some_depth()
    scale_of = jax.jit(jax.grad(lambda p, t: scale_and_shift(p, t, mask)[0].sum(), argnums=(0, 1)))
    direction = np.random.default_rng(5).normal(size=SHAPE)
    wide = [prediction.astype(np.float64), target.astype(np.float64)]
    for i, gradient in enumerate(scale_of(prediction, target)):
        moved = [[w + sign * 1e-4 * direction * (j == i) for j, w in enumerate(wide)] for sign in (1, -1)]
        up, down = (scale_and_shift(*maps, mask)[0].sum() for maps in moved)
        assert (np.asarray(gradient) * direction).sum() == pytest.approx((up - down) / 2e-4, rel=1e-3)


def some_features(seed=0, shape=(2, 9, 16), noise=0.7):
    random = np.random.default_rng(seed)
    frozen = random.normal(size=shape)
    return tuple(x.astype(np.float32) for x in (frozen + noise * random.normal(size=shape), frozen))


def reference_alignment(features, frozen, tolerance=0.85):
    a, b = features.astype(np.float64), frozen.astype(np.float64)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.mean(1 - cosine[cosine <= tolerance]), cosine


ALIGN = jax.jit(jax.value_and_grad(feature_alignment_loss, argnums=(0, 1)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1.0, 1e15, 1e-12])
def test_feature_alignment(seed, size):
    features, frozen = some_features(seed)
    expected, cosine = reference_alignment(features, frozen)
    value, (gradient, none) = ALIGN(features * np.float32(size), frozen)
    assert 0.2 < (cosine > 0.85).mean() < 0.8
    assert_near(value, expected)
    near = np.abs(gradient).max(-1) == 0
    np.testing.assert_array_equal(near, cosine > 0.85)
    assert not none.any()
    # Length does not count: no gradient along the vector.
    along = (np.asarray(gradient, np.float64) * features).sum(-1)
    assert np.abs(along).max() * size < 1e-6
    direction = np.random.default_rng(5).normal(size=features.shape)
    wide = features.astype(np.float64)
    up, down = (reference_alignment(wide + step * direction, frozen)[0] for step in (1e-5, -1e-5))
    assert (np.asarray(gradient) * direction).sum() * size == pytest.approx((up - down) / 2e-5, rel=1e-3)


def test_feature_alignment_at_the_edges():
    features, frozen = some_features(noise=0.01)
    value, (gradient, _) = ALIGN(features, frozen)
    assert value == 0  # all are near
    assert not gradient.any()
    assert_near(ALIGN(-frozen, frozen)[0], 2.0)
    assert_near(ALIGN(np.zeros_like(frozen), frozen)[0], 1.0)
    assert run(feature_alignment_loss, frozen, frozen, tolerance=2) < 1e-6  # all are counted
    for spoilt in (np.zeros_like(features), np.full_like(features, 1e-30), np.full_like(features, 1e30)):
        for pair in ((spoilt, frozen), (frozen, spoilt), (spoilt, spoilt)):
            value, gradients = ALIGN(*pair)
            assert np.isfinite(value)
            assert all(np.isfinite(gradient).all() for gradient in gradients)
    features[0, 0, 0] = np.nan
    assert np.isnan(ALIGN(features, frozen)[0])
    half = [jnp.asarray(x, jnp.bfloat16) for x in some_features()]
    assert_near(ALIGN(*half)[0], reference_alignment(*(np.asarray(x, np.float32) for x in half))[0])


def test_feature_alignment_at_equality():
    """A token whose cosine is exactly the tolerance counts; the next number above it does not."""
    # Cosines of 1, 0.5 and 0, without rounding.
    features = np.array([[2, 0, 0, 0], [1, 1, 1, 1], [0, 3, 0, 0]], np.float32)
    frozen = np.array([[1, 0, 0, 0]] * 3, np.float32)
    above = np.nextafter(np.float32(0.5), np.float32(1))
    for tolerance, expected in ((1.0, 0.5), (above, 0.75), (0.5, 0.75), (np.float32(0.5) - (above - 0.5) / 2, 1.0)):
        assert float(run(feature_alignment_loss, features, frozen, tolerance=float(tolerance))) == expected


def test_aligned_log_and_the_sky():
    """Pixels of the sky do not count in the fit, but predictions that are too near there cost something."""
    prediction, target, mask = some_depth(2)
    target = np.where(np.random.default_rng(0).random(target.shape) < 0.3, 0, 1 / target).astype(np.float32)
    for softening in (0.02, 0.5):
        found = run(aligned_log_loss, prediction, target, mask, softening=softening)
        assert_near(found, reference_aligned_log(prediction, target, mask, softening))
        assert_near(run(aligned_log_loss, 3 * prediction + 5, target, mask, softening=softening), float(found))
    sky = [np.where(target == 0, np.float32(value), target) for value in (-1, 0, 0.01, 0.1)]
    found = [float(run(aligned_log_loss, prediction, target, mask)) for prediction in sky]
    assert max(found[:2]) < 1e-5
    assert 1e-5 < found[2] < found[3]
    with pytest.raises(ConfigError, match="softening must be a positive number"):
        run(aligned_log_loss, target, target, mask, softening=0)


def test_aligned_l1_does_not_turn_a_prediction_round():
    """A reversed prediction is worse than a constant one, and the gradient leads away from it."""
    _, target, mask = some_depth()
    target, mask = jnp.asarray(target), jnp.asarray(mask)
    constant = float(aligned_l1_loss(jnp.ones_like(target), target, mask))
    value, gradient = GRADIENTS["aligned"](-target, target, mask)
    assert float(value) > constant
    assert float(aligned_l1_loss(-target - 0.5 * gradient[0] / jnp.abs(gradient[0]).max(), target, mask)) < float(value)
    assert float(aligned_l1_loss(3 * target + 5, target, mask)) < 1e-5


FLOATS, VALID = np.ones(SHAPE, np.float32), np.ones(SHAPE, bool)
WRONG = {
    "whole numbers": (FLOATS, FLOATS.astype(np.uint16), VALID, "target must be floating.*uint16"),
    "a prediction of whole numbers": (FLOATS.astype(int), FLOATS, VALID, "prediction must be floating.*int64"),
    "numbers as a mask": (FLOATS, FLOATS, VALID.astype(np.uint8), "mask must be bool.*uint8"),
    "a smaller mask": (FLOATS, FLOATS, VALID[0], "mask must be .batch"),
    "images without a batch": (FLOATS[0], FLOATS[0], VALID[0], "prediction must be .batch"),
    "no array": (FLOATS, [1.0], VALID, "target must be an array, got list"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("loss", sorted(LOSSES.keys() - {"V2"}))  # which calls two of the others
def test_arrays_of_another_type_are_refused(loss, what):
    """As users call it: the tests' own check of annotations is around every function."""
    function = inspect.unwrap(LOSSES[loss][0].func if isinstance(LOSSES[loss][0], partial) else LOSSES[loss][0])
    *arrays, message = WRONG[what]
    with pytest.raises(ImageError, match=message):
        function(*arrays)
