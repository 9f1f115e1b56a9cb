"""Images for people: side by side, and the bar."""

import numpy as np
import pytest
from PIL import Image

from dajax.depth_maps.colormap import colorize
from dajax.depth_maps.panels import depth_colors, side_by_side, with_bar
from dajax.errors import ImageError

DEPTH = np.linspace(1, 5, 80 * 40, dtype=np.float32).reshape(80, 40)
IMAGE = np.random.default_rng(0).integers(0, 256, (80, 40, 3), np.uint8)


def test_side_by_side():
    image = np.asarray(side_by_side(IMAGE, DEPTH, cmap="turbo"))
    np.testing.assert_array_equal(image[:, :40], IMAGE)
    np.testing.assert_array_equal(image[:, -40:], colorize(DEPTH, "turbo"))
    assert (image[:, 40:-40] == 255).all()


def test_near_has_the_upper_end():
    assert depth_colors([[1, 2]], cmap="gray")[0, :, 0].tolist() == [0, 255]
    assert depth_colors([[1, 2]], cmap="gray", kind="metric")[0, :, 0].tolist() == [255, 0]
    assert depth_colors([[1, 2]], cmap="gray", kind="metric", lo=1, hi=3)[0, :, 0].tolist() == [255, 128]


def test_sizes_and_types_are_checked():
    with pytest.raises(ImageError, match=r"uint8 \[80, 40, 3\], got uint8 \[40, 80, 3\]"):
        side_by_side(IMAGE.transpose(1, 0, 2), DEPTH)
    with pytest.raises(ImageError, match="got float"):
        side_by_side(IMAGE / 255, DEPTH)
    with pytest.raises(ImageError, match="nan at index"):
        side_by_side(IMAGE, np.full((80, 40), np.nan))


@pytest.mark.parametrize("kind", ["relative", "metric"])
@pytest.mark.parametrize("depth", [DEPTH, np.full((80, 40), 2.0), np.array([[1e30, 0.0]])])
def test_the_bar(depth, kind):
    image = Image.fromarray(depth_colors(depth, kind=kind))
    whole = with_bar(image, depth, kind=kind)
    np.testing.assert_array_equal(np.asarray(whole)[: image.height], np.asarray(image))
    assert whole.width == image.width
    bar = np.asarray(whole)[image.height + 5]
    # Far is the lower end, on the left.
    assert np.abs(bar[0].astype(int) - colorize([[0, 1]])[0, 0]).max() < 3
    assert np.abs(bar[-1].astype(int) - colorize([[0, 1]])[0, 1]).max() < 3 or image.width < 3


def test_the_bar_speaks_of_the_colours():
    """Not of one outlier, which has the colour of the end."""
    depth = np.linspace(1, 2, 20_000, dtype=np.float32).reshape(100, 200)
    outlier = depth.copy()
    outlier[5, 5] = 1e6
    bars = [np.asarray(with_bar(Image.fromarray(depth_colors(d)), d))[100:] for d in (depth, outlier)]
    np.testing.assert_array_equal(*bars)
