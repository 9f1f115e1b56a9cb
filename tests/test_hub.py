import inspect
import os
import shutil
import socket
import threading

import pytest
from tiny import tiny_config

import dajax
from dajax.config import DepthAnythingConfig
from dajax.errors import DajaxError, HubError, WeightsError
from dajax.hub import HubOptions, hub_options_in, is_hub_id, locate
from dajax.weights.random import random_params

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def connections(monkeypatch):
    """Every attempt of this test to reach anything, which also fails."""
    tried = []
    mine = threading.get_ident()

    def refuse(*args, **options):
        if threading.get_ident() == mine:  # threads that other tests have left behind are not ours
            tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # nothing but `local_files_only` forbids it
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("small", True),
        ("large-metric-outdoor", True),
        ("depth-anything/Depth-Anything-V2-Small-hf", True),
        ("o/n", True),
        ("./small", False),
        ("/o/n", False),
        ("o/n/", False),
        ("o/n/m", False),
        ("../n", False),
        ("o/..", False),
        ("o//n", False),
        ("huge", False),
        ("", False),
        ("o\\n", False),
        ("o/n\n", False),
        ("o/ñ", False),
        ("o/n\0", False),
        ("https://huggingface.co/o/n", False),
        ("o/" + "n" * 97, False),
        ("o/" + "n" * 5000, False),
    ],
)
def test_is_hub_id(name, expected):
    assert is_hub_id(name) is expected


def test_a_path_that_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name")
    os.makedirs("owner/name")
    assert not is_hub_id("owner/name")
    assert not is_hub_id(tmp_path)


def test_an_alias_is_an_alias_even_if_a_folder_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config()
    dajax.save("small", dajax.DepthAnything(config), random_params(config))
    assert is_hub_id("small")
    assert DepthAnythingConfig.from_pretrained("small") == DepthAnythingConfig.small()
    with pytest.raises(HubError, match="depth-anything/Depth-Anything-V2-Small"):
        dajax.load("small", cache_dir=tmp_path / "cache", local_files_only=True)
    for path in ("./small", tmp_path / "small"):
        assert dajax.load(path)[0].config == config


@pytest.mark.parametrize("name", ["small", "v1-base", "someone/something"])
def test_offline(tmp_path, connections, name):
    with pytest.raises(HubError, match=r"config\.json of .* is not in the local cache.*local_files_only") as caught:
        dajax.load(name, cache_dir=tmp_path, local_files_only=True)
    assert isinstance(caught.value, DajaxError)
    assert isinstance(caught.value, OSError)
    assert connections == []


def test_an_alias_needs_no_file_for_its_config(connections):
    assert DepthAnythingConfig.from_pretrained("large-metric-indoor").max_depth == 20
    assert connections == []


@pytest.mark.parametrize("name", ["o/a--b", "o/a..b", "o/name.git"])
def test_names_that_the_hub_does_not_take(tmp_path, name):
    with pytest.raises(HubError, match=r"could not be had|not in the local cache"):
        locate(name, "config.json", cache_dir=tmp_path, local_files_only=True)


def test_neither_a_path_nor_an_id(tmp_path):
    for name in ("huge", str(tmp_path / "nothing"), "a\0b"):
        with pytest.raises(WeightsError, match="neither an alias"):
            dajax.load(name)
    with pytest.raises(WeightsError, match="File name too long"):
        dajax.load("x" * 5000)


def cached(cache, repository, folder):
    """Put the files of a folder into a cache as the Hub's client lays them out: links to blobs."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    snapshot, blobs = root / "snapshots" / COMMIT, root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, blobs / f"blob{i}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob{i}")
    return snapshot


@pytest.mark.parametrize("sharded", [False, True])
def test_loads_from_the_cache(tmp_path, connections, sharded):
    config = tiny_config()
    folder = tmp_path / "folder"
    dajax.save(folder, dajax.DepthAnything(config), random_params(config))
    if sharded:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"x": "model-00001-of-00001.safetensors"}}'
        )
    snapshot = cached(tmp_path / "cache", "someone/tiny", folder)
    options = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    assert dajax.load("someone/tiny", **options)[0].config == config
    assert dajax.load("someone/tiny", revision=COMMIT, **options)[0].config == config
    assert DepthAnythingConfig.from_pretrained("someone/tiny", **options) == config
    assert dajax.load(snapshot)[0].config == config
    with pytest.raises(HubError):
        dajax.load("someone/tiny", revision="other", **options)
    assert connections == []


def test_cached_without_weights(tmp_path):
    config = tiny_config()
    folder = tmp_path / "folder"
    dajax.save(folder, dajax.DepthAnything(config), random_params(config))
    (folder / "model.safetensors").unlink()
    cached(tmp_path / "cache", "someone/tiny", folder)
    with pytest.raises(HubError, match=r"model\.safetensors\b.* of someone/tiny is not in the local cache"):
        dajax.load("someone/tiny", cache_dir=tmp_path / "cache", local_files_only=True)


def test_hub_options_are_those_of_load():
    declared = inspect.signature(dajax.load).parameters
    assert set(HubOptions.__annotations__) < set(declared)
    assert hub_options_in({"revision": "v2", "dtype": "bfloat16", "local_files_only": True}) == {
        "revision": "v2",
        "local_files_only": True,
    }
