"""`dajax.show`: what is shown, and where."""

import sys
import types

import numpy as np
import pytest
from PIL import Image, ImageShow

import dajax
from dajax.depth_maps.display import image_to_show
from dajax.depth_maps.panels import depth_colors, side_by_side
from dajax.errors import ImageError

DEPTH = np.linspace(1, 5, 60 * 80, dtype=np.float32).reshape(60, 80)
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


@pytest.fixture
def shown(monkeypatch):
    """What a notebook is given."""
    found = []
    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = found.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    return found


def test_in_a_notebook(shown):
    dajax.show({"predicted_depth": DEPTH, "depth": None})
    dajax.show(DEPTH, IMAGE)
    dajax.show([DEPTH, DEPTH], [IMAGE, IMAGE], colormap="gray", kind="metric")
    assert len(shown) == 4
    np.testing.assert_array_equal(np.asarray(shown[0])[3:360:6, 3::6], depth_colors(DEPTH))
    np.testing.assert_array_equal(np.asarray(shown[1])[1:120:2, ::2], np.asarray(side_by_side(IMAGE, DEPTH)))
    np.testing.assert_array_equal(
        np.asarray(shown[3])[1:120:2, ::2], np.asarray(side_by_side(IMAGE, DEPTH, cmap="gray", kind="metric"))
    )


def test_outside_of_one(monkeypatch):
    seen = []
    monkeypatch.setattr(ImageShow, "show", lambda image, title: seen.append(image) or True)
    dajax.show(DEPTH)
    assert [image.width for image in seen] == [480]
    monkeypatch.setattr(ImageShow, "show", lambda image, title: False)
    with pytest.raises(ImageError, match=r"no image viewer.*dajax\.depth_maps\.write"):
        dajax.show(DEPTH)


def test_a_batch_of_one_and_a_large_map():
    assert image_to_show(DEPTH[None]).width == 480
    large = image_to_show(np.broadcast_to(DEPTH[:, :1], (60, 5000)))
    assert large.width == 1600


def test_bad_input(shown):
    with pytest.raises(ImageError, match="an image for each of 2 results, got 1"):
        dajax.show([DEPTH, DEPTH], [IMAGE])
    with pytest.raises(ImageError, match="image must be uint8"):
        dajax.show(DEPTH, Image.fromarray(IMAGE[:30]))
    with pytest.raises(ImageError, match="depth must be numbers"):
        dajax.show({"predicted_depth": None})
    assert shown == []
