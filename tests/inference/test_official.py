"""Style "official" is one thing, whichever way it is asked for."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from seeded import error, make_image, write_checkpoint
from tiny import tiny_metric_config

import dajax
from dajax.cli import main

SHAPES = json.loads((Path(__file__).parents[1] / "references" / "data" / "shapes.json").read_text())
SIZE = 70


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_metric_config().to_dict(), SHAPES["tiny-metric"])


@pytest.fixture(scope="module")
def estimator(checkpoint):
    return dajax.DepthEstimator(checkpoint, style="official", input_size=SIZE)


@pytest.fixture(scope="module")
def expected(estimator):
    return estimator(make_image(60, 80))


def assert_official(depth, expected):
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, expected)


def test_pipeline(checkpoint, expected):
    pipe = dajax.pipeline("depth-estimation", model=checkpoint, style="official", input_size=SIZE)
    assert_official(pipe(make_image(60, 80))["predicted_depth"], expected)


def test_pair(checkpoint, expected):
    pair = dajax.load(checkpoint, style="official")
    assert_official(dajax.pipeline(model=pair, input_size=SIZE)(make_image(60, 80))["predicted_depth"], expected)


def test_saved_processor(checkpoint, expected, tmp_path):
    dajax.DepthImageProcessor("official", SIZE).save_pretrained(tmp_path)
    processor = dajax.DepthImageProcessor.from_pretrained(tmp_path)
    assert_official(dajax.DepthEstimator(checkpoint, processor=processor)(make_image(60, 80)), expected)


def test_saved_model_stays_official(checkpoint, expected, tmp_path):
    """Whichever way it is opened, and unless another style is asked for."""
    model, params = dajax.load(checkpoint, style="official")
    dajax.save(tmp_path, model, params)
    assert_official(dajax.DepthEstimator(tmp_path, input_size=SIZE)(make_image(60, 80)), expected)
    pair = dajax.load(tmp_path)
    assert_official(dajax.DepthEstimator(pair, input_size=SIZE)(make_image(60, 80)), expected)
    other = dajax.DepthEstimator(tmp_path, style="huggingface", input_size=SIZE)(make_image(60, 80))
    assert (other == dajax.DepthEstimator(checkpoint, input_size=SIZE)(make_image(60, 80))).all()
    assert not (other == expected).all()


def test_parts_by_hand(checkpoint, expected):
    model, params = dajax.load(checkpoint, style="official")
    processor = dajax.DepthImageProcessor.from_pretrained(checkpoint, style="official", input_size=SIZE)
    pixels = processor(make_image(60, 80))["pixel_values"]
    output = jax.jit(lambda params, pixels: model.apply({"params": params}, pixels))(params, pixels)
    depth = processor.post_process_depth_estimation(output, [(60, 80)])[0]["predicted_depth"]
    assert error(depth, expected) <= 3e-5  # another program


def test_command_line(checkpoint, expected, tmp_path):
    Image.fromarray(make_image(60, 80)).save(tmp_path / "room.png")
    arguments = ["--style", "official", "--input-size", str(SIZE), "--raw", "npy", "--no-cache", "-o", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(tmp_path / "room.png"), "--model", str(checkpoint), *arguments])
    assert ended.value.code == 0
    assert_official(np.load(tmp_path / "room_depth.npy"), expected)


def test_batches_of_mixed_sizes(estimator):
    """(60, 80) and (90, 120) become the same size, (80, 60) another."""
    images = [make_image(*size) for size in ((60, 80), (80, 60), (90, 120), (61, 80))]
    for result, image in zip(estimator(images, batch_size=2), images, strict=True):
        assert result.shape == image.shape[:2]
        assert error(result, estimator(image)) <= 3e-5
