"""Depth of an image against that of its mirror image."""

import numpy as np
import pytest
import skimage.data

import dajax
from dajax.inference.confidence import flip_disagreement


class Sees(dajax.DepthEstimator):
    """An estimator that is whatever function of pixels it is given."""

    def __init__(self, function, *, metric=False):
        self.function = function
        self.model = type("Model", (), {"config": type("Config", (), {"is_metric": metric})})

    def __call__(self, images):
        return [self.function(image.pixels[..., 0].astype(np.float32)) for image in images]


IMAGE = np.random.default_rng(0).integers(1, 256, (40, 60, 3), np.uint8)


@pytest.mark.parametrize("metric", [False, True])
def test_a_symmetric_network_agrees_with_itself(metric):
    depth, doubt = flip_disagreement(Sees(lambda red: red, metric=metric), IMAGE)
    np.testing.assert_array_equal(depth, IMAGE[..., 0])
    assert (doubt.shape, doubt.dtype) == ((40, 60), np.float32)
    assert doubt.max() < 1e-5


def test_scale_and_shift_are_no_disagreement_of_relative_depth():
    calls = iter([(1, 0), (3, 70)])

    def see(red):
        scale, shift = next(calls)
        return scale * red + shift

    assert flip_disagreement(Sees(see), IMAGE)[1].max() < 1e-4


def test_of_metres_they_are():
    calls = iter([1.0, 1.5])
    _, doubt = flip_disagreement(Sees(lambda red: next(calls) * red, metric=True), IMAGE)
    np.testing.assert_allclose(doubt, 0.5 / 1.25, rtol=1e-5)


def test_it_is_where_the_network_is_one_sided():
    def see(red):
        wrong = red.copy()
        wrong[:, :10] += 500
        return wrong

    _, doubt = flip_disagreement(Sees(see), IMAGE)
    assert doubt[:, :10].mean() > 4 * doubt[:, 10:50].mean()
    assert doubt[:, -10:].mean() > 4 * doubt[:, 10:50].mean()


def test_of_a_real_network():
    depth, doubt = flip_disagreement(dajax.DepthEstimator("tiny"), skimage.data.coffee())
    np.testing.assert_array_equal(depth, dajax.DepthEstimator("tiny")(skimage.data.coffee()))
    assert 0 < np.median(doubt) < 0.3


def test_a_flat_map():
    assert flip_disagreement(Sees(np.zeros_like), IMAGE)[1].max() == 0
