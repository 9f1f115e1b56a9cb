"""High resolution by tiles: the order of the whole, no seams, bounded memory."""

import itertools
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

import dajax
from dajax.errors import ConfigError
from dajax.evaluation.metrics import ordinal_accuracy
from dajax.inference import tiles as module
from dajax.inference.tiles import tiled_depth

ROOT = Path(dajax.__file__).parents[1]


@pytest.fixture(scope="module")
def estimator():
    return dajax.DepthEstimator("tiny", batch_size=4)


def enlarged(name):
    return Image.fromarray(getattr(skimage.data, name)()).resize((4096, 3072), Image.Resampling.BICUBIC)


IMAGES = ["coffee", *(pytest.param(name, marks=pytest.mark.very_slow) for name in ("astronaut", "chelsea", "rocket"))]


@pytest.fixture(scope="module")
def depth_maps(estimator):
    """A function that returns the plain and the tiled depth map of a real image, enlarged to the size of a camera's."""

    @cache
    def both(name):
        image = enlarged(name)
        return estimator(image), tiled_depth(estimator, image, (3, 4))

    return both


@pytest.mark.parametrize("name", IMAGES)
def test_order_is_that_of_the_plain_pass(depth_maps, name):
    plain, tiled = depth_maps(name)
    assert tiled.shape == plain.shape == (3072, 4096)
    assert tiled.dtype == np.float32
    low = plain.min() - 0.1 * np.ptp(plain)  # inverse depth is positive
    assert ordinal_accuracy(tiled - low, 1 / (plain - low), pairs=100_000).accuracy >= 0.99


def seam_slopes(depth, rows, columns) -> tuple[list, list]:
    """Slopes at the borders of so many tiles, and close beside them, on both sides.

    Close, because slopes differ from place to place in an image: farther off that is what would be measured.
    """
    at, beside = [], []
    for axis, count in ((0, rows), (1, columns)):
        profile = np.abs(np.diff(depth, axis=axis)).mean(1 - axis)
        edges = {edge for span in module._spans(depth.shape[axis], count) for edge in span} - {0, depth.shape[axis]}
        at += [profile[edge - 3 : edge + 3].mean() for edge in edges]
        beside += [profile[[*range(edge - 12, edge - 6), *range(edge + 6, edge + 12)]].mean() for edge in edges]
    return at, beside


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_no_seams(depth_maps, estimator, name):
    """Of four divisions: at the ten borders of one, an image's own edges are worth up to a tenth, seams or none."""
    at, beside = seam_slopes(depth_maps(name)[1], 3, 4)
    image = enlarged(name)
    for tiles in ((2, 3), (4, 5), (5, 6)):
        found = seam_slopes(tiled_depth(estimator, image, tiles), *tiles)
        at, beside = at + found[0], beside + found[1]
    assert len(at) == len(beside) == 48
    assert np.mean(at) / np.mean(beside) == pytest.approx(1, abs=0.05)


def test_a_seam_would_be_seen(estimator, monkeypatch):
    """Tiles that do not fade out have seams, by the same measure."""
    monkeypatch.setattr(module, "_fade", lambda side: np.ones(side, np.float32))
    at, beside = seam_slopes(tiled_depth(estimator, enlarged("coffee"), (3, 4)), 3, 4)
    assert np.mean(at) / np.mean(beside) > 1.2


class Plane:
    """An estimator that sees its image's red, with a scale and a shift of its own for every image."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.seen = []

    def __call__(self, image):
        return image.pixels[..., 0].astype(np.float32)

    def stream(self, images, **options):
        for image in images:
            self.seen.append(image.pixels.shape[:2])
            yield (self.rng.uniform(0.2, 5) * self(image) + self.rng.uniform(-50, 50)).astype(np.float32)


@pytest.mark.parametrize("tiles", [2, 3, 5, (1, 3), (4, 1), (2, 5)])
@pytest.mark.parametrize("size", [(300, 400), (401, 299)])
def test_scales_and_shifts_of_tiles_are_taken_out(tiles, size):
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
    estimator = Plane()
    found = tiled_depth(estimator, image, tiles)
    assert np.abs(found - image[..., 0]).max() < 3
    assert len(set(estimator.seen)) == 1  # one size, one program


def test_detail_comes_from_the_tiles():
    """Where the whole is blurred, stripes that only tiles see are in the result, nearly as high."""
    image = np.zeros((400, 400, 3), np.uint8)
    image[..., 0] = np.linspace(40, 200, 400)[:, None]
    image[:, ::8, 0] += 30

    class Blurred(Plane):
        def __call__(self, image):
            red = super().__call__(image)
            return red if red.shape[0] < 400 else np.broadcast_to(red.mean(1, keepdims=True), red.shape)

    found = tiled_depth(Blurred(), image, 2)
    assert np.median(found[:, 80:320:8] - found[:, 84:324:8]) == pytest.approx(27, abs=4)


def test_flat_tiles_are_those_of_the_whole():
    image = np.full((200, 300, 3), 80, np.uint8)
    np.testing.assert_allclose(tiled_depth(Plane(), image, 3), 80, rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("side", [100, 1001, 4096])
def test_spans_cover_the_side_evenly(side, count):
    spans = module._spans(side, count)
    assert (spans[0][0], spans[-1][1]) == (0, side)
    assert len({stop - start for start, stop in spans}) == 1
    shared = [a[1] - b[0] for a, b in itertools.pairwise(spans)]
    length = spans[0][1] - spans[0][0]
    assert all(0.25 * length < part < 0.4 * length for part in shared)


def test_one_tile_is_the_plain_pass(estimator):
    image = skimage.data.coffee()
    np.testing.assert_array_equal(tiled_depth(estimator, image, 1), estimator(image))


def test_the_estimator_takes_tiles(estimator):
    image = skimage.data.coffee()
    expected = tiled_depth(estimator, image, 2)
    np.testing.assert_array_equal(estimator(image, tiles=2), expected)
    one, two = estimator([image, image[:300]], tiles=(2, 2))
    assert (one.shape, two.shape) == ((400, 600), (300, 600))
    (streamed,) = estimator.stream([image], tiles=2)
    np.testing.assert_array_equal(streamed, expected)


@pytest.mark.parametrize("tiles", [0, -1, 65, (0, 2), (2, 65), True])
def test_tiles_that_cannot_be(estimator, tiles):
    with pytest.raises(ConfigError, match="tiles"):
        estimator(skimage.data.coffee(), tiles=tiles)


def test_tiles_that_are_too_small(estimator):
    with pytest.raises(ConfigError, match="smaller than 14"):
        estimator(np.zeros((60, 60, 3), np.uint8), tiles=5)
    with pytest.raises(ConfigError, match="always have the size of the image"):
        list(estimator.stream([np.zeros((60, 60, 3), np.uint8)], tiles=2, source_size=False))


MEMORY = """
import re, sys
sys.path[:0] = {paths!r}
import numpy as np
import dajax
from dajax.weights.random import random_params
config = dajax.DepthAnythingConfig.small()
estimator = dajax.DepthEstimator((dajax.DepthAnything(config), random_params(config)), batch_size=1)
image = np.random.default_rng(0).integers(0, 256, (3072, 4096, 3), np.uint8)

def peak():
    # Not that of getrusage, which begins with the peak of the process that started this one.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

before = peak()
depth = estimator(image, tiles=4)
print(depth.shape[0], depth.shape[1], peak() - before)
"""


@pytest.mark.slow
def test_twelve_megapixels_with_small_in_three_gigabytes():
    """Run with: python -m pytest -m slow tests/inference/test_tiles.py"""
    code = MEMORY.format(paths=[str(ROOT)])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    height, width, grown = (int(word) for word in result.stdout.split())
    assert (height, width) == (3072, 4096)
    assert grown < 3e9
