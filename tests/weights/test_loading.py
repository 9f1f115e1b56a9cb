"""`dajax.load`: values, types, devices, memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import assert_params, assert_refused, tensors_of, write_file, write_folder
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from tiny import tiny_config, tiny_metric_config, tiny_swiglu_config

import dajax
from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError
from dajax.weights.mapping import sources
from dajax.weights.random import random_params
from dajax.weights.shapes import parameter_shapes

CONFIGS = {"gelu": tiny_config(), "metric": tiny_metric_config(), "swiglu": tiny_swiglu_config()}


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
    by_path = flatten_dict(params, sep="/")
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
    flat = flatten_dict(exact, sep="/")
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
    params = dajax.load(folder, sharding=unflatten_dict(specs, sep="/"))[1]
    assert all(leaf.sharding == specs[path] for path, leaf in flatten_dict(params, sep="/").items())
    assert_params(params, random_params(config))

    missing = unflatten_dict({path: spec for path, spec in specs.items() if "head/conv1" not in path}, sep="/")
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
