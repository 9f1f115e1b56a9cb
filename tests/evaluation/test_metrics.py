"""Metrics against exact sums (math.fsum) and by hand."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from refusal import refused

from dajax.errors import ConfigError, ImageError
from dajax.evaluation.metrics import (
    AverageMetrics,
    DepthMetrics,
    OrdinalAccuracy,
    align_inverse_depth,
    average_metrics,
    depth_metrics,
    ordinal_accuracy,
)

FULL_SIZE = (518, 518)


def some_depth(seed=0, shape=(11, 13), error=0.2):
    random = np.random.default_rng(seed)
    target = random.uniform(0.5, 80, shape).astype(np.float32)
    prediction = (target * np.exp(error * random.normal(size=shape))).astype(np.float32)
    return prediction, target, random.random(shape) < 0.7


def reference_metrics(prediction, target, mask):
    """Pixel by pixel in Python's floats, summed exactly."""
    pairs = [
        (p, t)
        for p, t, m in zip(prediction.ravel().tolist(), target.ravel().tolist(), mask.ravel().tolist(), strict=True)
        if m and math.isfinite(t) and t > 0
    ]

    def mean(values):
        return math.fsum(values) / len(pairs)

    logs = [math.log(p / t) for p, t in pairs]
    middle = mean(logs)
    return DepthMetrics(
        abs_rel=mean(abs(p - t) / t for p, t in pairs),
        sq_rel=mean((p - t) ** 2 / t for p, t in pairs),
        rmse=math.sqrt(mean((p - t) ** 2 for p, t in pairs)),
        rmse_log=math.sqrt(mean(g * g for g in logs)),
        log10=mean(abs(math.log10(p / t)) for p, t in pairs),
        silog=100 * math.sqrt(mean((g - middle) ** 2 for g in logs)),
        delta1=mean(max(p / t, t / p) < 1.25 for p, t in pairs),
        delta2=mean(max(p / t, t / p) < 1.25**2 for p, t in pairs),
        delta3=mean(max(p / t, t / p) < 1.25**3 for p, t in pairs),
        valid_pixels=len(pairs),
    )


def assert_metrics(found, expected, tolerance):
    assert found.valid_pixels == expected.valid_pixels
    errors = {
        name: abs(value - truth) / max(abs(truth), 1e-300)
        for name, value, truth in zip(found._fields, found, expected, strict=True)
    }
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < tolerance


@pytest.mark.parametrize("error", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_small_depth_maps(seed, error):
    maps = some_depth(seed, error=error)
    assert_metrics(depth_metrics(*maps), reference_metrics(*maps), 1e-12)


def test_float32_at_full_size_keeps_its_digits():
    """Sums of 268,324 pixels in float32 are wrong in the fifth digit, differences of logarithms before that."""
    prediction, target, mask = some_depth(1, FULL_SIZE, error=1e-4)
    assert prediction.dtype == target.dtype == np.float32
    found = depth_metrics(prediction, target, mask)
    assert_metrics(found, reference_metrics(prediction, target, mask), 1e-9)
    # A scale alone: the deviation of g about its mean is what is left of two large moments.
    found = depth_metrics(np.float32(8) * prediction, target, mask)
    assert_metrics(found, reference_metrics(np.float32(8) * prediction, target, mask), 1e-9)


def test_by_hand():
    prediction, target = np.array([[1.0, 3.0, 8.0, 5.0]]), np.array([[2.0, 2.0, 4.0, 5.0]])
    found = depth_metrics(prediction, target)
    log2, log15 = math.log(2), math.log(1.5)
    gs = [-log2, log15, log2, 0]
    assert found.abs_rel == pytest.approx((0.5 + 0.5 + 1 + 0) / 4)
    assert found.sq_rel == pytest.approx((0.5 + 0.5 + 4 + 0) / 4)
    assert found.rmse == pytest.approx(math.sqrt((1 + 1 + 16 + 0) / 4))
    assert found.rmse_log == pytest.approx(math.sqrt((2 * log2**2 + log15**2) / 4))
    assert found.log10 == pytest.approx((2 * math.log10(2) + math.log10(1.5)) / 4)
    assert found.silog == pytest.approx(100 * math.sqrt(sum(g * g for g in gs) / 4 - (sum(gs) / 4) ** 2))
    assert (found.delta1, found.delta2, found.delta3) == (0.25, 0.5, 0.5)  # ratios 2, 1.5, 2, 1
    assert found.valid_pixels == 4
    assert all(type(value) is float for value in found[:-1])
    assert type(found.valid_pixels) is int
    # What the docstring says of the authors' number.
    authors = math.sqrt(sum(g * g for g in gs) / 4 - 0.5 * (sum(gs) / 4) ** 2)
    assert math.sqrt((found.rmse_log**2 + (found.silog / 100) ** 2) / 2) == pytest.approx(authors)


def test_thresholds_are_strict():
    target = np.ones((1, 4))
    found = depth_metrics(np.array([[1.25, 1.25**2, 1.25**3, 1 / 1.24]]), target)
    assert (found.delta1, found.delta2, found.delta3) == (0.25, 0.5, 0.75)


def test_perfect_and_symmetric():
    _, target, mask = some_depth()
    perfect = depth_metrics(target, target, mask)
    assert perfect[:-1] == (0, 0, 0, 0, 0, 0, 1, 1, 1)
    twice, half = depth_metrics(2 * target, target, mask), depth_metrics(target / 2, target, mask)
    assert twice.silog == pytest.approx(0, abs=1e-12)
    assert twice.rmse_log == pytest.approx(half.rmse_log)
    assert (twice.abs_rel, half.abs_rel) == (1, 0.5)


def test_what_has_no_truth_does_not_count():
    prediction, target, mask = some_depth()
    expected = depth_metrics(prediction, target, mask)
    for junk in (np.nan, np.inf, -np.inf, 0, -1):
        spoilt = np.where(mask, target, np.float32(junk))
        assert depth_metrics(prediction, spoilt) == expected
        assert depth_metrics(np.where(mask, prediction, np.float32(junk)), target, mask) == expected
        assert ordinal_accuracy(prediction, spoilt) == ordinal_accuracy(prediction, target, mask)
        aligned = [align_inverse_depth(1 / prediction, *t, max_depth=80) for t in ((spoilt,), (target, mask))]
        np.testing.assert_array_equal(*aligned)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int32, np.uint16, jnp.float32, jnp.bfloat16])
def test_types(kind):
    """What comes in is widened, nothing is rounded further; arrays of jax are taken too."""
    random = np.random.default_rng(3)
    arrays = [(jnp if "jax" in str(kind) else np).asarray(random.integers(1, 200, (9, 7)), kind) for _ in range(2)]
    wide = [np.asarray(array).astype(np.float64) for array in arrays]
    assert depth_metrics(*arrays) == depth_metrics(*wide)
    assert ordinal_accuracy(*arrays) == ordinal_accuracy(*wide)
    np.testing.assert_array_equal(*(align_inverse_depth(*a, max_depth=99) for a in (arrays, wide)))


def test_inputs_are_left_alone():
    maps = some_depth()
    before = [array.copy() for array in maps]
    for array in maps:
        array.setflags(write=False)
    depth_metrics(*maps)
    align_inverse_depth(*maps, max_depth=10)
    ordinal_accuracy(*maps)
    for array, copy in zip(maps, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_empty_images_are_nan_and_not_in_the_mean():
    prediction, target, mask = some_depth()
    for nothing in (
        depth_metrics(prediction, target, np.zeros_like(mask)),
        depth_metrics(prediction, np.full_like(target, np.nan)),
        depth_metrics(np.zeros((0, 5)), np.zeros((0, 5))),
    ):
        assert nothing.valid_pixels == 0
        assert all(math.isnan(value) for value in nothing[:-1])
    assert np.isnan(align_inverse_depth(prediction, target, np.zeros_like(mask), max_depth=10)).all()
    accuracy, pairs = ordinal_accuracy(prediction, target, np.zeros_like(mask))
    assert math.isnan(accuracy)
    assert pairs == 0

    one = depth_metrics(prediction, target, mask)
    assert average_metrics([nothing, one, nothing]) == AverageMetrics(one, 1, 2)
    mean, images, empty = average_metrics([nothing])
    assert all(math.isnan(value) for value in mean[:-1])
    assert (mean.valid_pixels, images, empty) == (0, 0, 1)
    assert average_metrics([])[1:] == (0, 0)


def test_average_is_the_mean_of_images():
    """Not of pixels: a small image weighs as much as a large one."""
    large, small = some_depth(0, (40, 40)), some_depth(1, (3, 3), error=1)
    rows = [depth_metrics(*large), depth_metrics(*small)]
    mean, images, _ = average_metrics(iter(rows))
    assert images == 2
    assert mean.valid_pixels == rows[0].valid_pixels + rows[1].valid_pixels
    for name in DepthMetrics._fields[:-1]:
        assert getattr(mean, name) == pytest.approx((getattr(rows[0], name) + getattr(rows[1], name)) / 2)
    pooled = depth_metrics(*(np.concatenate([a.ravel(), b.ravel()])[None] for a, b in zip(large, small, strict=True)))
    assert abs(mean.rmse - pooled.rmse) > 0.1 * pooled.rmse


def test_average_of_many_is_exact():
    values = np.random.default_rng(0).uniform(0, 1, 10_000) ** 8
    rows = [DepthMetrics(*[value] * 9, valid_pixels=1) for value in values.tolist()]
    expected = float(sum(map(Fraction, values.tolist())) / len(rows))
    assert average_metrics(rows).mean.abs_rel == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.01, -3.0), (400.0, 7000.0), (-2.0, 5.0)])
def test_alignment_undoes_any_scale_and_shift(scale, shift):
    _, target, mask = some_depth()
    aligned = align_inverse_depth(scale / target.astype(np.float64) + shift, target, mask, max_depth=100)
    assert aligned.dtype == np.float64
    np.testing.assert_allclose(aligned, target, rtol=1e-9)  # the masked pixels as well


def test_alignment_is_least_squares_in_inverse_depth():
    prediction, target, mask = some_depth(error=0.3)
    prediction = 1 / prediction
    found = align_inverse_depth(prediction, target, mask, max_depth=1e9)
    columns = np.stack([prediction[mask].astype(np.float64), np.ones(mask.sum())], 1)
    (scale, shift), *_ = np.linalg.lstsq(columns, 1 / target[mask].astype(np.float64))
    aligned = scale * prediction.astype(np.float64) + shift
    np.testing.assert_allclose(found, np.where(aligned > 1e-9, 1 / aligned, 1e9), rtol=1e-9)


def test_far_and_negative_values_become_the_cap():
    inverse = np.array([[1.0, 0.5, 0.25, 0.05, 0.0, -0.3]])
    target = np.array([[1.0, 2.0, 4.0, 20.0, np.inf, np.nan]])  # so that scale and shift are 1 and 0
    found = align_inverse_depth(inverse, target, max_depth=7)
    np.testing.assert_allclose(found, [[1, 2, 4, 7, 7, 7]], rtol=1e-12)
    assert (found <= 7).all()
    unusable = np.where(np.isfinite(target), inverse, [[0, 0, 0, 0, np.nan, np.inf]])
    assert np.isnan(align_inverse_depth(unusable, target, max_depth=7)[0, 4:]).all()


def test_alignment_of_what_has_no_shape():
    """The best constant: one over the mean inverse depth."""
    _, target, mask = some_depth()
    best = 1 / np.mean(1 / target[mask].astype(np.float64))
    np.testing.assert_allclose(align_inverse_depth(np.full_like(target, 0.1), target, mask, max_depth=100), best)
    single = np.zeros_like(mask)
    single[3, 4] = True
    aligned = align_inverse_depth(1 / target, target, single, max_depth=100)
    np.testing.assert_allclose(aligned, target[3, 4], rtol=1e-6)


def test_alignment_at_full_size_about_a_large_mean():
    """A map that varies by one in a hundred thousand: sums of squares in float32 would see a constant."""
    random = np.random.default_rng(0)
    prediction = (1000 + random.uniform(0, 0.01, FULL_SIZE)).astype(np.float32)
    wanted = 0.1 + 10 * (prediction.astype(np.float64) - 1000)
    found = align_inverse_depth(prediction, 1 / wanted, max_depth=1e3)
    error = np.abs(found * wanted - 1).max()
    print(f"relative error {error:.1e}")
    assert error < 1e-8


def test_ordinal_accuracy_of_known_maps():
    _, target, mask = some_depth(shape=(50, 50))
    assert ordinal_accuracy(1 / target, target, mask).accuracy == 1
    assert ordinal_accuracy(target, target, mask).accuracy == 0
    assert ordinal_accuracy(target, target, mask, nearer="smaller").accuracy == 1
    assert ordinal_accuracy(-100 * target - 3, target, mask).accuracy == 1  # any order-preserving map
    assert ordinal_accuracy(np.ones_like(target), target, mask).accuracy == 0  # a constant knows nothing
    noise = np.random.default_rng(1).random(target.shape)
    assert ordinal_accuracy(noise, target, mask).accuracy == pytest.approx(0.5, abs=0.05)


def test_ordinal_accuracy_counts_pairs_that_are_apart():
    """Against all pairs: half of the image is in order, the rest within the ratio."""
    prediction, target, mask = some_depth(7, (12, 12), error=0.8)
    prediction, p, t = 1 / prediction, 1 / prediction[mask], target[mask]
    apart = np.maximum(t[:, None], t) > 1.5 * np.minimum(t[:, None], t)
    right = ((p[:, None] > p) == (t[:, None] < t))[apart]
    found = ordinal_accuracy(prediction, target, mask, ratio=1.5, pairs=400_000, seed=4)
    print(found, right.mean(), apart.mean())
    assert found.accuracy == pytest.approx(right.mean(), abs=0.004)
    assert found.pairs == pytest.approx(400_000 * apart.mean(), rel=0.01)
    assert 0.6 < found.accuracy < 0.95


def test_ordinal_accuracy_within_the_ratio():
    target = np.array([[10.0, 10.9, 10.5]])
    accuracy, pairs = ordinal_accuracy(1 / target, target)
    assert math.isnan(accuracy)
    assert pairs == 0
    assert ordinal_accuracy(1 / target, target, ratio=1.08, pairs=1000).pairs > 100
    assert ordinal_accuracy(1 / target, target, ratio=1, pairs=900).pairs == pytest.approx(600, abs=60)


def test_ordinal_accuracy_draws_20000_pairs():
    """Pairs of the left and the right half count: half of those that are drawn."""
    target = np.where(np.arange(40) < 20, 1.0, 2.0) * np.ones((30, 1))
    assert ordinal_accuracy(1 / target, target).pairs == pytest.approx(10_000, abs=300)
    assert ordinal_accuracy(1 / target, target) == ordinal_accuracy(1 / target, target, ratio=1.1, pairs=20_000, seed=0)


def test_ordinal_accuracy_is_repeatable():
    maps = some_depth(error=1)
    assert ordinal_accuracy(*maps, seed=5) == ordinal_accuracy(*maps, seed=5)
    assert ordinal_accuracy(*maps, seed=5) != ordinal_accuracy(*maps, seed=6)
    assert isinstance(ordinal_accuracy(*maps), OrdinalAccuracy)


GOOD = np.full((4, 5), 2.0)
SPOILT = {junk: np.where(np.arange(20).reshape(4, 5) == 13, junk, GOOD) for junk in (np.nan, np.inf, -np.inf)}
EVERY = {
    "metrics": depth_metrics,
    "alignment": lambda *maps: align_inverse_depth(*maps, max_depth=10),
    "ordinal": ordinal_accuracy,
}


@pytest.mark.parametrize("name", EVERY)
def test_refusals(name):
    call = EVERY[name]
    shapes = r"one shape.*\(4, 5\), \(5, 4\) and \(5, 4\).*Resize"
    refused(lambda: call(GOOD, GOOD.T), ImageError, shapes)
    refused(lambda: call(GOOD, GOOD, np.ones((4, 1), bool)), ImageError, r"\(4, 1\)")
    refused(lambda: call(GOOD[None], GOOD[None]), ImageError, r"out of its batch")
    refused(lambda: call(GOOD[0], GOOD[0]), ImageError, r"\(5,\)")
    refused(lambda: call(GOOD, GOOD, np.full((4, 5), 255, np.uint8)), ImageError, "must be bool, got uint8.*mask > 0")
    refused(lambda: call(GOOD * 1j, GOOD), ImageError, "prediction must hold real numbers, got complex128")
    refused(lambda: call(GOOD, GOOD.astype(object)), ImageError, "target must hold real numbers, got object")
    for junk, prediction in SPOILT.items():
        refused(lambda p=prediction: call(p, GOOD), ImageError, f"at 1 of 20.*first being {junk} at row 2, column 3")


def test_depths_that_are_not_positive_are_refused():
    """They are not left out, which would better the score."""
    for bad in (0, -1):
        prediction = np.where(np.arange(20).reshape(4, 5) > 17, bad, GOOD)
        refused(lambda p=prediction: depth_metrics(p, GOOD), ImageError, "positive.*at 2 of 20.*row 3, column 3.*clip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.9}, "ratio.*0.9"),
        ({"ratio": np.nan}, "ratio.*nan"),
        ({"pairs": 0}, "pairs.*0"),
        ({"nearer": "left"}, "nearer.*'left'"),
    ],
)
def test_options_out_of_bounds(options, message):
    refused(lambda: ordinal_accuracy(GOOD, GOOD, **options), ConfigError, message)


@pytest.mark.parametrize("max_depth", [0, -3, np.inf, np.nan])
def test_caps_out_of_bounds(max_depth):
    refused(lambda: align_inverse_depth(GOOD, GOOD, max_depth=max_depth), ConfigError, "max_depth.*got")
