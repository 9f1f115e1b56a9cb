"""A few sizes for all images."""

import numpy as np
import pytest
from PIL import Image

from dajax.errors import ConfigError
from dajax.preprocessing.buckets import Buckets
from dajax.preprocessing.processor import DepthImageProcessor


def make_image(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def test_without_buckets_it_is_the_processor():
    processor = DepthImageProcessor(input_size=70)
    taken = Buckets(processor, None).process(make_image(50, 90))
    np.testing.assert_array_equal(taken.pixels, processor.preprocess_one(make_image(50, 90))[0])
    assert taken.content == taken.pixels.shape[:2]
    assert taken.source_size == (50, 90)


@pytest.mark.parametrize("style", ["huggingface", "official"])
@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_sizes(style, count):
    buckets = Buckets(DepthImageProcessor(style), count)
    assert len(set(buckets.sizes)) == count
    assert all(side % 14 == 0 for size in buckets.sizes for side in size)
    ratios = [width / height for height, width in buckets.sizes]
    assert ratios == sorted(ratios)
    # As many upright as lying ones.
    np.testing.assert_allclose(np.log(ratios) + np.log(ratios[::-1]), 0, atol=0.06)
    for size in buckets.sizes:
        assert buckets.size_of(size[0] * 3, size[1] * 3) == size


@pytest.mark.parametrize("policy", ["resize", "pad"])
@pytest.mark.parametrize("size", [(48, 64), (64, 48), (10, 400), (400, 10), (1, 1)])
def test_every_image_gets_one_of_them(policy, size):
    buckets = Buckets(DepthImageProcessor(input_size=70), 3, policy)
    taken = buckets.process(make_image(*size))
    assert taken.pixels.shape[:2] in buckets.sizes
    assert taken.source_size == size
    height, width = taken.content
    if policy == "resize":
        assert taken.content == taken.pixels.shape[:2]
        return
    assert not taken.pixels[height:].any()
    assert not taken.pixels[:, width:].any()
    assert height == taken.pixels.shape[0] or width == taken.pixels.shape[1]
    if min(size) > 20:
        assert abs(np.log(width / height) - np.log(size[1] / size[0])) < 0.03


@pytest.mark.parametrize("policy", ["resize", "pad"])
@pytest.mark.parametrize("size", [(48, 64), (64, 48), (30, 90)])
def test_the_content_is_the_image(policy, size):
    """PIL resizes the image to the content's size, and the formula of the normalisation is applied to that."""
    image = make_image(*size)
    taken = Buckets(DepthImageProcessor(input_size=70), 3, policy).process(image)
    height, width = taken.content
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    expected = (resized / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(taken.pixels[:height, :width], expected, atol=1e-6)


@pytest.mark.parametrize(("size", "content"), [((2, 3000), (1, 70)), ((3000, 2), (70, 1))])
def test_a_line_keeps_one_row_of_pixels(size, content):
    taken = Buckets(DepthImageProcessor(input_size=70), 1, "pad").process(make_image(*size))
    assert taken.content == content
    assert not taken.pixels[content[0] :].any()
    assert not taken.pixels[:, content[1] :].any()


def test_options_make_the_same_again():
    buckets = Buckets(DepthImageProcessor("official", input_size=70), 3, "pad")
    again = Buckets.from_options(buckets.options())
    assert again.sizes == buckets.sizes
    np.testing.assert_array_equal(again.process(make_image(30, 70)).pixels, buckets.process(make_image(30, 70)).pixels)


@pytest.mark.parametrize(("count", "policy"), [(0, "resize"), (-1, "resize"), (True, "resize"), (2, "crop")])
def test_refused(count, policy):
    with pytest.raises(ConfigError):
        Buckets(DepthImageProcessor(), count, policy)


def test_a_processor_that_does_not_resize():
    with pytest.raises(ConfigError, match="does not resize"):
        Buckets(DepthImageProcessor(do_resize=False), 2)
