"""Style "official" from image to map, against the authors' recipe recomputed in float64."""

import json

import numpy as np
import pytest
import skimage.data
import torch
from official_cases import SIZES, stark
from official_reference import DATA, load_official, official_map, references
from reference import checkpoint_shapes
from seeded import error, write_checkpoint
from tiny import tiny_metric_config
from transformers import AutoImageProcessor

import dajax
from dajax import DepthAnythingConfig

BOUND = 1e-4


def checkpoint(folder, config, seed=0):
    return write_checkpoint(folder, config.to_dict(), checkpoint_shapes(config.to_dict()), seed)


def assert_within_bound(mine, expected):
    # With most pixels cut off at zero a wrong map would be right there.
    assert (expected > 0).mean() > 0.9
    assert mine.shape == expected.shape
    found = error(mine, expected)
    print(f"{found:.1e} of the deviation from float64")
    assert found <= BOUND, f"largest error {found:.1e} of the deviation"


@pytest.mark.slow
def test_stored_maps_are_recomputed(tmp_path):
    fresh = references(tmp_path)
    with np.load(DATA) as stored:
        assert set(stored) == set(fresh)
        found = {key: error(stored[key], fresh[key]) for key in fresh}
    assert max(found.values()) <= 1e-6, found  # kept in float32


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = checkpoint(tmp_path_factory.mktemp("tiny"), tiny_metric_config())
    return dajax.DepthEstimator(folder, style="official"), load_official(folder)


@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_images(tiny, name):
    estimator, reference = tiny
    image = getattr(skimage.data, name)()
    assert_within_bound(estimator(image), official_map(reference, image))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    # Seed 1: the ReLU of its head cuts off one pixel in a hundred; of seed 0, nine in ten.
    folder = checkpoint(tmp_path_factory.mktemp("small"), DepthAnythingConfig.small(), seed=1)
    return dajax.DepthEstimator(folder, style="official"), load_official(folder)


# The widest one and one that is like another take a minute: `make slow` runs them.
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(
            size,
            marks=pytest.mark.very_slow if size in ((375, 1242), (360, 640)) else pytest.mark.slow,
            id=f"{size[0]}x{size[1]}",
        )
        for size in SIZES
    ],
)
def test_small(small, size):
    estimator, reference = small
    assert_within_bound(estimator(stark(*size)), official_map(reference, stark(*size)))


def test_positions_in_float32_as_the_authors_have_them(tiny, tmp_path):
    """Their own type for the positions changes the judge by less than the bound; dajax is within it of both."""
    estimator, exact = tiny
    rounded = load_official(checkpoint(tmp_path, tiny_metric_config()), positions=torch.float32)
    image = skimage.data.chelsea()
    expected = official_map(rounded, image)
    assert error(official_map(exact, image), expected) <= BOUND / 4
    assert_within_bound(estimator(image), expected)


def test_transformers_opens_a_processor_that_says_official(tmp_path):
    saved = dajax.DepthImageProcessor("official", input_size=280)
    saved.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["style"] == "official"
    opened = AutoImageProcessor.from_pretrained(tmp_path)
    assert (opened.size["height"], opened.ensure_multiple_of) == (280, 14)
    opened.save_pretrained(tmp_path / "theirs")
    assert dajax.DepthImageProcessor.from_pretrained(tmp_path / "theirs").to_dict() == saved.to_dict()
