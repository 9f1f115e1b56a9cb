import itertools
import json
import warnings

import jax
import numpy as np
import pytest
from checkpoint_files import write_folder
from flax.traverse_util import flatten_dict
from tiny import tiny_config, tiny_metric_config, tiny_swiglu_config

import dajax
from dajax.errors import ConfigError, LicenceWarning, WeightsError
from dajax.weights.conversion import convert
from dajax.weights.random import random_params

FORMATS = ("hf", "flax", "official")
CONFIGS = {"gelu": tiny_config(), "metric": tiny_metric_config(), "swiglu": tiny_swiglu_config()}


def saved(folder, config, dtype="float32", **options):
    params = jax.tree.map(lambda x: x.astype(dtype), random_params(config))
    dajax.save(folder, dajax.DepthAnything(config), params, **options)
    return params


def weights(folder):
    (path,) = (path for path in folder.iterdir() if path.suffix in (".safetensors", ".pth"))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(kind, dtype, marks=[] if (kind, dtype) == ("swiglu", "bfloat16") else pytest.mark.slow)
        for kind in CONFIGS
        for dtype in ("float32", "bfloat16")
    ],
)
def test_all_ways_lead_to_the_same_bytes(tmp_path, kind, dtype):
    """Through every format in every order: the first file again, and the params bit for bit."""
    config = CONFIGS[kind]
    params = saved(tmp_path / "start", config, dtype)
    for order in itertools.permutations(FORMATS):
        place = tmp_path / "start"
        for i, format in enumerate(order):
            place, before = tmp_path / f"{'-'.join(order)} {i}", place
            assert convert(before, place, format=format).config == config
        convert(place, tmp_path / "-".join(order), format="hf")
        assert weights(tmp_path / "-".join(order)) == weights(tmp_path / "start")
        found = flatten_dict(dajax.load(place)[1], sep="/")
        for path, leaf in flatten_dict(params, sep="/").items():
            assert np.asarray(found[path]).tobytes() == leaf.tobytes(), path


def test_on_the_cpu_and_with_the_type_that_is_asked_for(tmp_path):
    saved(tmp_path / "hf", tiny_config())
    with jax.default_device(jax.devices("cpu")[1]):
        convert(tmp_path / "hf", tmp_path / "half", dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(dajax.load(tmp_path / "half")[1])} == {"bfloat16"}


@pytest.mark.parametrize("as_file", [False, True])
def test_the_processor_goes_along(tmp_path, as_file):
    processor = dajax.DepthImageProcessor(input_size=(252, 336))
    saved(tmp_path / "hf", tiny_config(), processor=processor)
    convert(tmp_path / "hf" / "model.safetensors" if as_file else tmp_path / "hf", tmp_path / "flax")
    assert dajax.DepthImageProcessor.from_pretrained(tmp_path / "flax").to_dict() == processor.to_dict()


def test_from_the_hub(released_hub, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LicenceWarning)
        model = convert("small-metric-indoor", tmp_path / "flax", cache_dir=tmp_path / "cache")
    assert model.config.max_depth == 20
    assert dajax.load(tmp_path / "flax")[0].config == model.config


def test_what_does_not_load_leaves_no_folder(tmp_path):
    saved(tmp_path / "hf", tiny_config())
    file = tmp_path / "hf" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="cut off"):
        convert(tmp_path / "hf", tmp_path / "flax")
    with pytest.raises(ConfigError, match="dtype must be"):
        convert(tmp_path / "hf", tmp_path / "flax", dtype="int8")
    assert not (tmp_path / "flax").exists()


@pytest.mark.parametrize("as_file", [False, True])
def test_never_over_its_source(tmp_path, monkeypatch, as_file):
    """At another type it would be lost."""
    saved(tmp_path / "hf", tiny_config())
    before = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    (tmp_path / "link").symlink_to("hf")
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "hf" / "model.safetensors" if as_file else "hf"
    for place in ("hf", "./hf/", tmp_path / "link"):
        for format in FORMATS:
            with pytest.raises(WeightsError, match="written over itself"):
                convert(source, place, format=format, dtype="float16")
    assert {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()} == before


def test_a_processor_that_is_not_there_is_not_replaced(tmp_path):
    saved(tmp_path / "hf", tiny_config())
    (tmp_path / "hf" / "preprocessor_config.json").unlink()
    (tmp_path / "hf" / "preprocessor_config.json").symlink_to("nothing")
    with pytest.raises(WeightsError, match=r"preprocessor_config\.json"):
        convert(tmp_path / "hf", tmp_path / "flax")
    assert not (tmp_path / "flax").exists()


def test_a_processor_that_nobody_knows_is_said(tmp_path):
    """A folder without preprocessor_config.json gets the released one, as everywhere, and not without a word."""
    write_folder(tmp_path / "a", tiny_config())
    with pytest.warns(UserWarning, match=r"has no preprocessor_config\.json: the released checkpoints' is used"):
        convert(tmp_path / "a", tmp_path / "b", format="hf")
    written = json.loads((tmp_path / "b" / "preprocessor_config.json").read_text())
    assert written["size"] == {"height": 518, "width": 518}
    convert(tmp_path / "b", tmp_path / "c", format="hf")  # now it is known: nothing is said
