"""Which model a command uses: names that are mistyped, kinds that are not known, and options that reach the library."""

from types import SimpleNamespace

import jax
import pytest
from checkpoint_files import sparse
from tiny import tiny_config

import dajax
from dajax.cli import model_options
from dajax.cli.arguments import UsageError
from dajax.cli.model_options import (
    CheckpointOptions,
    ModelOptions,
    loading,
    loading_options,
    make_estimator,
)
from dajax.config import DepthAnythingConfig
from dajax.errors import WeightsError
from dajax.progress import ProgressBar
from dajax.weights.random import random_params


@pytest.fixture
def lone(tmp_path, monkeypatch):
    """A file of weights of a released size, of which nothing says the kind. Its tensors are not read."""
    monkeypatch.setattr("dajax.weights.loading._read_all", lambda *arguments: {})
    sparse(tmp_path / "mine.safetensors", DepthAnythingConfig.small(), "official")
    return str(tmp_path / "mine.safetensors")


def test_a_lone_file_whose_kind_is_not_known_is_refused(lone):
    says = r"does not say what kind .* --kind \(relative, .*\), or with --config"
    with pytest.raises(UsageError, match=says), loading(lone):
        dajax.load(lone, **loading_options(CheckpointOptions(), lone))


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({"kind": "relative"}, DepthAnythingConfig.small()),
        ({"kind": "metric-outdoor"}, DepthAnythingConfig.metric_outdoor("small")),
        ({"kind": "v1"}, DepthAnythingConfig.v1("small")),
        ({"config": "small-metric-indoor"}, DepthAnythingConfig.metric_indoor("small")),
    ],
    ids=str,
)
def test_a_kind_or_a_config_says_it(lone, options, config):
    with loading(lone):
        model, _ = dajax.load(lone, **loading_options(CheckpointOptions(**options), lone))
    assert model.config == config


def test_a_name_that_is_mistyped():
    with pytest.raises(UsageError, match=r"--model: 'smal' is no alias .* Did you mean 'small'\?"), loading("smal"):
        pytest.fail("nothing is loaded")


def test_errors_name_the_option(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(WeightsError, match=f"^--model: {tmp_path} holds no weights"):
        make_estimator(ModelOptions(model=str(tmp_path), cache=False), batch_size=1)
    with pytest.raises(UsageError, match=r"^--config: .*nothing\.json"):
        loading_options(CheckpointOptions(config="nothing.json"), "small")
    with pytest.raises(UsageError, match="give one of them"):
        loading_options(CheckpointOptions(config="small", kind="v1"), "small")


def test_options_reach_the_estimator(tmp_path):
    dajax.save(tmp_path, dajax.DepthAnything(tiny_config()), random_params(tiny_config()))
    options = ModelOptions(str(tmp_path), style="official", dtype="bfloat16", input_size=140, cache=False)
    estimator = make_estimator(options, batch_size=3)
    assert (estimator.dtype, estimator.batch_size) == ("bfloat16", 3)
    assert estimator.processor.size == {"height": 140, "width": 140}
    assert estimator.model.config.style == "official"


def test_where_programs_are_kept_is_said_once(capsys, monkeypatch):
    bar = ProgressBar("dajax predict", 2, show=False)
    for folder, count in (("/kept/here", 1), (None, 0)):
        monkeypatch.setattr(model_options, "cache_text", lambda folder=folder: f"from {folder}" if folder else "")
        estimator = SimpleNamespace()
        model_options.say_compiling(estimator, bar)
        for shape in [(1, 28, 28, 3), (2, 28, 28, 3), (1, 28, 42, 3)]:
            estimator.on_new_shape(shape)
        err = capsys.readouterr().err
        assert err.count("dajax predict: from /kept/here\n") == count
        assert err.count("preparing the network for ") == 2


def test_the_text_about_kept_programs(monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", "/kept/here")
        assert "come from /kept/here" in model_options.cache_text()
        jax.config.update("jax_compilation_cache_dir", None)
        assert model_options.cache_text() == ""
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
