"""Checkpoints to Transformers and back."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from flax.traverse_util import flatten_dict
from reference import load_reference, run
from seeded import error, pixels
from tiny import tiny_config, tiny_metric_config, tiny_swiglu_config
from transformers import AutoImageProcessor, DepthAnythingForDepthEstimation
from transformers import DepthAnythingConfig as ReferenceConfig
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

import dajax
from dajax.weights.mapping import sources
from dajax.weights.random import random_params
from dajax.weights.safetensors_io import SafetensorsFile
from dajax.weights.shapes import parameter_shapes

TINY = tiny_config()
CONFIGS = {
    "gelu": TINY,
    "metric": tiny_metric_config(),
    "swiglu": tiny_swiglu_config(),
    "no qkv bias": replace(TINY, backbone_config=replace(TINY.backbone_config, qkv_bias=False)),
    "no mask token": replace(TINY, backbone_config=replace(TINY.backbone_config, use_mask_token=False)),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def reference(config, dtype="float32"):
    """A Transformers model of which no two elements are alike."""
    torch.manual_seed(0)
    model = DepthAnythingForDepthEstimation(ReferenceConfig(**config.to_dict()))
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape))
    return model.to(DTYPES[dtype]).eval()


def assert_same_values(params, model):
    """Every param is the module's own tensor, by the table of its own names."""
    state, flat = model.state_dict(), flatten_dict(params, sep="/")
    found = sources("huggingface-5", flat)
    assert {name for source in found.values() for name in source.names} == state.keys()
    for path, source in found.items():
        expected = torch.cat([state[name] for name in source.names]).float().numpy()
        leaf = np.asarray(flat[path], np.float32)
        np.testing.assert_array_equal(source.transform.to_torch(leaf), expected, err_msg=path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_from_transformers_and_back(tmp_path, kind, dtype):
    model = reference(CONFIGS[kind], dtype)
    model.save_pretrained(tmp_path / "hf")
    ours, params = dajax.load(tmp_path / "hf")
    assert ours.config == CONFIGS[kind]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    assert_same_values(params, model)
    dajax.save(tmp_path / "dajax", ours, params)
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("hf", "dajax"))
    assert before == after


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_shards_of_transformers(tmp_path, kind):
    model = reference(CONFIGS[kind])
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours, params = dajax.load(tmp_path)
    assert ours.config == CONFIGS[kind]
    assert_same_values(params, model)


@pytest.mark.parametrize("kind", CONFIGS)
def test_names_of_the_modules(tmp_path, kind):
    """A state dict, saved as it is: the names of Transformers 5."""
    model = reference(CONFIGS[kind])
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert_same_values(dajax.load(tmp_path / "model.safetensors", config=CONFIGS[kind])[1], model)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_to_transformers(tmp_path, kind, dtype):
    config = CONFIGS[kind]
    params = jax.tree.map(lambda x: x.astype(dtype), random_params(config))
    dajax.save(tmp_path, dajax.DepthAnything(config), params)
    model, info = DepthAnythingForDepthEstimation.from_pretrained(tmp_path, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[problem], problem
    assert model.dtype == DTYPES[dtype]
    assert_same_values(params, model)


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
def test_names_and_shapes_of_the_sizes(size):
    """Without memory for them: what Transformers builds is what the tables say."""
    config = getattr(dajax.DepthAnythingConfig, size)()
    with torch.device("meta"):
        state = DepthAnythingForDepthEstimation(ReferenceConfig(**config.to_dict())).state_dict()
    shapes = parameter_shapes(config)
    assert sum(tensor.numel() for tensor in state.values()) == sum(int(np.prod(shape)) for shape in shapes.values())
    found = sources("huggingface-5", shapes)
    assert {name for source in found.values() for name in source.names} == state.keys()
    for path, source in found.items():
        rows = sum(state[name].shape[0] for name in source.names)
        view = source.transform.to_torch(np.broadcast_to(np.float32(0), shapes[path]))
        assert view.shape == (rows, *state[source.names[0]].shape[1:]), path


def test_bytes_of_mixed_types(tmp_path):
    """bfloat16 beside the others: the safetensors package writes it for PyTorch."""
    random = torch.Generator().manual_seed(0)
    dtypes = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    with jax.enable_x64(True):
        flat, state = flatten_dict(random_params(TINY), sep="/"), {}
        for i, (path, source) in enumerate(sources("huggingface", flat).items()):
            value = torch.tensor(np.ascontiguousarray(source.transform.to_torch(flat[path])))
            state[source.names[0]] = (value + torch.rand(value.shape, generator=random)).to(dtypes[i % 4])
        safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
        (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
        dajax.save(tmp_path / "again", *dajax.load(tmp_path))
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    with SafetensorsFile(tmp_path / "model.safetensors") as file:
        assert {str(info.dtype) for info in file.tensors.values()} == {"bfloat16", "float16", "float32", "float64"}


def test_processor_file(tmp_path):
    dajax.save(tmp_path, dajax.DepthAnything(TINY), random_params(TINY))
    fields = json.loads((tmp_path / "preprocessor_config.json").read_text())
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert isinstance(processor, DPTImageProcessorPil)
    for name in fields.keys() - {"image_processor_type", "size"}:
        found = getattr(processor, name)
        assert (list(found) if isinstance(found, tuple) else found) == fields[name], name
    assert dict(processor.size) == {"height": 518, "width": 518}


@pytest.mark.parametrize("config", [tiny_config(), tiny_swiglu_config()], ids=["gelu", "swiglu"])
def test_transformers_computes_the_same_from_what_is_saved(tmp_path, config):
    """From params that never were a file of Transformers: a table wrong in both directions would still round-trip."""
    model, params = dajax.DepthAnything(config), random_params(config, seed=5)
    dajax.save(tmp_path, model, params)
    theirs = run(load_reference(tmp_path), pixels(56, 84)).predicted_depth.numpy()
    mine = jax.jit(lambda params, x: model.apply({"params": params}, x).predicted_depth)(params, pixels(56, 84))
    assert theirs.std() > 0.1
    assert error(mine, theirs) <= 5e-5, error(mine, theirs)
