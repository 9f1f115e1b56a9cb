"""The encoder of any checkpoint, to train a fresh head on it: bit for bit the one that is in the file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import assert_params, tensors_of, write_file, write_folder, write_torch_file
from refusal import refused
from tiny import tiny_config, tiny_metric_config, tiny_swiglu_config

from dajax import DepthAnythingConfig
from dajax.errors import WeightsError
from dajax.training.train_settings import ModelSettings
from dajax.training.trainer import fresh_params, starting_point
from dajax.weights import load_encoder, random_params
from dajax.weights.load_plan import FoundModel, Tensor, encoder_config
from dajax.weights.mapping import sources, torch_shape
from dajax.weights.shapes import parameter_shapes

BARE = {"huggingface": "backbone.", "huggingface-5": "backbone.", "official": "pretrained."}


def bare(config, table, prefix="", seed=0):
    """The tensors of a DINOv2 encoder that is saved alone."""
    tensors, start = tensors_of(config, table, seed=seed), BARE[table]
    return {prefix + name.removeprefix(start): one for name, one in tensors.items() if name.startswith(start)}


@pytest.mark.parametrize("make", [tiny_config, tiny_swiglu_config])
@pytest.mark.parametrize("prefix", ["", "dinov2.", "module.model."])
@pytest.mark.parametrize("table", BARE)
def test_an_encoder_alone(tmp_path, table, prefix, make):
    config = make()
    tensors = bare(config, table, prefix)
    if prefix:
        tensors["classifier.weight"] = np.ones((2, 3), np.float32)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')  # which says nothing of depth
    write_file(tmp_path / "model.safetensors", tensors)
    for name in (tmp_path, tmp_path / "model.safetensors"):
        found, params = load_encoder(name)
        assert_params(params, {"backbone": random_params(config)["backbone"]})
        fields = replace(config.backbone_config, num_attention_heads=1, out_indices=(1, 2, 3, 4))
        assert found.backbone_config == replace(fields, use_mask_token=found.backbone_config.use_mask_token)
        assert not found.is_metric
    write_torch_file(tmp_path / "encoder.pth", tensors)
    assert_params(load_encoder(tmp_path / "encoder.pth")[1], {"backbone": random_params(config)["backbone"]})


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
@pytest.mark.parametrize("table", BARE)
def test_encoders_of_released_sizes(table, size):
    """They have the taps, neck and head of the released model. Position embeddings may be those of another size."""
    released = getattr(DepthAnythingConfig, size)()
    config = replace(released, backbone_config=replace(released.backbone_config, image_size=224))
    shapes = parameter_shapes(config)
    tensors = {}
    for path, source in sources(table, shapes).items():
        if path.startswith("backbone/"):
            rows, *rest = torch_shape(source, shapes[path])
            shape = (rows // len(source.names), *rest)
            tensors |= {name: Tensor(None, name, np.dtype("float32"), shape) for name in source.names}
    assert encoder_config(Path("encoder.pth"), FoundModel(tensors, table, "", [])) == config


@pytest.mark.parametrize("table", ["huggingface", "official", "flax"])
def test_the_encoder_of_a_whole_model(tmp_path, table):
    config = tiny_metric_config()
    tensors = tensors_of(config, table)
    write_file(tmp_path / "model.safetensors", tensors)
    found, params = load_encoder(tmp_path / "model.safetensors", config=config)
    assert found == config
    assert_params(params, {"backbone": random_params(config)["backbone"]})
    if table == "huggingface":
        folder = write_folder(tmp_path / "folder", config)
        assert load_encoder(folder)[0] == config


def test_a_student_and_a_teacher(tmp_path):
    """What DINOv2's own training saves."""
    config = tiny_config()
    tensors = bare(config, "official", "teacher.backbone.") | bare(config, "official", "student.backbone.", seed=1)
    tensors["teacher.dino_head.last_layer.weight"] = np.ones((2, 2), np.float32)
    path = tmp_path / "training.safetensors"
    write_file(path, tensors)
    message = refused(lambda: load_encoder(path), WeightsError, "has 2 models")
    assert "'teacher.'" in message
    assert "'student.'" in message
    for prefix, seed in (("teacher", 0), ("student", 1)):
        _, params = load_encoder(path, prefix=prefix)
        assert_params(params, {"backbone": random_params(config, seed)["backbone"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"register_tokens": (1, 4, 32)}, "DINOv2 with registers"),
        ({"reg_token": (1, 4, 32)}, "DINOv2 with registers"),
        ({"blocks.0.attn.qkv.lora_A.weight": (4, 32)}, "has adapters"),
        ({"blocks.0.ls1.gamma": None}, r"missing: pretrained.blocks.0.ls1.gamma"),
        ({"head.weight": (10, 32)}, "not in the model: head.weight"),
        ({"cls_token": (1, 1)}, "the shapes of its encoder's tensors .* are not those of DINOv2"),
        ({"cls_token": None}, "has no model of Depth Anything"),
    ],
)
def test_what_is_no_encoder(tmp_path, changes, message):
    tensors = bare(tiny_config(), "official")
    for name, shape in changes.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = np.ones(shape, np.float32)
    write_file(tmp_path / "encoder.safetensors", tensors)
    said = refused(lambda: load_encoder(tmp_path / "encoder.safetensors"), WeightsError, message)
    assert len(said.encode()) < 2000


def test_training_starts_from_an_encoder_alone(tmp_path):
    config = tiny_metric_config()
    path = tmp_path / "dinov2.safetensors"
    write_file(path, bare(config, "huggingface"))
    neck = {
        "depth_estimation_type": "metric", "max_depth": 20, "neck_hidden_sizes": [8, 12, 16, 24],
        "fusion_hidden_size": 16, "head_hidden_size": 8,
    }  # fmt: skip
    found, params = starting_point(ModelSettings(start=str(path), config=neck, encoder_only=True), 3)
    heads = replace(found.backbone_config, num_attention_heads=2)
    assert replace(found, backbone_config=heads) == config
    assert_params(params, {**fresh_params(found, 3), "backbone": random_params(config)["backbone"]})
    refused(
        lambda: starting_point(ModelSettings(start=str(path)), 0), WeightsError, "encoder without neck .*encoder_only"
    )
