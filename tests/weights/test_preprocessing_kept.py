"""What is loaded keeps its preprocessing through every door and every format."""

import itertools
import json
import warnings

import numpy as np
import pytest
import skimage.data
from checkpoint_files import assert_params
from tiny import tiny_config

import dajax
from dajax.errors import ConfigError
from dajax.weights import convert
from dajax.weights.random import random_params

FORMATS = ("hf", "flax", "official")
# Nothing of it is a default.
UNUSUAL = dajax.DepthImageProcessor(
    input_size=(70, 84), ensure_multiple_of=28, keep_aspect_ratio=False, resample=2, rescale_factor=1 / 127.5,
    image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6),
)  # fmt: skip
IMAGE = skimage.data.astronaut()[:200, :300]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """tiny by its name, and a model with an unusual processor as a folder and as the file in it."""
    folder = tmp_path_factory.mktemp("unusual")
    config = tiny_config()
    dajax.save(folder, dajax.DepthAnything(config), random_params(config), processor=UNUSUAL)
    return {"tiny": "tiny", "folder": folder, "file": folder / "model.safetensors"}


def results(name):
    """Return what the estimator of a checkpoint has: the processor's fields, its pixels, the params and the depth."""
    estimator = dajax.DepthEstimator(name)
    (pixels,) = estimator.processor(IMAGE)["pixel_values"]
    return estimator.processor.to_dict(), pixels, estimator.params, estimator(IMAGE)


def assert_same(found, expected):
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])
    assert_params(found[2], expected[2])
    np.testing.assert_array_equal(found[3], expected[3])


# The others are the same code with other files.
SOME = ["folder", *(pytest.param(source, marks=pytest.mark.slow) for source in ("tiny", "file"))]


@pytest.mark.parametrize("source", SOME)
def test_through_all_formats(sources, tmp_path, source):
    """Converted from each format to each other: pixels, params and depth bit for bit, as a folder and as a file."""
    expected = results(sources[source])
    for one, other in itertools.permutations(FORMATS, 2):
        convert(sources[source], tmp_path / f"{one} {other} 1", format=one)
        convert(tmp_path / f"{one} {other} 1", tmp_path / f"{one} {other} 2", format=other)
        assert_same(results(tmp_path / f"{one} {other} 2"), expected)
    (weights,) = (path for path in (tmp_path / "hf official 2").iterdir() if path.suffix == ".pth")
    assert_same(results(weights), expected)


@pytest.mark.parametrize("source", SOME)
@pytest.mark.parametrize("format", FORMATS)
def test_load_and_save(sources, tmp_path, source, format):
    model, params = dajax.load(sources[source])
    dajax.save(tmp_path, model, params, format=format)
    assert_same(results(tmp_path), results(sources[source]))


@pytest.mark.parametrize("source", ["tiny", "folder", "file"])
def test_a_pair_has_the_processor_of_its_checkpoint(sources, source):
    assert_same(results(dajax.load(sources[source])), results(sources[source]))


def test_a_size_or_a_style_of_the_caller_is_above_it(sources, tmp_path):
    convert(sources["folder"], tmp_path / "a", input_size=98, style="official")
    found = dajax.DepthImageProcessor.from_pretrained(tmp_path / "a")
    assert found.to_dict() == UNUSUAL.to_dict() | {"size": {"height": 98, "width": 98}, "style": "official"}
    assert dajax.DepthEstimator(dajax.load(sources["folder"]), input_size=56).processor.size["height"] == 56


def test_from_the_hub(sources, hub, tmp_path):
    """By a Hub id, with and without the file: as the folder."""
    hub.push("someone/unusual", sources["folder"])
    expected = results(sources["folder"])
    assert_same(results("someone/unusual"), expected)
    convert("someone/unusual", tmp_path / "converted")
    assert_same(results(tmp_path / "converted"), expected)


def test_a_hub_repository_without_the_file_is_a_folder_without_it(sources, hub, tmp_path):
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((sources["folder"] / name).read_bytes())
    hub.push("someone/bare", tmp_path / "bare")
    for name in ("someone/bare", tmp_path / "bare"):
        with pytest.warns(
            UserWarning, match=r"bare has no preprocessor_config\.json: the released checkpoints' is used"
        ):
            estimator = dajax.DepthEstimator(name)
        assert estimator.processor.to_dict() == dajax.DepthImageProcessor().to_dict()
        with pytest.warns(UserWarning, match=r"bare has no preprocessor_config\.json"):
            dajax.pipeline(model=name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert dajax.load(name)[0].config.preprocessing is None
        with pytest.warns(UserWarning, match=r"bare has no preprocessor_config\.json"):
            convert(name, tmp_path / f"converted {str(name)[:7].replace('/', '')}")


def test_a_config_is_the_same_with_and_without():
    config = dajax.load("tiny")[0].config
    assert config.preprocessing["size"] == {"height": 168, "width": 168}
    same = dajax.DepthAnythingConfig.from_dict(config.to_dict())
    assert same.preprocessing is None
    assert (same, hash(same)) == (config, hash(config))
    assert "preprocessing" not in config.to_dict()
    assert "preprocessing" not in repr(config)


@pytest.mark.parametrize(
    "fields",
    [
        {"rescale_factor": int("9" * 400)}, {"rescale_factor": 1e308}, {"rescale_factor": 0},
        {"image_std": [1e-320] * 3}, {"image_std": [0.0, 1, 1]}, {"image_mean": [1e308] * 3},
        {"image_mean": [True] * 3}, {"size": {"height": int("9" * 400), "width": 14}},
        {"ensure_multiple_of": int("9" * 400)}, {"resample": 1 << 70},
    ],
)  # fmt: skip
def test_numbers_of_a_file_are_bounded(tmp_path, fields):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(UNUSUAL.to_dict() | fields))
    with pytest.raises(ConfigError, match=next(iter(fields)).replace("size", "size|input_size")) as error:
        dajax.DepthImageProcessor.from_pretrained(tmp_path)
    assert len(str(error.value)) < 1000
