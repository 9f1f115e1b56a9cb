"""What `dajax train` makes, opened by Transformers: the checkpoint in the package, whose weights are trained ones."""

from pathlib import Path

import jax
import numpy as np
import pytest
import skimage.data
from PIL import Image
from reference import load_reference, run
from seeded import error
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

import dajax

FOLDER = Path(dajax.__file__).parent / "assets" / "tiny"


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_transformers_sees_what_dajax_sees(name):
    image = Image.fromarray(getattr(skimage.data, name)())
    pixels = dajax.DepthImageProcessor.from_pretrained("tiny")(image)["pixel_values"]
    theirs = DPTImageProcessorPil.from_pretrained(FOLDER)(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixels, theirs.transpose(0, 2, 3, 1), atol=1e-6)

    expected = run(load_reference(FOLDER), pixels).predicted_depth.numpy()  # float64, of the file's float16
    model, params = dajax.load("tiny", dtype="float32")
    found = jax.jit(lambda params, x: model.apply({"params": params}, x).predicted_depth)(params, pixels)
    assert expected.shape == found.shape
    assert expected.std() > 0.05
    assert error(found, expected) <= 5e-5, error(found, expected)
