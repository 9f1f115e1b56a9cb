"""The checkpoint in the package: what its model card says, measured again."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import dajax

ROOT = Path(__file__).parents[2]
CARD = ROOT / "dajax" / "assets" / "tiny" / "README.md"


@pytest.fixture(scope="module")
def card():
    """The command that makes the card's figures."""
    spec = importlib.util.spec_from_file_location("tiny_card", ROOT / "tools" / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def estimator():
    return dajax.DepthEstimator("tiny")


def stated(head, name):
    """The figures of one row of the card's tables."""
    table = CARD.read_text().split(head)[1].split("\n\n")[0]
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [float(cell) for cell in re.findall(r"\d\.\d+", row)]


@pytest.mark.parametrize(
    ("count", "spread"),
    # The first of the card's 500 scenes, whose means are near those of all; and all.
    [(100, 0.02), pytest.param(500, 2e-3, marks=pytest.mark.slow)],
)
def test_on_scenes_it_has_not_seen(card, estimator, count, spread):
    taken = card.held_out(count)
    maps = estimator(list(taken.image), batch_size=20)
    abs_rel, delta1, ordinal = card.scores(maps, taken.depth)
    constant, _, _ = card.best_constant(taken.depth)
    flat = card.scores([card.mean_map()] * count, taken.depth)
    # Plainly better than what needs no image. (The goal, half of their error, is not reached: see the card.)
    assert abs_rel < 0.55 * min(constant, flat[0])
    assert delta1 > flat[1] + 0.2
    assert ordinal > 0.92
    np.testing.assert_allclose([abs_rel, delta1, ordinal], stated(card.SCENES_HEAD, "`tiny`"), atol=spread)


def test_on_a_real_image(card, estimator):
    """Trained on drawings alone it beats a constant. (A vertical ramp is a little better still: see the card.)"""
    image, depth = card.motorcycle()
    found = card.scores([estimator(image)], [depth])
    mirrored = card.mirrored_scores(estimator, image, depth)
    constant = card.best_constant([depth])
    # One image is chance, by what its mirror image differs: the mean of both.
    assert (found[0] + mirrored[0]) / 2 < 0.75 * constant[0]
    assert (found[1] + mirrored[1]) / 2 > constant[1] + 0.15
    np.testing.assert_allclose(found, stated(card.IMAGE_HEAD, "`tiny`"), atol=2e-3)
    np.testing.assert_allclose(mirrored, stated(card.IMAGE_HEAD, "`tiny`, image mirrored"), atol=2e-3)
    np.testing.assert_allclose(
        card.scores([card.ramp(depth.shape)], [depth]), stated(card.IMAGE_HEAD, "vertical ramp"), atol=2e-3
    )


def test_best_constant_is_the_best(card):
    depth = np.random.default_rng(0).uniform(1, 10, (1, 20, 20))
    best, _, _ = card.best_constant(depth)
    others = [(np.abs(value - depth[0]) / depth[0]).mean() for value in np.linspace(1, 10, 500)]
    assert best <= min(others) + 1e-12
