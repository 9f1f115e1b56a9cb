"""The processor against Transformers' DPTImageProcessorPil, and the filters against PyTorch."""

import numpy as np
import pytest
import skimage.data
import torch
import transformers
from transformers.models.dpt import image_processing_pil_dpt as reference_module

from dajax.depth_maps.panels import to_gray8
from dajax.preprocessing.processor import DepthImageProcessor
from dajax.resample import cubic_matrix, linear_taps, resize_cubic, resize_linear

IMAGES = ("astronaut", "coffee", "chelsea", "rocket")


def reference(**changes):
    fields = {key: value for key, value in DepthImageProcessor().to_dict().items() if key != "image_processor_type"}
    return reference_module.DPTImageProcessorPil(**{**fields, **changes})


def noise(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(image, **options):
    changes = dict(options)
    if "input_size" in changes:
        height, width = np.broadcast_to(changes.pop("input_size"), 2)
        changes["size"] = {"height": int(height), "width": int(width)}
    expected = reference(**changes)(image, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    found = DepthImageProcessor(**options)(image)["pixel_values"]
    assert found.shape == expected.shape
    error = np.abs(found - expected).max()
    assert error <= 1e-6, error


@pytest.mark.parametrize("name", IMAGES)
def test_images(name):
    assert_same(getattr(skimage.data, name)())


@pytest.mark.parametrize(
    "size", [(480, 640), (720, 1280), (375, 1242), (90, 70), (518, 518), (1100, 530), (37, 500), (5, 5), (1001, 999)]
)
def test_sizes(size):
    assert_same(noise(*size))


@pytest.mark.parametrize(
    "options",
    [
        {"input_size": 140},
        {"input_size": (280, 420)},
        {"input_size": (280, 420), "keep_aspect_ratio": False},
        {"ensure_multiple_of": 28},
        {"resample": 2},
        {"resample": 1, "do_normalize": False},
        {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.5, 0.6, 0.7)},
        {"rescale_factor": 1 / 127.5},
    ],
)
def test_options(options):
    assert_same(skimage.data.coffee(), **options)


def test_resized_bytes_are_equal():
    for name in IMAGES:
        image = getattr(skimage.data, name)()
        plain = reference(do_rescale=False, do_normalize=False)(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(DepthImageProcessor().resize_uint8(image), plain.transpose(1, 2, 0))


def test_size_rule_over_a_grid():
    processor = DepthImageProcessor()
    for height in range(100, 2001, 20):
        for width in range(100, 2001, 20):
            shape = np.broadcast_to(np.uint8(0), (3, height, width))
            expected = reference_module.get_resize_output_image_size(shape, (518, 518), True, 14)
            assert processor.target_size(height, width) == (expected.height, expected.width), (height, width)


def test_transformers_opens_what_is_saved(tmp_path):
    saved = DepthImageProcessor(input_size=(280, 420))
    saved.save_pretrained(tmp_path)
    opened = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(opened).__name__.startswith("DPTImageProcessor")
    assert (opened.size["height"], opened.size["width"]) == (280, 420)
    assert (opened.ensure_multiple_of, opened.keep_aspect_ratio) == (14, True)
    opened.save_pretrained(tmp_path / "theirs")
    assert DepthImageProcessor.from_pretrained(tmp_path / "theirs").to_dict() == saved.to_dict()


def interpolate(values, **options):
    batch = torch.from_numpy(np.ascontiguousarray(values))[None, None]
    return torch.nn.functional.interpolate(batch, **options)[0, 0].numpy()


AXES = [(37, 49), (37, 38), (37, 24), (518, 1280), (518, 3000), (924, 1280), (2000, 518), (5, 1), (1, 5), (7, 7)]


@pytest.mark.parametrize(("size_in", "size_out"), AXES)
def test_cubic_matrix(size_in, size_out):
    values = np.random.default_rng(0).normal(size=(size_in, 4)).astype(np.float32)
    expected = interpolate(values, size=(size_out, 4), mode="bicubic", align_corners=False)
    np.testing.assert_allclose(cubic_matrix(size_in, size_out) @ values, expected, atol=5e-6)


@pytest.mark.parametrize("patches", [10, 24, 36, 37, 38, 66, 123])
def test_cubic_matrix_with_the_position_offset(patches):
    values = np.random.default_rng(0).normal(size=(37, 4)).astype(np.float32)
    scale_factor = ((patches + 0.1) / 37, 1.0)
    expected = interpolate(values, scale_factor=scale_factor, mode="bicubic", align_corners=False)
    assert len(expected) == patches
    matrix = cubic_matrix(37, patches, scale=37 / (patches + 0.1))
    np.testing.assert_allclose(matrix @ values, expected, atol=5e-6)


@pytest.mark.parametrize(("size_in", "size_out"), AXES)
def test_linear_taps(size_in, size_out):
    values = np.random.default_rng(0).normal(size=(size_in, 4))  # float64: the taps are exact, torch's float32 is not
    expected = interpolate(values, size=(size_out, 4), mode="bilinear", align_corners=True)
    low, high, fraction = linear_taps(size_in, size_out)
    found = values[low] * (1 - fraction[:, None]) + values[high] * fraction[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(720, 1280), (480, 640), (100, 2000), (1500, 2000), (1, 1)])
def test_resizes(size):
    depth = np.random.default_rng(1).uniform(0, 5, (518, 924)).astype(np.float32)
    cubic = interpolate(depth, size=size, mode="bicubic", align_corners=False)
    assert np.abs(resize_cubic(depth, size) - cubic).max() <= 1e-5 * np.abs(cubic).max()
    linear = interpolate(depth.astype(np.float64), size=size, mode="bilinear", align_corners=True)
    assert np.abs(resize_linear(depth, size) - linear).max() <= 1e-5 * np.abs(linear).max()


def test_post_processing():
    maps = np.random.default_rng(2).uniform(0, 5, (2, 280, 420)).astype(np.float32)
    sizes = [(480, 640), (300, 200)]

    class Outputs:
        predicted_depth = torch.from_numpy(maps)

    expected = reference().post_process_depth_estimation(Outputs, target_sizes=sizes)
    for source in (Outputs, maps):
        found = DepthImageProcessor().post_process_depth_estimation(source, target_sizes=sizes)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours["predicted_depth"], theirs["predicted_depth"].numpy(), atol=5e-5)


def test_gray8_is_what_the_pipeline_shows():
    maps = torch.from_numpy(np.random.default_rng(3).uniform(0, 5, (1, 28, 42)).astype(np.float32))

    class Stand:
        image_processor = reference()

    outputs = type("Outputs", (dict,), {"predicted_depth": maps})(target_size=(40, 60))
    result = transformers.DepthEstimationPipeline.postprocess(Stand, outputs)
    ours = np.asarray(to_gray8(result["predicted_depth"].numpy()))
    np.testing.assert_array_equal(ours, np.asarray(result["depth"]))
