import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from refusal import refused
from tiny import tiny_config, tiny_metric_config, tiny_swiglu_config
from torch_parts import archive, mapping, records, storage, tensor

import dajax
from dajax import limits
from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError, LicenceWarning, WeightsError
from dajax.weights.mapping import sources, torch_shape
from dajax.weights.random import random_params
from dajax.weights.safetensors_io import SafetensorsFile, write_safetensors
from dajax.weights.shapes import parameter_shapes
from dajax.weights.torch_write import write_torch
from dajax.weights.tree import flatten, nest

CONFIGS = {"gelu": tiny_config(), "metric": tiny_metric_config(), "swiglu": tiny_swiglu_config()}


def tensors_of(config, table="huggingface", dtype="float32", seed=0):
    """A checkpoint's tensors, made without the code under test but for its table of names."""
    flat = flatten(random_params(config, seed))
    tensors, thirds = {}, {}
    for path, source in sources(table, flat).items():
        joined = source.transform.to_torch(flat[path]).astype(dtype)
        parts = np.split(joined, len(source.names))
        tensors |= dict(zip(source.names, parts, strict=True))
        if source.part.of > 1:
            thirds.setdefault(source.names[0], {})[source.part.number] = joined
    return tensors | {name: np.concatenate([parts[i] for i in sorted(parts)]) for name, parts in thirds.items()}


def write_file(path, tensors, metadata=None):
    tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    infos = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with Path(path).open("wb") as file:
        write_safetensors(file, infos, tensors.__getitem__, metadata=metadata or {"format": "pt"})


def write_folder(folder, config, tensors=None, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
    tensors = tensors_of(config) if tensors is None else tensors
    if shards == 1:
        write_file(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    names = list(tensors)
    for i in range(shards):
        shard = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        write_file(folder / shard, part)
        weight_map |= dict.fromkeys(part, shard)
    write_index(folder, weight_map)
    return folder


def write_index(folder, weight_map):
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def assert_params(params, expected):
    """The same paths, types and bits."""
    found, expected = flatten(params), flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        assert leaf.dtype == expected[path].dtype, path
        assert np.asarray(leaf).tobytes() == np.asarray(expected[path]).tobytes(), path


def assert_refused(name, match, error=WeightsError, **options):
    """Refused in under a second and without memory for what it describes."""
    return refused(lambda: dajax.load(name, **options), error, match)


# --- what loads


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("table", ["huggingface", "huggingface-5", "official"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_values(tmp_path, kind, table, dtype):
    """All names give the same params: those that were written, bit for bit."""
    config = CONFIGS[kind]
    folder = write_folder(tmp_path, config, tensors_of(config, table, dtype))
    model, params = dajax.load(folder)
    assert model.config == config
    assert model.dtype == jnp.float32
    assert type(params) is dict
    assert_params(params, jax.tree.map(lambda x: x.astype(dtype), random_params(config)))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_gate_and_up_by_hand(tmp_path):
    """The first half of weights_in is the gate."""
    config = tiny_swiglu_config()
    tensors = tensors_of(config)
    for i in range(4):
        layer = f"backbone.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            both = tensors.pop(f"{layer}.mlp.weights_in.{kind}")
            tensors[f"{layer}.mlp.gate_proj.{kind}"] = both[:88]
            tensors[f"{layer}.mlp.up_proj.{kind}"] = both[88:]
            tensors[f"{layer}.mlp.down_proj.{kind}"] = tensors.pop(f"{layer}.mlp.weights_out.{kind}")
            for old, new in {
                "attention.query": "q_proj", "attention.key": "k_proj", "attention.value": "v_proj",
                "output.dense": "o_proj",
            }.items():  # fmt: skip
                tensors[f"{layer}.attention.{new}.{kind}"] = tensors.pop(f"{layer}.attention.{old}.{kind}")
    assert_params(dajax.load(write_folder(tmp_path, config, tensors))[1], random_params(config))


def test_gate_and_up_of_different_sizes(tmp_path):
    config = tiny_swiglu_config()
    tensors = tensors_of(config, "huggingface-5")
    layer = "backbone.encoder.layer.0.mlp"
    both = np.concatenate([tensors[f"{layer}.gate_proj.weight"], tensors[f"{layer}.up_proj.weight"]])
    tensors |= {f"{layer}.gate_proj.weight": both[:80], f"{layer}.up_proj.weight": both[80:]}
    assert_refused(
        write_folder(tmp_path, config, tensors),
        r"wrong shape: \S*gate_proj.weight \+ \S*up_proj.weight: the config asks for \[176, 32\], "
        r"the file has \[80, 32\] \+ \[96, 32\]",
    )


def test_parts_of_different_types(tmp_path):
    config = tiny_swiglu_config()
    tensors = tensors_of(config, "huggingface-5", "bfloat16")
    name = "backbone.encoder.layer.0.mlp.gate_proj.weight"
    tensors[name] = tensors[name].astype(np.float16)
    mlp = dajax.load(write_folder(tmp_path, config, tensors))[1]["backbone"]["layer_0"]["mlp"]
    assert mlp["weights_in"]["kernel"].dtype == jnp.float32
    expected = random_params(config)["backbone"]["layer_0"]["mlp"]["weights_in"]["kernel"]
    np.testing.assert_allclose(mlp["weights_in"]["kernel"], expected, rtol=1e-2)


def test_loaded_params_run(tmp_path):
    """A model that was loaded gives what its params give."""
    config = tiny_config()
    model, params = dajax.load(write_folder(tmp_path, config))
    pixels = jnp.ones((1, 70, 70, 3))
    run = jax.jit(lambda params: model.apply({"params": params}, pixels).predicted_depth)
    found, expected = run(params), run(random_params(config))
    np.testing.assert_array_equal(found, expected)
    assert float(found.std()) > 1e-3


def test_arrays_are_independent(tmp_path):
    """No array shares memory with another or with what the reader works in: not even after more was read."""
    config = tiny_config()
    folder = write_folder(tmp_path, config)
    first = dajax.load(folder)[1]
    kept = jax.tree.map(lambda x: np.array(x, copy=True), first)
    write_folder(tmp_path / "other", config, tensors_of(config, seed=1))
    second = dajax.load(tmp_path / "other")[1]
    write_file(folder / "model.safetensors", tensors_of(config, seed=2))
    assert_params(first, kept)
    assert_params(first, random_params(config))
    assert_params(second, random_params(config, seed=1))
    pointers = [leaf.unsafe_buffer_pointer() for tree in (first, second) for leaf in jax.tree.leaves(tree)]
    assert len(set(pointers)) == len(pointers)


def test_unused_tensors_are_kept(tmp_path):
    params = dajax.load(write_folder(tmp_path, tiny_config()))[1]
    assert "mask_token" in params["backbone"]["embeddings"]
    assert set(params["neck"]["fusion_0"]["residual_layer1"]) == {"convolution1", "convolution2"}


def test_style(tmp_path):
    folder = write_folder(tmp_path, tiny_config())
    assert dajax.load(folder)[0].config.backbone_config.interpolate_offset == 0
    assert dajax.load(folder, style="official")[0].config.backbone_config.interpolate_offset == 0.1
    assert_refused(folder, "style must be one of", ConfigError, style="opencv")


# --- types


def test_param_dtype(tmp_path):
    config = tiny_config()
    folder = write_folder(tmp_path, config, tensors_of(config))
    model, params = dajax.load(folder, dtype="bfloat16", param_dtype="float32")
    assert model.dtype == jnp.bfloat16
    assert_params(params, random_params(config))

    def matrices_in_half(path):
        return jnp.float16 if path.endswith("kernel") else jnp.float32

    model, params = dajax.load(folder, param_dtype=matrices_in_half)
    assert model.dtype == jnp.float32
    by_path = flatten(params)
    assert {leaf.dtype for path, leaf in by_path.items() if path.endswith("kernel")} == {jnp.float16.dtype}
    assert {leaf.dtype for path, leaf in by_path.items() if not path.endswith("kernel")} == {jnp.float32.dtype}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", jnp.bfloat16, np.float16, np.dtype("float32")])
@pytest.mark.parametrize("source", ["float16", "bfloat16", "float32", "float64"])
def test_casts(tmp_path, source, dtype):
    config = tiny_config()
    tensors = tensors_of(config, dtype=source)
    model, params = dajax.load(write_folder(tmp_path, config, tensors), dtype=dtype)
    assert model.dtype == jnp.dtype(dtype)
    assert_params(params, jax.tree.map(lambda x: x.astype(source).astype(dtype), random_params(config)))


def test_float64_file(tmp_path):
    """jax without x64 has no float64: float32 it is, and float64 where x64 is on."""
    config = tiny_config()
    exact = jax.tree.map(lambda x: x.astype(np.float64) + 1e-9, random_params(config))
    flat = flatten(exact)
    tensors = {s.names[0]: s.transform.to_torch(flat[path]) for path, s in sources("huggingface", flat).items()}
    folder = write_folder(tmp_path, config, tensors)
    with pytest.warns(UserWarning, match="float64 tensors, which become float32"):
        assert_params(dajax.load(folder)[1], jax.tree.map(np.float32, exact))
    assert_params(dajax.load(folder, dtype="float32")[1], jax.tree.map(np.float32, exact))
    assert_refused(folder, "float64 needs", ConfigError, dtype="float64")
    with enable_x64():
        model, params = dajax.load(folder)
        assert_params(params, exact)
        assert_params(dajax.load(folder, dtype="float32")[1], jax.tree.map(np.float32, exact))
        assert_params(dajax.load(folder, dtype="float64")[1], exact)
        # and back: every bit of float64
        dajax.save(tmp_path / "again", model, params)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def enable_x64():
    """The context manager, which holds for one thread; older versions of jax keep it elsewhere."""
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


@pytest.mark.parametrize(
    "dtype",
    ["int8", "float8_e4m3fn", "float128", ">f4", "f4,f4", "f4,(", "half-precision", "", 3, 1.5, [], {}, bool, int],
    ids=str,
)
def test_bad_dtype(dtype):
    with pytest.raises(ConfigError, match="dtype must be one of float16, bfloat16, float32, float64"):
        dajax.load("/nowhere", dtype=dtype)


def test_bad_config_argument(tmp_path):
    assert_refused(tmp_path, "config must be a DepthAnythingConfig, got dict", ConfigError, config={"hidden_size": 3})


# --- placement


def leaves_with_devices(params):
    return {device for leaf in jax.tree.leaves(params) for device in leaf.devices()}


def test_placement(tmp_path):
    config = tiny_config()
    folder = write_folder(tmp_path, config)
    first, second = jax.devices()
    assert leaves_with_devices(dajax.load(folder)[1]) == {first}
    assert leaves_with_devices(dajax.load(folder, sharding=second)[1]) == {second}
    params = dajax.load(folder, sharding=SingleDeviceSharding(second))[1]
    assert leaves_with_devices(params) == {second}
    assert_params(params, random_params(config))


def test_default_device_of_the_caller(tmp_path):
    """The context manager holds for the calling thread only; the readers are others."""
    folder = write_folder(tmp_path, tiny_config())
    with jax.default_device(jax.devices()[1]):
        params = dajax.load(folder)[1]
    assert leaves_with_devices(params) == {jax.devices()[1]}
    assert not any(leaf.committed for leaf in jax.tree.leaves(params))


def test_one_sharding_for_all(tmp_path):
    config = tiny_config()
    mesh = Mesh(np.array(jax.devices()), ("data",))
    replicated = NamedSharding(mesh, PartitionSpec())
    params = dajax.load(write_folder(tmp_path, config), sharding=replicated)[1]
    assert all(leaf.sharding == replicated and leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
    assert_params(params, random_params(config))


def test_a_sharding_for_each(tmp_path):
    config = tiny_config()
    mesh = Mesh(np.array(jax.devices()), ("model",))
    shapes = parameter_shapes(config)
    last, whole = (lambda rank: PartitionSpec(*[None] * (rank - 1), "model")), PartitionSpec()
    specs = {
        path: NamedSharding(mesh, last(len(shape)) if shape[-1] % 2 == 0 else whole) for path, shape in shapes.items()
    }
    folder = write_folder(tmp_path, config)
    params = dajax.load(folder, sharding=nest(specs))[1]
    assert all(leaf.sharding == specs[path] for path, leaf in flatten(params).items())
    assert_params(params, random_params(config))

    missing = nest({path: spec for path, spec in specs.items() if "head/conv1" not in path})
    message = assert_refused(folder, "sharding does not fit the params", sharding=missing)
    assert all(f"missing: head/conv1/{name}" in message for name in ("kernel", "bias"))


@pytest.mark.parametrize("sharding", ["cpu", 3, 1.5])
def test_bad_sharding(tmp_path, sharding):
    folder = write_folder(tmp_path, tiny_config())
    assert_refused(folder, "sharding does not fit backbone/", ConfigError, sharding=sharding)


def test_sharding_that_does_not_divide(tmp_path):
    """The parameter is named."""
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("model",)), PartitionSpec("model"))
    folder = write_folder(tmp_path, tiny_config())
    assert_refused(folder, r"sharding does not fit \S+ \[1, 1, 32\]", ConfigError, sharding=sharding)


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
    assert_refused(folder, "model-00002-of-00002.safetensors is a pipe, socket or device")
    shard.unlink()
    shard.mkdir()
    assert_refused(folder, "model-00002-of-00002.safetensors is a folder")


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


# --- what does not fit


def test_everything_that_is_wrong_is_in_one_error(tmp_path):
    config = tiny_config()
    tensors = tensors_of(config)
    del tensors["head.conv3.bias"], tensors["backbone.encoder.layer.2.norm1.weight"]
    tensors["extra.weight"] = np.zeros((2, 3), np.float32)
    tensors["../../x\n\x1b[2J"] = np.zeros(1, np.float32)
    tensors["head.conv1.weight"] = tensors["head.conv1.weight"].transpose(1, 0, 2, 3)
    tensors["neck.convs.0.weight"] = tensors["neck.convs.0.weight"][:-1]
    message = assert_refused(write_folder(tmp_path, config, tensors), "does not fit its config")
    for line in (
        f"{tmp_path / 'model.safetensors'}",
        "missing: head.conv3.bias",
        "missing: backbone.encoder.layer.2.norm1.weight",
        "not in the model: extra.weight [2, 3]",
        "not in the model: ../../x\\n\\x1b[2J [1]",
        "wrong shape: head.conv1.weight: the config asks for [8, 16, 3, 3], the file has [16, 8, 3, 3]",
        "wrong shape: neck.convs.0.weight: the config asks for [16, 8, 3, 3], the file has [15, 8, 3, 3]",
        "Pass config=",
    ):
        assert line in message
    assert "\x1b" not in message


def test_every_problem_of_a_model_is_listed_and_those_of_an_attack_are_counted(tmp_path, monkeypatch):
    assert len(parameter_shapes(DepthAnythingConfig.giant())) * 2 < limits.MAX_LISTED_PROBLEMS
    monkeypatch.setattr(limits, "MAX_LISTED_PROBLEMS", 50)
    message = assert_refused(write_folder(tmp_path, tiny_config(), {"a": np.zeros(1, np.float32)}), "missing")
    count = len(tensors_of(tiny_config()))
    assert f"and {count + 1 - 50} more" in message


@pytest.mark.parametrize("cast", [np.squeeze, lambda x: x[None], lambda x: x.reshape(-1), lambda x: x[..., None]])
def test_other_ranks(tmp_path, cast):
    config = tiny_config()
    tensors = tensors_of(config)
    name = "neck.reassemble_stage.layers.0.projection.weight"
    tensors[name] = cast(tensors[name])
    assert_refused(write_folder(tmp_path, config, tensors), f"wrong shape: {name}")


@pytest.mark.parametrize(("weights", "config"), [("small", "large"), ("large", "small"), ("base", "giant")])
def test_weights_of_another_size(tmp_path, weights, config):
    """Said from the header alone: the file is as long as it should be, but was never written."""
    config, real = (getattr(DepthAnythingConfig, size)() for size in (config, weights))
    tmp_path.joinpath("config.json").write_text(json.dumps(config.to_dict()))
    sparse(tmp_path / "model.safetensors", real)
    layers = config.backbone_config.num_hidden_layers
    message = assert_refused(
        tmp_path, f"does not fit its config .{layers} layers of width {config.backbone_config.hidden_size}"
    )
    assert "Is it the config of another size" in message


def sparse(path, config, table="huggingface"):
    """A checkpoint of a released size whose values are all zero and take no room on the disk."""
    shapes = parameter_shapes(config)
    header, position = {}, 0
    for flax, source in sources(table, shapes).items():
        if source.names[0] in header:  # another part of it
            continue
        shape = torch_shape(source, shapes[flax])
        stop = position + 4 * int(np.prod(shape))
        header[source.names[0]] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("backbone.rope_embed.periods", "DINOv3"),
        ("backbone.embeddings.register_tokens", "DINOv2 with registers"),
        ("neck.prompt_depth_layer.weight", "Prompt Depth Anything"),
        ("metric_head.conv.weight", "ZoeDepth"),
        ("head.motion_modules.0.weight", "Video Depth Anything"),
        ("neck.reassemble_stage.readout_projects.0.0.weight", "DPT"),
        ("model.backbone.pretrained.cls_token", "Depth Anything 3"),
        ("depth_head.scratch.refinenet1.resConfUnit_depth.0.weight", "Prompt Depth Anything"),
        ("conditional_log_binomial.mlp.0.weight", "ZoeDepth"),
        ("seed_bin_regressor._net.0.weight", "ZoeDepth"),
        ("pretrained.act_postprocess1.0.project.0.weight", r"DPT .MiDaS."),
    ],
)
def test_other_families(tmp_path, name, family):
    tensors = tensors_of(tiny_config()) | {name: np.zeros(3, np.float32)}
    assert_refused(write_folder(tmp_path, tiny_config(), tensors), rf"model\.safetensors is {family}.*{name}")


def test_dinov3_is_not_dinov2_with_registers(tmp_path):
    """It has register tokens too."""
    tensors = {
        "embeddings.register_tokens": np.zeros((1, 4, 32), np.float32),
        "embeddings.patch_embeddings.weight": np.zeros((32, 3, 16, 16), np.float32),
    }
    write_file(tmp_path / "model.safetensors", tensors)
    assert_refused(tmp_path / "model.safetensors", r"model\.safetensors is DINOv3", config=tiny_config())


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


def test_safetensors_is_preferred_as_by_transformers(tmp_path):
    config = tiny_config()
    folder = write_folder(tmp_path, config)
    write_torch_file(folder / "pytorch_model.bin", tensors_of(config, seed=1))
    assert_params(dajax.load(folder)[1], random_params(config))
    assert_params(dajax.load(folder / "pytorch_model.bin")[1], random_params(config, 1))


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


def write_torch_file(path, tensors):
    infos = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with Path(path).open("wb") as file:
        write_torch(file, infos, tensors.__getitem__)


def test_errors_have_the_names_of_the_file(tmp_path):
    config = tiny_config()
    tensors = {f"module.{name}": tensor for name, tensor in tensors_of(config, "official").items()}
    qkv = "module.pretrained.blocks.1.attn.qkv.weight"
    tensors |= {qkv: np.zeros((64, 32), np.float32), "module.extra": np.zeros(3, np.float32)}
    folder = write_folder(tmp_path / "shape", config, tensors)
    message = assert_refused(folder, rf"wrong shape: {qkv}: the config asks for \[96, 32\], the file has \[64, 32\]")
    assert message.count(qkv) == 1  # once for its three parts
    assert "not in the model: module.extra [3]" in message
    tensors = {f"module.{name}": tensor for name, tensor in tensors_of(config, "official").items()}
    tensors["module.depth_head.projects.0.bias"][3] = np.nan
    assert_refused(
        write_folder(tmp_path / "nan", config, tensors), r"tensor module\.depth_head\.projects\.0\.bias has NaN"
    )


# --- NaN and infinity


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_not_finite(tmp_path, dtype, value):
    config = tiny_config()
    tensors = tensors_of(config, dtype=dtype)
    name = "backbone.encoder.layer.2.mlp.fc1.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][5, 7] = value
    folder = write_folder(tmp_path, config, tensors)
    message = assert_refused(folder, rf"model\.safetensors: tensor {name} has NaN or infinite values")
    assert "check_finite=False" in message
    params = dajax.load(folder, dtype="float32", check_finite=False)[1]
    kernel = np.asarray(params["backbone"]["layer_2"]["mlp"]["fc1"]["kernel"], np.float32)
    np.testing.assert_array_equal(kernel[7, 5], np.float32(value))
    assert np.isfinite(kernel).sum() == kernel.size - 1


def test_infinite_after_the_cast(tmp_path):
    config = tiny_config()
    tensors = tensors_of(config)
    tensors["head.conv3.bias"] = np.float32([1e6])
    folder = write_folder(tmp_path, config, tensors)
    assert_refused(folder, r"tensor head\.conv3\.bias has NaN or infinite values as float16", dtype="float16")
    assert np.isinf(dajax.load(folder, dtype="float16", check_finite=False)[1]["head"]["conv3"]["bias"]).all()
    dajax.load(folder, dtype="bfloat16")


def test_huge_values_are_finite(tmp_path):
    """A sum may overflow where no value does."""
    config = tiny_config()
    tensors = tensors_of(config)
    tensors["head.conv1.weight"] = np.full((8, 16, 3, 3), 3e38, np.float32)
    kernel = dajax.load(write_folder(tmp_path, config, tensors))[1]["head"]["conv1"]["kernel"]
    assert (kernel == np.float32(3e38)).all()


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
    assert_refused(path, r"without a config\.json and has no released size: pass config")
    model, params = dajax.load(path, config=config)
    assert model.config == config
    assert_params(params, random_params(config))


def test_config_argument_replaces_the_file(tmp_path):
    metric = tiny_metric_config()
    folder = write_folder(tmp_path, tiny_config())
    assert dajax.load(folder, config=metric)[0].config == metric
    (folder / "config.json").unlink()
    assert dajax.load(folder, config=metric)[0].config == metric
    assert_refused(folder, "no file .*config.json")


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
@pytest.mark.parametrize("table", ["huggingface", "official"])
def test_size_is_guessed_aloud(tmp_path, size, table, monkeypatch):
    config = getattr(DepthAnythingConfig, size)()
    sparse(tmp_path / "mine.safetensors", config, table)
    monkeypatch.setattr("dajax.weights.load._read_all", lambda *args: {})
    with pytest.warns(UserWarning, match=f"taken for Depth Anything V2 {size}, relative") as caught:
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
    monkeypatch.setattr("dajax.weights.load._read_all", lambda *args: {})
    assert dajax.load(tmp_path / f"{stem}.safetensors")[0].config == config
    assert dajax.load(tmp_path)[0].config == config


def test_a_config_is_above_the_file_name(tmp_path, monkeypatch):
    monkeypatch.setattr("dajax.weights.load._read_all", lambda *args: {})
    path = tmp_path / "depth_anything_v2_metric_hypersim_vits.safetensors"
    sparse(path, DepthAnythingConfig.small(), "official")
    outdoor = DepthAnythingConfig.metric_outdoor("small")
    # The tensors of all kinds are the same, so what contradicts can only be said.
    says = r"by its name 'small-metric-indoor', metric with max_depth 20 .* its config says metric with max_depth 80"
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
    monkeypatch.setattr("dajax.weights.load._read_all", lambda *args: {})
    sparse(tmp_path / "depth_anything_v2_vits.safetensors", DepthAnythingConfig.small(), "official")
    with pytest.warns(UserWarning, match=r"'small', relative with taps after layers 3, 6, 9, 12, .* 9, 10, 11, 12"):
        dajax.load(tmp_path / "depth_anything_v2_vits.safetensors", config=DepthAnythingConfig.v1("small"))


def test_config_of_the_authors_code_is_no_config(tmp_path, monkeypatch):
    """All fields of ours have defaults, so that any JSON object would pass for V1 Small's."""
    monkeypatch.setattr("dajax.weights.load._read_all", lambda *args: {})
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


def test_official_file_without_a_mask_token(tmp_path, monkeypatch):
    """The network does not use it, and some training code deletes it."""
    monkeypatch.setattr("dajax.weights.load._read_all", lambda *args: {})
    config = DepthAnythingConfig.small()
    config = replace(config, backbone_config=replace(config.backbone_config, use_mask_token=False))
    for name in ("depth_anything_v2_vits.safetensors", "mine.safetensors"):
        sparse(tmp_path / name, config, "official")
    assert dajax.load(tmp_path / "depth_anything_v2_vits.safetensors")[0].config == config
    with pytest.warns(UserWarning, match="taken for"):
        assert dajax.load(tmp_path / "mine.safetensors")[0].config == config


def test_several_lone_files_in_a_folder(tmp_path):
    write_file(tmp_path / "a.safetensors", tensors_of(tiny_config()))
    (tmp_path / "b.pth").write_bytes(b"")
    assert_refused(tmp_path, r"several files of weights .a\.safetensors, b\.pth.: name the one that is meant")


def test_both_formats_in_one_folder(tmp_path):
    folder = write_folder(tmp_path, tiny_config())
    write_file(folder / "params.safetensors", tensors_of(tiny_config(), "flax"), {"format": "flax"})
    assert_refused(folder, "model.safetensors and params.safetensors: name the one that is meant")
    assert_params(dajax.load(folder / "params.safetensors")[1], random_params(tiny_config()))


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
    monkeypatch.setattr("dajax.weights.load._said", set())
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
    monkeypatch.setattr("dajax.weights.load._said", set())
    monkeypatch.setattr("dajax.weights.load._read_all", lambda *args: {})
    (tmp_path / "files").mkdir()
    sparse(tmp_path / "files" / filename, DepthAnythingConfig.small(), "official")
    (tmp_path / "files" / "config.json").write_text('{"encoder": "vits", "features": 64}')
    hub.push(repository, tmp_path / "files")
    with pytest.warns(LicenceWarning) if alias != "small" else nullcontext():
        model, _ = dajax.load(repository)
    assert model.config == DepthAnythingConfig.from_pretrained(alias)
    assert not hub.asked(file="config.json")


# --- files that are none


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
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop", "dangling"])
def test_not_a_file(tmp_path, filename, kind):
    folder = tmp_path / "folder"
    write_folder(folder, tiny_config())
    if filename != "config.json":
        (folder / "model.safetensors").unlink()
    else:
        (folder / filename).unlink()
    path = folder / filename
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to(tmp_path / "nothing")
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


# --- memory


MEASURE = """
import re, sys
import jax, numpy as np
import dajax

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

jax.device_put(np.zeros(3)).block_until_ready()
before = peak()
params = jax.block_until_ready(dajax.load(sys.argv[1], **eval(sys.argv[2]))[1])
print((peak() - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


def memory_ratio(folder, **options):
    command = [sys.executable, "-c", MEASURE, str(folder), repr(options)]
    root = Path(dajax.__file__).parent.parent
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout)
    print(f"peak memory is {ratio:.2f} times that of the params")
    return ratio


def test_memory(tmp_path):
    """200 MB of a shape in which one tensor is small beside all."""
    backbone = replace(tiny_config().backbone_config, hidden_size=512, num_hidden_layers=16)
    config = tiny_config(backbone_config=backbone, reassemble_hidden_size=512)
    dajax.save(tmp_path, dajax.DepthAnything(config), random_params(config))
    assert memory_ratio(tmp_path) < 1.3


@pytest.mark.slow
def test_memory_of_large(tmp_path):
    config = DepthAnythingConfig.large()
    dajax.save(tmp_path, dajax.DepthAnything(config), random_params(config))
    assert memory_ratio(tmp_path) < 1.3
    assert memory_ratio(tmp_path, dtype="bfloat16") < 1.3
