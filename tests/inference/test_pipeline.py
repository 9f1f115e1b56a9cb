"""The interface of Transformers' depth-estimation pipeline; tests/parity compares the numbers."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from seeded import picture, write_checkpoint
from tiny import tiny_config

import dajax
from dajax.errors import ConfigError, ImageError, WeightsError

SHAPES = json.loads((Path(__file__).parents[1] / "references" / "data" / "shapes.json").read_text())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config().to_dict(), SHAPES["tiny"])


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return dajax.pipeline("depth-estimation", model=checkpoint, input_size=70)


@pytest.fixture
def quick(pipe, monkeypatch):
    """A pipeline whose network is a sum: nothing is compiled."""
    monkeypatch.setattr(pipe.estimator, "predict", lambda pixels: np.asarray(pixels).sum(-1, dtype=np.float32))
    return pipe


def test_one_picture_gives_values_and_a_picture(pipe):
    result = pipe(picture(60, 80))
    assert set(result) == {"predicted_depth", "depth"}
    values, shown = result["predicted_depth"], result["depth"]
    assert (values.shape, values.dtype) == ((60, 80), np.float32)
    np.testing.assert_array_equal(values, pipe.estimator(picture(60, 80)))
    assert (shown.mode, shown.size) == ("L", (80, 60))
    levels = np.asarray(shown)
    assert (levels.min(), levels.max()) == (0, 255)
    assert levels[np.unravel_index(values.argmax(), values.shape)] == 255
    expected = (values - values.min()) / (values.max() - values.min()) * 255
    assert np.abs(levels - expected).max() <= 1


def test_lists_and_tuples_give_lists(quick):
    images = [picture(60, 80), Image.fromarray(picture(80, 60)), picture(61, 80), (picture(70, 70) / 255)]
    singles = [quick(image) for image in images]
    for many in (images, tuple(images)):
        for batch_size in (None, 1, 2, 8):
            results = quick(many, batch_size=batch_size)
            assert isinstance(results, list)
            for result, single in zip(results, singles, strict=True):
                np.testing.assert_array_equal(result["predicted_depth"], single["predicted_depth"])
                np.testing.assert_array_equal(np.asarray(result["depth"]), np.asarray(single["depth"]))
    assert quick([]) == []
    assert isinstance(quick([images[0]]), list)


def test_generators_give_generators(quick):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield picture(60, 80)

    results = quick(endless())
    assert inspect.isgenerator(results)
    assert not taken
    for done in range(1, 6):
        assert next(results)["predicted_depth"].shape == (60, 80)
        assert len(taken) <= done + 1
    assert next(quick(iter([picture(70, 70)])))["depth"].size == (70, 70)


def test_paths_bytes_and_open_files(quick, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture(60, 80)).save(path)
    expected = quick(picture(60, 80))["predicted_depth"]
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(quick(source)["predicted_depth"], expected)
    with path.open("rb") as stream:  # an iterator over lines, but one picture
        np.testing.assert_array_equal(quick(stream)["predicted_depth"], expected)


def test_constant_depth_is_a_black_picture(pipe, monkeypatch):
    monkeypatch.setattr(pipe.estimator, "predict", lambda pixels: np.full(pixels.shape[:3], 3, np.float32))
    result = pipe(picture(60, 80))
    np.testing.assert_allclose(result["predicted_depth"], 3, rtol=1e-6)
    monkeypatch.setattr(pipe.estimator, "stream", lambda *_, **__: iter([np.full((60, 80), 3, np.float32)]))
    assert np.asarray(pipe(picture(60, 80))["depth"]).max() == 0


def test_depth_that_is_not_finite_is_an_error(pipe, monkeypatch):
    monkeypatch.setattr(pipe.estimator, "predict", lambda pixels: np.full(pixels.shape[:3], np.nan, np.float32))
    with pytest.raises(ImageError, match="finite"):
        pipe(picture(60, 80))


def test_models_and_estimators(checkpoint, pipe):
    image = picture(60, 80)
    expected = pipe(image)["predicted_depth"]
    of_estimator = dajax.pipeline(model=pipe.estimator)
    assert of_estimator.estimator is pipe.estimator
    of_pair = dajax.pipeline(model=dajax.load(checkpoint), input_size=70)
    of_class = dajax.DepthEstimationPipeline(str(checkpoint), input_size=70, batch_size=2)
    assert isinstance(of_pair, dajax.DepthEstimationPipeline)
    assert of_class.estimator.batch_size == 2
    np.testing.assert_array_equal(of_pair(image)["predicted_depth"], expected)
    official = dajax.pipeline(model=checkpoint, style="official")
    assert official.estimator.processor.style == "official"


def test_what_is_refused(checkpoint, pipe, tmp_path):
    for task in ("depth", "image-classification", "depth_estimation", ""):
        with pytest.raises(ConfigError, match="depth-estimation"):
            dajax.pipeline(task, model=checkpoint)
    with pytest.raises(ConfigError, match=r"\['dtype', 'input_size'\] belong to the estimator"):
        dajax.pipeline(model=pipe.estimator, input_size=70, dtype="bfloat16")
    with pytest.raises(ConfigError, match="style"):
        dajax.pipeline(model=checkpoint, style="offical")
    with pytest.raises(WeightsError, match="none"):
        dajax.pipeline(model=tmp_path / "none")
    for batch_size in (0, -3):
        for images in (picture(60, 80), [picture(60, 80)]):
            with pytest.raises(ConfigError, match="batch_size"):
                pipe(images, batch_size=batch_size)
    for bad in (None, 3, {"image": picture(60, 80)}, "https://host/a.jpg", tmp_path / "none.jpg"):
        with pytest.raises(ImageError):
            pipe(bad)
