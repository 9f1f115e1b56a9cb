"""Which files `dajax.load` takes: shards, PyTorch's, several in a folder, and what is none."""

import json
import os

import jax
import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import (
    assert_params,
    assert_refused,
    tensors_of,
    write_file,
    write_folder,
    write_index,
    write_torch_file,
)
from refusal import put_no_file
from tiny import tiny_config, tiny_swiglu_config
from torch_parts import archive, mapping, records, storage, tensor

import dajax
from dajax.errors import ConfigError, WeightsError
from dajax.weights.random import random_params
from dajax.weights.safetensors_io import SafetensorsFile

# --- shards


@pytest.mark.parametrize("shards", [2, 3])
def test_shards(tmp_path, shards):
    config = tiny_config()
    folder = write_folder(tmp_path, config, shards=shards)
    assert_params(dajax.load(folder)[1], random_params(config))
    assert_params(dajax.load(folder / "model.safetensors.index.json")[1], random_params(config))


def test_missing_shards_are_all_listed(tmp_path):
    folder = write_folder(tmp_path, tiny_config(), shards=4)
    for i in (2, 4):
        (folder / f"model-{i:05}-of-00004.safetensors").unlink()
    message = assert_refused(folder, "names shards that cannot be used")
    assert "missing: model-00002-of-00004.safetensors" in message
    assert "missing: model-00004-of-00004.safetensors" in message


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors", "sub/../../outside.safetensors", "..", "/etc/passwd", "{tmp}/outside.safetensors",
        "C:\\outside.safetensors", "C:outside.safetensors", "\\\\host\\share\\outside.safetensors",
        "//host/share/outside.safetensors", "..\\outside.safetensors", "sub/inside.safetensors", "", ".", "model.bin",
        ".hidden.safetensors", "nul\0.safetensors", "x" * 5000 + ".safetensors", "new\nline.safetensors", 3, None,
        ["model.safetensors"], {"a": 1}, "~/outside.safetensors", "file:///outside.safetensors",
    ],
    ids=lambda name: str(name)[:20],
)  # fmt: skip
def test_index_that_leaves_the_folder(tmp_path, name):
    config = tiny_config()
    folder = write_folder(tmp_path / "folder", config, shards=2)
    write_file(tmp_path / "outside.safetensors", tensors_of(config))
    name = name.replace("{tmp}", str(tmp_path)) if isinstance(name, str) else name
    write_index(folder, {"head.conv1.weight": name})
    message = assert_refused(folder, "a shard must be a .safetensors file in the same folder")
    assert "model.safetensors.index.json" in message
    assert len(message) < 1000


def test_links_that_leave_the_folder(tmp_path):
    config = tiny_config()
    folder = write_folder(tmp_path / "folder", config, shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    outside = tmp_path / "blobs" / "outside.safetensors"
    outside.parent.mkdir()
    shard.rename(outside)
    shard.symlink_to(outside)
    assert_refused(folder, r"leaves the folder: model-00002-of-00002\.safetensors links to \S+outside\.safetensors")
    (folder / "sub").mkdir()
    inside = folder / "inside.safetensors"
    outside.rename(inside)
    shard.unlink()
    shard.symlink_to("inside.safetensors")
    assert_params(dajax.load(folder)[1], random_params(config))
    shard.unlink()
    shard.symlink_to(shard)
    assert_refused(folder, "missing: model-00002-of-00002.safetensors")


def test_pipe_and_device_as_shards(tmp_path):
    folder = write_folder(tmp_path, tiny_config(), shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.unlink()
    os.mkfifo(shard)
    assert_refused(folder, "model-00002-of-00002.safetensors cannot be read: it is a pipe, socket or device")
    shard.unlink()
    shard.mkdir()
    assert_refused(folder, "model-00002-of-00002.safetensors cannot be read: it is a folder")


def test_one_tensor_in_two_shards(tmp_path):
    config = tiny_config()
    folder = write_folder(tmp_path, config, shards=2)
    tensors = tensors_of(config)
    with SafetensorsFile(folder / "model-00002-of-00002.safetensors") as file:
        part = {name: file.read(name) for name in file.tensors}
    name = next(name for name in tensors if name not in part)
    write_file(folder / "model-00002-of-00002.safetensors", part | {name: tensors[name]})
    assert_refused(folder, f"{name} is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    "index", [b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map": 3}']
)
def test_bad_index(tmp_path, index):
    folder = write_folder(tmp_path, tiny_config(), shards=2)
    (folder / "model.safetensors.index.json").write_bytes(index)
    assert_refused(folder, r"model\.safetensors\.index\.json", (WeightsError, ConfigError))


# --- the names that training scripts leave


WRAPPINGS = {
    "DistributedDataParallel": lambda name: f"module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "chunked blocks": lambda name: name.replace("pretrained.blocks.", "pretrained.blocks.0."),
    "Distill-Any-Depth": lambda name: name.replace("pretrained.", "backbone.").replace(".blocks.", ".blocks.0."),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_names(tmp_path, wrapping):
    config = tiny_config()
    tensors = {WRAPPINGS[wrapping](name): tensor for name, tensor in tensors_of(config, "official").items()}
    assert_params(dajax.load(write_folder(tmp_path, config, tensors))[1], random_params(config))


@pytest.mark.parametrize("name", ["mine.pth", "mine.pt", "mine.ckpt", "pytorch_model.bin", "misnamed.safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pytorch_files(tmp_path, name, dtype):
    """The content decides; as a file, and as the only one of a folder. (Files of torch.save: tests/parity.)"""
    config = tiny_swiglu_config()
    folder = write_folder(tmp_path, config, {})
    (folder / "model.safetensors").unlink()
    write_torch_file(folder / name, tensors_of(config, "official", dtype))
    expected = jax.tree.map(lambda x: x.astype(dtype), random_params(config))
    for place in (folder / name, folder):
        model, params = dajax.load(place)
        assert model.config == config
        assert_params(params, expected)


def test_shards_of_pytorch(tmp_path):
    config = tiny_config()
    tensors = tensors_of(config)
    folder = write_folder(tmp_path, config, {})
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(3):
        part = {name: tensors[name] for name in list(tensors)[i::3]}
        write_torch_file(folder / f"pytorch_model-{i}.bin", part)
        weight_map |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_params(dajax.load(folder)[1], random_params(config))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "model.safetensors"}}))
    assert_refused(folder, "a shard must be a .bin file")


# --- several files


def test_safetensors_is_preferred_as_by_transformers(tmp_path):
    config = tiny_config()
    folder = write_folder(tmp_path, config)
    write_torch_file(folder / "pytorch_model.bin", tensors_of(config, seed=1))
    assert_params(dajax.load(folder)[1], random_params(config))
    assert_params(dajax.load(folder / "pytorch_model.bin")[1], random_params(config, 1))


def test_several_lone_files_in_a_folder(tmp_path):
    write_file(tmp_path / "a.safetensors", tensors_of(tiny_config()))
    (tmp_path / "b.pth").write_bytes(b"")
    assert_refused(tmp_path, r"several files of weights .a\.safetensors, b\.pth.: name the one that is meant")


def test_both_formats_in_one_folder(tmp_path):
    folder = write_folder(tmp_path, tiny_config())
    write_file(folder / "params.safetensors", tensors_of(tiny_config(), "flax"), {"format": "flax"})
    assert_refused(folder, "model.safetensors and params.safetensors: name the one that is meant")
    assert_params(dajax.load(folder / "params.safetensors")[1], random_params(tiny_config()))


# --- files that are none


def test_damage_outside_of_the_model_is_noticed(tmp_path):
    """A file that is not what was saved is not trusted for the rest."""
    config = tiny_config()
    tensors = tensors_of(config)
    write_torch_file(tmp_path / "mine.pth", tensors)
    content = bytearray((tmp_path / "mine.pth").read_bytes())
    name = "neck.fusion_stage.layers.0.residual_layer1.convolution2.weight"
    content[content.index(tensors[name].tobytes()) + 100] ^= 1
    (tmp_path / "mine.pth").write_bytes(content)
    assert_refused(tmp_path / "mine.pth", rf"checksum.*{name}", config=config)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_keys_that_stand_twice(tmp_path, name):
    """Readers differ on which of the two counts."""
    folder = write_folder(tmp_path, tiny_config(), shards=2)
    text = (folder / name).read_text()
    (folder / name).write_text(text[: text.rindex("}")] + ', "model_type": "a", "model_type": "b"}')
    assert_refused(folder, rf"{name}.*stands twice", ConfigError)


def test_tensors_that_repeat_what_is_stored(tmp_path):
    """A few bytes can be expanded to any number of tensors, each of them within bounds."""
    expanded = tensor(storage(count=1), shape=(1024, 4096), strides=(0, 0))
    body = mapping({f"t{i}": expanded for i in range(40)})
    path = tmp_path / "bomb.pth"
    path.write_bytes(archive(records(body, {"0": bytes(4)})))
    assert_refused(path, "repeat .* stored bytes until they are 671,088,640", config=tiny_config())


@pytest.mark.parametrize("name", ["", None, 3, b"small", ["small"]])
def test_names_that_are_none(name, monkeypatch, tmp_path):
    """An unset variable is not the current folder."""
    write_folder(tmp_path, tiny_config())
    monkeypatch.chdir(tmp_path)
    assert_refused(name, "name of a checkpoint must be")


@pytest.mark.parametrize("kind", ["empty", "only config"])
def test_folder_without_weights(tmp_path, kind):
    folder = write_folder(tmp_path, tiny_config())
    (folder / "model.safetensors").unlink()
    if kind == "empty":
        (folder / "config.json").unlink()
    assert_refused(folder, "holds no weights: expected one of model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "0 bytes"),
        (b"PK\x03\x04\x00\x00\x08\x08" + bytes(100), "is cut off, or something was appended"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M" + bytes(100), "format of PyTorch before 1.6"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML or XML page"),
    ],
    ids=["empty", "zip", "legacy", "lfs", "html"],
)
def test_files_that_are_not_what_they_are_called(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    message = assert_refused(tmp_path / name, match, config=tiny_config())
    assert name in message


@pytest.mark.parametrize(
    "filename", ["model.safetensors", "model.safetensors.index.json", "params.safetensors", "config.json"]
)
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "endless device", "loop", "dangling"])
def test_not_a_file(tmp_path, filename, kind):
    folder = tmp_path / "folder"
    write_folder(folder, tiny_config())
    if filename != "config.json":
        (folder / "model.safetensors").unlink()
    else:
        (folder / filename).unlink()
    put_no_file(folder / filename, kind)
    assert_refused(folder, filename.replace(".", r"\."))


def test_links_to_files_are_fine(tmp_path):
    config = tiny_config()
    write_folder(tmp_path / "real", config)
    (tmp_path / "links").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "links" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "folder").symlink_to(tmp_path / "links")
    assert_params(dajax.load(tmp_path / "folder")[1], random_params(config))


def test_read_by_others(tmp_path):
    """The files of this test are what the safetensors package takes for such."""
    tensors = tensors_of(tiny_config())
    write_file(tmp_path / "model.safetensors", tensors)
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert all((found[name] == tensors[name]).all() for name in tensors)


def test_shards_without_their_index(tmp_path):
    write_folder(tmp_path, tiny_config(), shards=3)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_refused(tmp_path, r"3 shards without their index: model\.safetensors\.index\.json is missing")


def test_the_only_shard_needs_no_index(tmp_path):
    folder = write_folder(tmp_path, tiny_config())
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert_params(dajax.load(folder)[1], random_params(tiny_config()))


def test_a_counter_in_two_shards(tmp_path):
    """Tensors that are no params are compared as well."""
    from safetensors.numpy import save_file

    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors_of(tiny_config()).items()}
    names = list(tensors)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = {name: tensors[name] for name in part} | {"count": np.arange(number)}
        save_file(shard, tmp_path / f"model-0000{number}-of-00002.safetensors")
    weight_map = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    write_index(tmp_path, weight_map)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config().to_dict()))
    assert_refused(tmp_path, "count is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors")


@pytest.mark.parametrize("shards", [1, 2])
def test_a_folder_without_its_config(tmp_path, shards):
    write_folder(tmp_path, None, tensors_of(tiny_config()), shards=shards)
    assert_refused(tmp_path, r"has no config\.json, which says what model\.safetensors.* is: copy it, too, or name")
