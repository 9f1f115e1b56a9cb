"""Style "official" against OpenCV, which the authors resize with: sizes, and pixels before and after normalisation."""

import cv2
import numpy as np
import pytest
import skimage.data
from seeded import uniform

from dajax.errors import ImageError
from dajax.preprocessing.processor import IMAGENET_MEAN, IMAGENET_STD, DepthImageProcessor
from dajax.preprocessing.recipes import size_rule
from dajax.resample import cubic_matrix

# On [0, 1], and in deviations of ImageNet, which are less than a quarter of that. OpenCV's weights are float32.
RESIZED, NORMALISED = 1e-5, 5e-5
IMAGES = ("astronaut", "coffee", "chelsea", "rocket")
SIZES = [
    *[(300, 400), (360, 640), (375, 1242), (720, 1280)],
    *[(1080, 1920), (519, 600)],  # shrunk
    *[(517, 519), (14, 14), (2, 3), (1, 1)],  # enlarged
    *[(60, 480), (3000, 400)],  # far from square
]


def noise(height, width):
    """Neighbours without relation, which show every error of a filter."""
    return np.rint(255 * (0.5 + uniform(f"{height} {width}", (height, width, 3)) / np.sqrt(12))).astype(np.uint8)


def assert_as_opencv(image):
    height, width = DepthImageProcessor("official").target_size(*image.shape[:2])
    expected = cv2.resize(image / 255.0, (width, height), interpolation=cv2.INTER_CUBIC)
    resized = DepthImageProcessor("official", do_normalize=False)(image)["pixel_values"][0]
    assert (resized.shape, resized.dtype) == (expected.shape, np.float32)
    found = np.abs(resized - expected).max()
    assert found <= RESIZED, f"largest difference {found:.1e} of white"
    normalised = DepthImageProcessor("official")(image)["pixel_values"][0]
    found = np.abs(normalised - (expected - IMAGENET_MEAN) / IMAGENET_STD).max()
    assert found <= NORMALISED, f"largest difference {found:.1e} after normalisation"


@pytest.mark.parametrize("image", IMAGES)
def test_real_images(image):
    assert_as_opencv(getattr(skimage.data, image)())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_images(size):
    assert_as_opencv(noise(*size))


@pytest.mark.parametrize("input_size", [14, 140, 700, (280, 420)], ids=str)
def test_other_input_sizes(input_size):
    image = skimage.data.coffee()
    processor = DepthImageProcessor("official", input_size, do_normalize=False)
    height, width = processor.target_size(400, 600)
    expected = cv2.resize(image / 255.0, (width, height), interpolation=cv2.INTER_CUBIC)
    found = np.abs(processor(image)["pixel_values"][0] - expected).max()
    assert found <= RESIZED, f"largest difference {found:.1e} of white"


@pytest.mark.parametrize(
    "sizes", [(100, 5000), (4000, 518), (518, 4000), (3023, 1414), (37, 37), (1, 9), (9, 1)], ids=str
)
def test_each_axis_far_from_the_origin(sizes):
    """Coordinates are float32: thousands of pixels from the origin it matters where they are rounded."""
    before, after = sizes
    line = uniform(str(sizes), (1, before)) > 0
    expected = cv2.resize(line.astype(np.float64), (after, 1), interpolation=cv2.INTER_CUBIC)[0]
    found = np.abs(cubic_matrix(before, after, coordinates="opencv") @ line[0] - expected).max()
    assert found <= RESIZED, f"largest difference {found:.1e} of the step"


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_size_rule_on_a_grid():
    """The shorter side becomes 518 and the other keeps the proportion, to the nearest multiple of 14 (half to even)."""
    sides = range(100, 2001, 20)
    for height in sides:
        for width in sides:
            scale = 518 / min(height, width)
            expected = tuple(max(518, 14 * int(np.rint(scale * side / 14))) for side in (height, width))
            assert size_rule((height, width), (518, 518), 14, True, "official") == expected, (height, width)


def test_sizes_meet_what_the_rule_is_for():
    processor = DepthImageProcessor("official")
    refused = 0
    for height in range(100, 2001, 76):
        for width in range(100, 2001, 76):
            try:
                sides = processor.target_size(height, width)
            except ImageError:
                refused += 1
                assert max(height, width) > 10 * min(height, width)
                continue
            assert min(sides) == 518
            assert sides[0] % 14 == sides[1] % 14 == 0
            # Nothing is stretched by more than half a patch.
            assert abs(max(sides) - 518 * max(height, width) / min(height, width)) <= 7 + 1e-9
    assert 0 < refused < 40


@pytest.mark.parametrize(
    ("source", "width"),
    [((106, 159), 770), ((108, 270), 1302), ((1008, 1512), 770), ((984, 1476), 770), ((14, 21), 784)],
)
def test_exact_halves_fall_as_in_the_authors_floating_point(source, width):
    # Half to even would give 784, 1288, 784, 784 and 784; their product is a last digit beside the half.
    assert DepthImageProcessor("official").target_size(*source) == (518, width)
    assert DepthImageProcessor("official").target_size(*source[::-1]) == (width, 518)


def test_other_goals():
    """Neither side is below its goal, also where the goals differ."""
    for goals, source, expected in (
        ((280, 420), (400, 600), (280, 420)),
        ((280, 420), (600, 400), (630, 420)),
        ((280, 420), (300, 3000), (280, 2800)),
        ((100, 100), (300, 310), (112, 112)),  # 100 is no multiple: up, where Transformers would go to 98
    ):
        processor = DepthImageProcessor("official", goals)
        assert processor.target_size(*source) == expected, (goals, source)
