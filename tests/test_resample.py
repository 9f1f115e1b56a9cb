"""Resampling against definitions written out tap by tap in float64; PyTorch itself is in tests/parity."""

import math

import numpy as np
import pytest

from dajax.resample import apply_rows, cubic_matrix, linear_taps, resize_cubic, resize_linear


def keys_kernel(x: float, a: float) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def brute_cubic(size_in: int, size_out: int, a: float, scale: float) -> np.ndarray:
    matrix = np.zeros((size_out, size_in))
    for i in range(size_out):
        source = (i + 0.5) * scale - 0.5
        for tap in range(math.floor(source) - 1, math.floor(source) + 3):
            matrix[i, min(max(tap, 0), size_in - 1)] += keys_kernel(source - tap, a)
    return matrix


@pytest.mark.parametrize(("size_in", "size_out"), [(37, 49), (37, 24), (5, 1), (1, 5), (7, 7), (2, 9)])
@pytest.mark.parametrize("a", [-0.75, -0.5])
def test_cubic_matrix_is_keys_kernel(size_in, size_out, a):
    matrix = cubic_matrix(size_in, size_out, a=a)
    np.testing.assert_allclose(matrix, brute_cubic(size_in, size_out, a, size_in / size_out), atol=1e-5)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


def test_cubic_matrix_known_weights():
    # Halfway between two samples: a/8 outside, 1/2 - a/8 inside.
    np.testing.assert_allclose(cubic_matrix(8, 4)[1], [0, -0.09375, 0.59375, 0.59375, -0.09375, 0, 0, 0][:8], atol=1e-7)
    np.testing.assert_array_equal(cubic_matrix(6, 6), np.eye(6))


def test_cubic_matrix_position_scale():
    scale = 37 / (49 + 0.1)
    np.testing.assert_allclose(cubic_matrix(37, 49, scale=scale), brute_cubic(37, 49, -0.75, scale), atol=1e-5)
    assert np.abs(cubic_matrix(37, 49, scale=scale) - cubic_matrix(37, 49)).max() > 1e-3


def test_cubic_coordinates_differ_far_from_the_origin():
    torch_like, opencv_like = (cubic_matrix(924, 1280, coordinates=kind) for kind in ("torch", "opencv"))
    exact = brute_cubic(924, 1280, -0.75, 924 / 1280)
    assert np.abs(opencv_like - exact).max() < np.abs(torch_like - exact).max() < 1e-3


def test_linear_taps_known_values():
    low, high, fraction = linear_taps(3, 5)
    assert low.tolist() == [0, 0, 1, 1, 2]
    assert high.tolist() == [1, 1, 2, 2, 2]
    assert fraction.tolist() == [0, 0.5, 0, 0.5, 0]
    assert (low.dtype, high.dtype, fraction.dtype) == (np.int32, np.int32, np.float64)


@pytest.mark.parametrize(("size_in", "size_out"), [(37, 74), (74, 37), (1, 4), (4, 1), (518, 1280), (924, 13)])
def test_linear_taps_align_the_corners(size_in, size_out):
    low, high, fraction = linear_taps(size_in, size_out)
    ramp = np.arange(size_in, dtype=np.float64)
    resized = ramp[low] * (1 - fraction) + ramp[high] * fraction
    expected = np.linspace(0, size_in - 1, size_out) if size_out > 1 else [0]
    np.testing.assert_allclose(resized, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(720, 1280), (40, 30), (5, 400), (400, 5), (1, 1)])
def test_resizes_are_the_separable_products(size):
    depth = np.random.default_rng(0).uniform(1, 5, (52, 93)).astype(np.float32)
    cubic = cubic_matrix(52, size[0]) @ depth @ cubic_matrix(93, size[1]).T
    np.testing.assert_allclose(resize_cubic(depth, size), cubic, atol=5e-6)
    linear = np.zeros((52, size[1]))
    low, high, fraction = linear_taps(93, size[1])
    linear = depth[:, low] * (1 - fraction) + depth[:, high] * fraction
    low, high, fraction = linear_taps(52, size[0])
    linear = linear[low] * (1 - fraction[:, None]) + linear[high] * fraction[:, None]
    np.testing.assert_allclose(resize_linear(depth, size), linear, atol=5e-6)
    assert resize_cubic(depth, size).dtype == resize_linear(depth, size).dtype == np.float32


def test_cubic_overshoots_and_linear_does_not():
    step = np.zeros((8, 8), np.float32)
    step[:, 4:] = 1
    assert resize_cubic(step, (8, 64)).max() > 1.05
    assert resize_linear(step, (8, 64)).max() <= 1


def test_same_size_is_identity():
    depth = np.random.default_rng(1).normal(size=(20, 30)).astype(np.float32)
    np.testing.assert_array_equal(resize_cubic(depth, (20, 30)), depth)
    np.testing.assert_array_equal(resize_linear(depth, (20, 30)), depth)


def test_apply_rows_keeps_trailing_axes():
    values = np.random.default_rng(2).integers(0, 256, (200, 7, 3), dtype=np.uint8)
    matrix = cubic_matrix(200, 150)
    np.testing.assert_allclose(apply_rows(matrix, values), np.einsum("oi,iwc->owc", matrix, values), atol=1e-10)


def test_apply_rows_with_other_numbers_of_entries(monkeypatch):
    matrix = np.random.default_rng(0).normal(size=(40, 12)) * (np.random.default_rng(1).random((40, 12)) < 0.3)
    matrix[7] = 0
    values = np.random.default_rng(2).normal(size=(12, 5))
    for block_bytes in (1, 200, 1 << 18):  # one row at a time, a few, all
        monkeypatch.setattr("dajax.resample._BLOCK_BYTES", block_bytes)
        np.testing.assert_allclose(apply_rows(matrix, values), matrix @ values, atol=1e-12)
    assert apply_rows(np.zeros((3, 4)), np.ones((4, 2))).tolist() == [[0, 0]] * 3


def test_a_hole_spreads_to_the_rows_that_read_it():
    values = np.ones((200, 3), np.float32)
    values[50] = np.nan
    matrix = cubic_matrix(200, 100)
    holes = np.isnan(apply_rows(matrix, values)).all(1)
    np.testing.assert_array_equal(holes, matrix[:, 50] != 0)


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0)])
def test_empty_axes_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        cubic_matrix(*sizes)
    with pytest.raises(ValueError, match="at least 1"):
        linear_taps(*sizes)
    with pytest.raises(ValueError, match="positive"):
        cubic_matrix(5, 5, scale=-1.0)
