"""Metres from relative depth: exact without noise, near with a third of the points wrong."""

import jax.numpy as jnp
import numpy as np
import pytest

from dajax.errors import ConfigError, ImageError
from dajax.geometry.scale import depth_of_inverse, fit_scale_and_shift, inverse_of_depth, robust_line, thinned

SCALE, SHIFT = 0.37, 0.041


def smooth_map():
    rows, columns = np.mgrid[:60, :80] / 30
    return 1.2 + np.sin(rows) + 0.5 * np.cos(2 * columns)


def points(count, seed=0, noise=0.0, outliers=0.0):
    """Middles of pixels, and the depth that the map has there."""
    rng = np.random.default_rng(seed)
    place = np.stack([rng.integers(0, 80, count), rng.integers(0, 60, count)], -1)
    inverse = smooth_map()[place[:, 1], place[:, 0]]
    metres = 1 / (SCALE * inverse + SHIFT) * (1 + noise * rng.standard_normal(count))
    wrong = rng.random(count) < outliers
    metres[wrong] = rng.uniform(0.5, 20, wrong.sum())
    return place + 0.5, metres


@pytest.mark.parametrize("count", [2, 3, 100])
@pytest.mark.parametrize("ransac", [False, True])
def test_exact_without_noise(count, ransac):
    fit = fit_scale_and_shift(smooth_map(), *points(count), ransac=ransac)
    assert (fit.scale, fit.shift) == pytest.approx((SCALE, SHIFT), rel=1e-6)
    assert fit.inliers.all()
    np.testing.assert_allclose(fit.metres(smooth_map()), 1 / (SCALE * smooth_map() + SHIFT), rtol=1e-6)


def test_a_third_of_the_points_wrong():
    for seed in range(10):
        place, metres = points(100, seed, noise=0.002, outliers=0.3)
        fit = fit_scale_and_shift(smooth_map(), place, metres, ransac=True, tolerance=0.02)
        assert fit.scale == pytest.approx(SCALE, rel=0.01)
        truth = 1 / (SCALE * smooth_map() + SHIFT)
        assert np.abs(fit.metres(smooth_map()) / truth - 1).max() < 0.01
        assert fit.inliers.sum() >= 60
    plain = fit_scale_and_shift(smooth_map(), place, metres)
    assert np.abs(plain.metres(smooth_map(), max_depth=100) / truth - 1).max() > 0.05


def test_weights():
    place, metres = points(50)
    metres[:10] *= 3
    weights = np.ones(50)
    weights[:10] = 0
    fit = fit_scale_and_shift(smooth_map(), place, metres, weights=weights)
    assert fit.scale == pytest.approx(SCALE, rel=1e-9)
    assert fit.inliers.tolist() == [False] * 10 + [True] * 40
    # A weight of two is the point twice.
    twice = fit_scale_and_shift(smooth_map(), np.r_[place, place[:5]], np.r_[metres, metres[:5]])
    weights = np.r_[np.full(5, 2.0), np.ones(45)]
    assert fit_scale_and_shift(smooth_map(), place, metres, weights=weights)[:2] == pytest.approx(twice[:2])


def test_between_pixels():
    inverse = np.mgrid[:4, :5][1].astype(float) + 1
    fit = fit_scale_and_shift(
        inverse, [[1.0, 1.0], [3.25, 2.0], [0.0, 0.0], [5.0, 4.0]], 1 / np.array([1.5, 3.75, 1, 5])
    )
    assert (fit.scale, fit.shift) == pytest.approx((1, 0), abs=1e-9)


def test_points_without_depth_are_passed_over():
    place, metres = points(6)
    metres[:3] = [0, -1, np.nan]
    fit = fit_scale_and_shift(smooth_map(), place, metres)
    assert fit.scale == pytest.approx(SCALE)
    assert fit.inliers.tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("ransac", [False, True])
def test_what_cannot_be_fitted(ransac):
    place, metres = points(5)
    with pytest.raises(ConfigError, match=r"two points .* got 0 of 0"):
        fit_scale_and_shift(smooth_map(), np.zeros((0, 2)), np.zeros(0), ransac=ransac)
    with pytest.raises(ConfigError, match=r"two points .* got 1 of 5"):
        fit_scale_and_shift(smooth_map(), place, [1, 0, 0, -1, np.nan], ransac=ransac)
    with pytest.raises(ConfigError, match="outside of the image"):
        fit_scale_and_shift(smooth_map(), place + 1000, metres, ransac=ransac)
    with pytest.raises(ConfigError, match=r"same inverse depth|no two"):
        fit_scale_and_shift(np.ones((60, 80)), place, metres, ransac=ransac)
    with pytest.raises(ConfigError, match=r"scale is -|no two"):
        fit_scale_and_shift(-smooth_map(), place, metres, ransac=ransac)
    with pytest.raises(ImageError, match="finite"):
        fit_scale_and_shift(np.full((60, 80), np.nan), place, metres, ransac=ransac)
    with pytest.raises(ConfigError, match=r"pixels must be \[n, 2\]"):
        fit_scale_and_shift(smooth_map(), place[:3], metres, ransac=ransac)


@pytest.mark.parametrize("options", [{"tolerance": 0}, {"tolerance": -1}, {"trials": 0}])
def test_options(options):
    with pytest.raises(ConfigError):
        fit_scale_and_shift(smooth_map(), *points(5), ransac=True, **options)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_inverse_and_back(array):
    depth = array(np.array([[1.0, 4.0], [0.5, np.inf]], np.float32))
    inverse = inverse_of_depth(depth)
    np.testing.assert_array_equal(depth_of_inverse(inverse, 1.0, 0.0), depth)
    np.testing.assert_array_equal(depth_of_inverse(inverse, 1.0, 0.0, max_depth=3.0), [[1, 3], [0.5, 3]])
    # Beyond infinity is far away, not behind.
    np.testing.assert_array_equal(
        depth_of_inverse(inverse, 1.0, -0.5, max_depth=80.0), [[2, 80], [np.float32(1 / 1.5), 80]]
    )


@pytest.mark.parametrize("with_shift", [True, False])
def test_robust_line(with_shift):
    rng = np.random.default_rng(0)
    goal = rng.uniform(1, 5, 4000)
    values = (goal - 0.7 * with_shift) / 2.5
    assert robust_line(values, goal, with_shift=with_shift) == pytest.approx((2.5, 0.7 * with_shift), abs=1e-6)
    wrong = values.copy()
    wrong[:1200] += rng.uniform(1, 3, 1200)
    assert robust_line(wrong, goal, with_shift=with_shift) == pytest.approx((2.5, 0.7 * with_shift), abs=0.1)
    # Errors of the values do not make the scale small.
    noisy = values + 0.3 * rng.standard_normal(4000)
    assert robust_line(noisy, goal, with_shift=with_shift)[0] == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize("values", [np.ones(100), -np.arange(100.0), np.zeros(100)])
def test_a_robust_line_that_says_nothing(values):
    assert robust_line(values, np.arange(100.0)) == (1.0, 0.0)


def test_thinned():
    depth = np.arange(1000.0 * 800).reshape(1000, 800)
    few = thinned(depth)
    assert 4000 <= few.size < 6000
    assert set(few) <= set(depth.ravel())
    assert thinned(np.float32([[1, 2]])).tolist() == [1, 2]
