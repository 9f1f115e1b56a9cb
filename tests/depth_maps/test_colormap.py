import sys
import types

import numpy as np
import pytest

from dajax.depth_maps.colormap import COLORMAPS, colorize, normalize, value_range
from dajax.errors import ImageError


def ramp():
    return np.linspace(2, 5, 256, dtype=np.float32)[None]


def test_normalize_spans_zero_to_one():
    result = normalize(ramp())
    assert (result.min(), result.max(), result.dtype) == (0, 1, np.float32)
    np.testing.assert_allclose(normalize(ramp(), lo=3.0, hi=4.0)[0, [0, 128, 255]], [0, 0.506, 1], atol=2e-3)


@pytest.mark.parametrize("constant", [0.0, -3.5, 1e38])
def test_constant_maps_are_finite(constant):
    depth = np.full((4, 5), constant, np.float32)
    np.testing.assert_array_equal(normalize(depth), 0)
    assert len(np.unique(colorize(depth).reshape(-1, 3), axis=0)) == 1


def test_not_finite_pixels_are_ignored_and_coloured():
    depth = np.array([[1, 2, np.nan], [3, np.inf, -np.inf]])
    np.testing.assert_allclose(normalize(depth), [[0, 0.5, 0], [1, 0, 0]])
    image = colorize(depth, "gray", invalid=(9, 8, 7))
    assert (image == (9, 8, 7)).all(axis=2).tolist() == [[False, False, True], [False, True, True]]
    assert image[1, 0].tolist() == [255] * 3
    assert np.isfinite(normalize(np.full((2, 2), np.nan))).all()


def test_extreme_spans_stay_finite():
    top = np.finfo(np.float64).max
    np.testing.assert_allclose(normalize(np.array([[-top, 0, top]])), [[0, 0.5, 1]])


@pytest.mark.parametrize(
    ("cmap", "start", "end"),
    [
        ("Spectral", (158, 1, 66), (94, 79, 162)),
        ("Spectral_r", (94, 79, 162), (158, 1, 66)),
        ("turbo", (48, 18, 59), (122, 4, 3)),
        ("inferno", (0, 0, 4), (252, 255, 164)),
        ("gray", (0, 0, 0), (255, 255, 255)),
        ("gray_r", (255, 255, 255), (0, 0, 0)),
    ],
)
def test_ends_of_built_in_maps(cmap, start, end):
    image = colorize(ramp(), cmap)
    assert (image.shape, image.dtype) == ((1, 256, 3), np.uint8)
    np.testing.assert_allclose(image[0, 0], start, atol=1)
    np.testing.assert_allclose(image[0, -1], end, atol=1)


def test_middles_of_built_in_maps():
    # matplotlib's own colours at 128 of 256.
    for cmap, middle in {"inferno": (187, 55, 84), "turbo": (164, 252, 60), "Spectral": (254, 254, 190)}.items():
        np.testing.assert_allclose(colorize(ramp(), cmap)[0, 128].astype(int), middle, atol=3)


def test_every_listed_map_works():
    assert {"Spectral_r", "turbo", "inferno", "gray"} <= set(COLORMAPS)
    assert all(len(np.unique(colorize(ramp(), cmap), axis=1)[0]) > 100 for cmap in COLORMAPS)


def test_other_maps_come_from_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImageError, match=r"pip install '\.\[plots\]'"):
        colorize(ramp(), "viridis")

    def viridis(values, bytes):
        return np.full((len(values), 4), 7, np.uint8)

    fake = types.SimpleNamespace(colormaps={"viridis": viridis})
    monkeypatch.setitem(sys.modules, "matplotlib", fake)
    assert (colorize(ramp(), "viridis") == 7).all()
    with pytest.raises(ImageError, match="nor matplotlib"):
        colorize(ramp(), "no such map")


@pytest.mark.parametrize("depth", [np.zeros((0, 4)), np.zeros(4), np.zeros((2, 3, 4)), np.zeros((2, 2), bool), [["a"]]])
def test_what_is_not_a_map_is_refused(depth):
    with pytest.raises(ImageError, match="height, width"):
        colorize(depth)


@pytest.mark.parametrize("bounds", [(2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_wrong_bounds_are_refused(bounds):
    with pytest.raises(ImageError, match="lo and hi"):
        normalize(ramp(), *bounds)


@pytest.mark.parametrize("outlier", [1e6, -1e6, 1e30])
def test_one_huge_outlier_leaves_the_others_their_colours(outlier):
    depth = np.linspace(1, 2, 10_000).reshape(100, 100)
    expected = colorize(depth, "gray").astype(int)
    depth[50, 50] = outlier
    found = colorize(depth, "gray").astype(int)
    # One of the 256 colours off at most: neighbours in the table differ by up to 2.
    assert np.abs(found - expected)[np.arange(10_000).reshape(100, 100) != 5050].max() <= 2
    assert found[50, 50, 0] == (255 if outlier > 0 else 0)
    # And what is asked for is what is used.
    assert (colorize(depth, "gray", lo=1, hi=2)[:50] == colorize(np.clip(depth, 1, 2), "gray", lo=1, hi=2)[:50]).all()


def test_ends_that_belong_to_the_map_are_its_ends():
    rng = np.random.default_rng(0)
    for depth in (rng.uniform(0, 1, (60, 80)), rng.standard_normal((60, 80)), 1 / rng.uniform(0.3, 30, (60, 80))):
        assert value_range(depth) == (depth.min(), depth.max())
    assert value_range(np.full((4, 5), 3.0)) == (3, 3)
    assert value_range(np.full((4, 5), np.nan)) == (0, 0)
    mostly = np.full((100, 100), 3.0)
    mostly[0, 0] = 9
    assert value_range(mostly) == (3, 9)
