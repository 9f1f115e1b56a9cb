"""The whole way from an image to its maps, against Transformers' own depth-estimation pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from seeded import error, write_checkpoint
from tiny import tiny_config
from transformers import DepthAnythingForDepthEstimation, DepthEstimationPipeline
from transformers.image_utils import load_image
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

import dajax

SHAPES = json.loads((Path(__file__).parents[1] / "references" / "data" / "shapes.json").read_text())
IMAGES = ("astronaut", "coffee", "chelsea", "rocket")
# In deviations of the map, and in steps of 255. PyTorch's float32 is itself up to 2e-4 away from its float64.
VALUES, VALUES_OF_FLOAT32, LEVELS = 1e-4, 4e-4, 1


class Reference(DepthEstimationPipeline):
    """The network in the model's type; the resize to the image's size in float32, as everybody runs it."""

    def _forward(self, model_inputs):
        outputs = super()._forward(model_inputs)
        outputs["predicted_depth"] = outputs["predicted_depth"].float()
        return outputs


def reference_pipeline(checkpoint, dtype):
    model = DepthAnythingForDepthEstimation.from_pretrained(checkpoint, dtype=dtype).eval()
    processor = DPTImageProcessorPil.from_pretrained(checkpoint)
    return Reference(model=model, image_processor=processor, device="cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config().to_dict(), SHAPES["tiny"])


@pytest.fixture(scope="module")
def tiny(checkpoint):
    return dajax.pipeline("depth-estimation", model=checkpoint), reference_pipeline(checkpoint, torch.float64)


def assert_same(mine, theirs, bound=VALUES):
    assert set(mine) == set(theirs) == {"predicted_depth", "depth"}
    expected = theirs["predicted_depth"].numpy()
    assert mine["predicted_depth"].shape == expected.shape
    assert mine["predicted_depth"].dtype == expected.dtype == np.float32
    assert expected.std() > 0.1
    found = error(mine["predicted_depth"], expected)
    assert found <= bound, f"largest error {found:.1e} of the deviation"
    assert (mine["depth"].mode, mine["depth"].size) == (theirs["depth"].mode, theirs["depth"].size)
    levels = np.abs(np.asarray(mine["depth"], int) - np.asarray(theirs["depth"], int)).max()
    assert levels <= LEVELS


@pytest.fixture(scope="module")
def reference_of_float32(checkpoint):
    return reference_pipeline(checkpoint, torch.float32)


@pytest.mark.parametrize("name", IMAGES)
def test_images(tiny, reference_of_float32, name):
    pipe, reference = tiny
    image = Image.fromarray(getattr(skimage.data, name)())
    mine = pipe(image)
    assert_same(mine, reference(image))
    assert_same(mine, reference_of_float32(image), VALUES_OF_FLOAT32)


def test_list_of_images(tiny):
    pipe, reference = tiny
    images = [Image.fromarray(getattr(skimage.data, name)()) for name in ("chelsea", "coffee")] * 2
    for mine, theirs in zip(pipe(images, batch_size=2), reference(images), strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes(tiny, mode):
    pipe, reference = tiny
    image = Image.fromarray(skimage.data.chelsea()).convert(mode)
    assert_same(pipe(image), reference(image))


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_images_with_orientation(tiny, tmp_path, orientation):
    pipe, reference = tiny
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(skimage.data.chelsea()).save(path, exif=exif, quality=95)
    height, width = skimage.data.chelsea().shape[:2]
    mine, theirs = pipe(path), reference(str(path))
    assert mine["depth"].size == ((height, width) if orientation > 4 else (width, height))
    assert_same(mine, theirs)
    assert_same(pipe(load_image(str(path))), theirs)
    assert_same(pipe(str(path)), theirs)


@pytest.mark.slow
def test_full_size_small_model(tmp_path):
    config = dajax.DepthAnythingConfig.small().to_dict()
    checkpoint = write_checkpoint(tmp_path, config, SHAPES["small"])
    image = Image.fromarray(skimage.data.coffee())
    expected = reference_pipeline(checkpoint, torch.float32)(image)
    assert_same(dajax.pipeline("depth-estimation", model=checkpoint)(image), expected, 2e-4)
