"""Where `dajax.load` has the config from: the file, the caller, the file's name, its tensors, the repository."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
from checkpoint_files import (
    assert_params,
    assert_refused,
    sparse,
    tensors_of,
    write_folder,
)
from tiny import tiny_config, tiny_metric_config

import dajax
from dajax.config import DepthAnythingConfig
from dajax.errors import AssumedKindWarning, ConfigError, LicenceWarning, WeightsError
from dajax.weights.loading import released_config
from dajax.weights.random import random_params

# --- where the config comes from


def test_lone_file_with_a_config_beside_it(tmp_path):
    config = tiny_metric_config()
    write_folder(tmp_path, config)
    (tmp_path / "model.safetensors").rename(tmp_path / "mine.safetensors")
    model, params = dajax.load(tmp_path / "mine.safetensors")
    assert model.config == config
    assert_params(params, random_params(config))


def test_lone_file_without(tmp_path):
    config = tiny_config()
    path = write_folder(tmp_path, None, tensors_of(config)) / "model.safetensors"
    assert_refused(path, r"without a config\.json, and no released model has its size")
    model, params = dajax.load(path, config=config)
    assert model.config == config
    assert_params(params, random_params(config))


def test_config_argument_replaces_the_file(tmp_path):
    metric = tiny_metric_config()
    folder = write_folder(tmp_path, tiny_config())
    assert dajax.load(folder, config=metric)[0].config == metric
    (folder / "config.json").unlink()
    assert dajax.load(folder, config=metric)[0].config == metric
    assert_refused(folder, r"has no config\.json, which says what .* is: copy it, too, or name the file itself")


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
@pytest.mark.parametrize("table", ["huggingface", "official"])
def test_size_is_guessed_aloud(tmp_path, size, table, monkeypatch):
    config = getattr(DepthAnythingConfig, size)()
    sparse(tmp_path / "mine.safetensors", config, table)
    monkeypatch.setattr("dajax.weights.loading._read_all", lambda *args: {})
    with pytest.warns(AssumedKindWarning, match=f"dajax takes it for Depth Anything V2 {size}, relative") as caught:
        model, _ = dajax.load(tmp_path / "mine.safetensors")
    assert model.config == config
    assert caught[0].filename == __file__


OFFICIAL_FILES = {
    "depth_anything_v2_vits": DepthAnythingConfig.small(),
    "depth_anything_v2_vitb": DepthAnythingConfig.base(),
    "depth_anything_v2_vitl": DepthAnythingConfig.large(),
    "depth_anything_v2_metric_hypersim_vits": DepthAnythingConfig.metric_indoor("small"),
    "depth_anything_v2_metric_vkitti_vitl": DepthAnythingConfig.metric_outdoor("large"),
    "depth_anything_vitb14": DepthAnythingConfig.v1("base"),
    "Depth_Anything_V2_metric_hypersim_vitl_fp16": DepthAnythingConfig.metric_indoor("large"),
}


@pytest.mark.parametrize("stem", OFFICIAL_FILES)
def test_official_file_names_say_what_they_are(tmp_path, stem, monkeypatch):
    """Without a warning; as a file, and as the only one in a folder."""
    config = OFFICIAL_FILES[stem]
    sparse(tmp_path / f"{stem}.safetensors", config, "official")
    monkeypatch.setattr("dajax.weights.loading._read_all", lambda *args: {})
    assert dajax.load(tmp_path / f"{stem}.safetensors")[0].config == config
    assert dajax.load(tmp_path)[0].config == config


def test_a_config_is_above_the_file_name(tmp_path, monkeypatch):
    monkeypatch.setattr("dajax.weights.loading._read_all", lambda *args: {})
    path = tmp_path / "depth_anything_v2_metric_hypersim_vits.safetensors"
    sparse(path, DepthAnythingConfig.small(), "official")
    outdoor = DepthAnythingConfig.metric_outdoor("small")
    # The tensors of all kinds are the same, so what contradicts can only be said.
    says = r"name of .* says 'small-metric-indoor', .* 20 .* its config says metric with max_depth 80"
    with pytest.warns(UserWarning, match=says) as caught:
        assert dajax.load(path, config=outdoor)[0].config == outdoor
    assert caught[0].filename == __file__
    (tmp_path / "config.json").write_text(json.dumps(outdoor.to_dict()))
    with pytest.warns(UserWarning, match=says):
        assert dajax.load(path)[0].config == outdoor
    indoor = DepthAnythingConfig.metric_indoor("small")
    assert dajax.load(path, config=indoor)[0].config == indoor
    assert_refused(path, "does not fit its config", config=DepthAnythingConfig.metric_indoor("large"))


def test_taps_that_contradict_the_file_name(tmp_path, monkeypatch):
    """V1 and V2 differ in nothing else."""
    monkeypatch.setattr("dajax.weights.loading._read_all", lambda *args: {})
    sparse(tmp_path / "depth_anything_v2_vits.safetensors", DepthAnythingConfig.small(), "official")
    with pytest.warns(UserWarning, match=r"'small', relative with taps after layers 3, 6, 9, 12, .* 9, 10, 11, 12"):
        dajax.load(tmp_path / "depth_anything_v2_vits.safetensors", config=DepthAnythingConfig.v1("small"))


def test_config_of_the_authors_code_is_no_config(tmp_path, monkeypatch):
    """All fields of ours have defaults, so that any JSON object would pass for V1 Small's."""
    monkeypatch.setattr("dajax.weights.loading._read_all", lambda *args: {})
    (tmp_path / "config.json").write_text('{"encoder": "vits", "features": 64, "out_channels": [48, 96, 192, 384]}')
    for name in ("depth_anything_v2_metric_vkitti_vits.safetensors", "mine.safetensors", "model.safetensors"):
        sparse(tmp_path / name, DepthAnythingConfig.small(), "official")
    outdoor = DepthAnythingConfig.metric_outdoor("small")
    assert dajax.load(tmp_path / "depth_anything_v2_metric_vkitti_vits.safetensors")[0].config == outdoor
    for path in (tmp_path / "mine.safetensors", tmp_path):
        assert_refused(path, r"config\.json: no config\.json of Transformers.*model_type.*config=", ConfigError)
        assert dajax.load(path, config=outdoor)[0].config == outdoor


def test_errors_of_the_config_name_the_file(tmp_path):
    folder = write_folder(tmp_path, tiny_config())
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"fusion_hidden_size": -1}))
    assert_refused(folder, rf"{folder}/config\.json: config\.fusion_hidden_size", ConfigError)


def test_official_file_without_a_mask_token(tmp_path, monkeypatch):
    """The network does not use it, and some training code deletes it."""
    monkeypatch.setattr("dajax.weights.loading._read_all", lambda *args: {})
    config = DepthAnythingConfig.small()
    config = replace(config, backbone_config=replace(config.backbone_config, use_mask_token=False))
    for name in ("depth_anything_v2_vits.safetensors", "mine.safetensors"):
        sparse(tmp_path / name, config, "official")
    assert dajax.load(tmp_path / "depth_anything_v2_vits.safetensors")[0].config == config
    with pytest.warns(UserWarning, match="dajax takes it for"):
        assert dajax.load(tmp_path / "mine.safetensors")[0].config == config


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("relative", DepthAnythingConfig.base()),
        ("metric-indoor", DepthAnythingConfig.metric_indoor("base")),
        ("metric-outdoor", DepthAnythingConfig.metric_outdoor("base")),
        ("v1", DepthAnythingConfig.v1("base")),
    ],
)
def test_a_kind_says_the_config_of_the_size_of_the_tensors(tmp_path, kind, expected):
    sparse(tmp_path / "mine.safetensors", DepthAnythingConfig.base(), "official")
    assert released_config(tmp_path / "mine.safetensors", kind) == expected


def test_a_kind_that_there_is_not(tmp_path):
    sparse(tmp_path / "mine.safetensors", DepthAnythingConfig.small(), "official")
    with pytest.raises(ConfigError, match="kind must be one of relative, metric-indoor, metric-outdoor, v1, got 'v3'"):
        released_config(tmp_path / "mine.safetensors", "v3")
    other = write_folder(tmp_path / "other", None, tensors_of(tiny_config())) / "model.safetensors"
    with pytest.raises(WeightsError, match="no released model has its size"):
        released_config(other, "v1")


# --- licences


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("small", None),
        ("depth-anything/Depth-Anything-V2-Small-hf", None),
        ("base", "'base' .depth-anything/Depth-Anything-V2-Base-hf. are under CC-BY-NC-4.0"),
        ("depth-anything/Depth-Anything-V2-Large-hf", "'large' .* are under CC-BY-NC-4.0"),
        ("small-metric-outdoor", "'small-metric-outdoor' .* state no licence"),
        ("v1-small", "'v1-small' .* state no licence"),
    ],
)
def test_licence_is_said_once(released_hub, monkeypatch, name, says):
    monkeypatch.setattr("dajax.weights.loading._said", set())
    if says:
        with pytest.warns(LicenceWarning, match=says) as caught:
            dajax.load(name)
        assert len(caught) == 1
        assert caught[0].filename == __file__
    dajax.load(name)  # a warning would be an error here


def test_no_licence_is_said_of_what_is_on_the_disk(tmp_path, monkeypatch):
    write_folder(tmp_path / "base", tiny_config())
    monkeypatch.chdir(tmp_path)
    dajax.load("./base")


# --- the authors' own repositories


@pytest.mark.parametrize(
    ("repository", "filename", "alias"),
    [
        ("depth-anything/Depth-Anything-V2-Small", "depth_anything_v2_vits.pth", "small"),
        (
            "depth-anything/Depth-Anything-V2-Metric-VKITTI-Small",
            "depth_anything_v2_metric_vkitti_vits.pth",
            "small-metric-outdoor",
        ),
        ("LiheYoung/depth_anything_vits14", "pytorch_model.bin", "v1-small"),
    ],
)
def test_authors_repositories(hub, tmp_path, monkeypatch, repository, filename, alias):
    """One file and no config.json that says what it is: the name of the repository does."""
    monkeypatch.setattr("dajax.weights.loading._said", set())
    monkeypatch.setattr("dajax.weights.loading._read_all", lambda *args: {})
    (tmp_path / "files").mkdir()
    sparse(tmp_path / "files" / filename, DepthAnythingConfig.small(), "official")
    (tmp_path / "files" / "config.json").write_text('{"encoder": "vits", "features": 64}')
    hub.push(repository, tmp_path / "files")
    with pytest.warns(LicenceWarning) if alias != "small" else nullcontext():
        model, _ = dajax.load(repository)
    assert model.config == DepthAnythingConfig.from_pretrained(alias)
    assert not hub.asked(file="config.json")
