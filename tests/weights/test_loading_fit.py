"""Checkpoints that do not fit their config, or are another family's: one error with all of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from checkpoint_files import (
    assert_params,
    assert_refused,
    sparse,
    tensors_of,
    write_file,
    write_folder,
)
from tiny import tiny_config

import dajax
from dajax.config import DepthAnythingConfig
from dajax.weights.random import random_params


def test_everything_that_is_wrong_is_in_one_error(tmp_path):
    config = tiny_config()
    tensors = tensors_of(config)
    del tensors["head.conv3.bias"], tensors["backbone.encoder.layer.2.norm1.weight"]
    tensors["head.extra.weight"] = np.zeros((2, 3), np.float32)
    tensors["head.../../x\n\x1b[2J"] = np.zeros(1, np.float32)
    tensors["head.conv1.weight"] = tensors["head.conv1.weight"].transpose(1, 0, 2, 3)
    tensors["neck.convs.0.weight"] = tensors["neck.convs.0.weight"][:-1]
    message = assert_refused(write_folder(tmp_path, config, tensors), "does not fit its config")
    for line in (
        f"{tmp_path / 'model.safetensors'}",
        "missing: head.conv3.bias",
        "missing: backbone.encoder.layer.2.norm1.weight",
        "not in the model: head.extra.weight [2, 3]",
        "not in the model: head.../../x\\n\\x1b[2J [1]",
        "wrong shape: head.conv1.weight: the config asks for [8, 16, 3, 3], the file has [16, 8, 3, 3]",
        "wrong shape: neck.convs.0.weight: the config asks for [16, 8, 3, 3], the file has [15, 8, 3, 3]",
    ):
        assert line in message
    assert "\x1b" not in message


@pytest.mark.parametrize("kept", [1, 7, 60])
def test_of_many_problems_some_are_listed_and_all_are_counted(tmp_path, kept):
    tensors = tensors_of(tiny_config())
    anchors = ("backbone.embeddings.cls_token", "neck.convs.0.weight", "head.conv3.weight")
    some = {name: tensors[name] for name in {*anchors, *list(tensors)[:kept]}}
    some |= {f"head.{'x' * 700}{i}": np.zeros(1, np.float32) for i in range(50)}
    message = assert_refused(write_folder(tmp_path, tiny_config(), some), "does not fit its config")
    assert len(message.encode()) < 2000
    assert "more" in message


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
    layers, width = config.backbone_config.num_hidden_layers, config.backbone_config.hidden_size
    message = assert_refused(tmp_path, f"{layers} layers of width {width}., which is of another model")
    theirs = real.backbone_config.hidden_size
    assert f"backbone_config.hidden_size is {width} in the config, and the tensors have {theirs}\n" in message
    assert "Write what the tensors have into config.json" in message
    assert len(message.encode()) < 2000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": 98}, "backbone_config.image_size is 98 in the config, and the tensors have 70"),
        ({"use_mask_token": False}, "backbone_config.use_mask_token is false in the config, and the tensors have true"),
        ({"mlp_ratio": 2}, "backbone_config.mlp_ratio is 2 in the config, and the tensors have 4.0"),
    ],
)
def test_a_field_of_the_config_that_is_wrong_is_named(tmp_path, change, said):
    config = tiny_config()
    wrong = replace(config, backbone_config=replace(config.backbone_config, **change))
    message = assert_refused(write_folder(tmp_path, wrong, tensors_of(config)), "of another model")
    assert [line.strip() for line in message.splitlines()[1:-1]] == [said]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("backbone.rope_embed.periods", "DINOv3"),
        ("backbone.embeddings.register_tokens", "DINOv2 with registers"),
        ("neck.prompt_depth_layer.weight", "Prompt Depth Anything"),
        ("metric_head.conv.weight", "ZoeDepth"),
        ("head.motion_modules.0.weight", "Video Depth Anything"),
        ("neck.reassemble_stage.readout_projects.0.0.weight", "DPT"),
        ("conditional_log_binomial.mlp.0.weight", "ZoeDepth"),
        ("seed_bin_regressor._net.0.weight", "ZoeDepth"),
        ("depth_head.scratch.refinenet1.resConfUnit_depth.0.weight", "Prompt Depth Anything"),
        ("pretrained.act_postprocess1.0.project.0.weight", r"DPT .MiDaS."),
    ],
)
def test_other_families(tmp_path, name, family):
    table = "official" if name.startswith(("depth_head.", "pretrained.")) else "huggingface"
    tensors = tensors_of(tiny_config(), table) | {name: np.zeros(3, np.float32)}
    assert_refused(write_folder(tmp_path, tiny_config(), tensors), rf"model\.safetensors is {family}.*{name}")


def test_depth_anything_3(tmp_path):
    names = ["model.backbone.pretrained.cls_token", "model.backbone.pretrained.camera_token", "model.head.norm.weight"]
    write_file(tmp_path / "model.safetensors", {name: np.zeros(3, np.float32) for name in names})
    assert_refused(tmp_path / "model.safetensors", r"model\.safetensors is Depth Anything 3", config=tiny_config())


def test_a_second_version_inside_of_another_attribute_is_not_depth_anything_3(tmp_path):
    """`backbone.` before the authors' names was once taken for it."""
    tensors = {f"backbone.{name}": tensor for name, tensor in tensors_of(tiny_config(), "official").items()}
    assert_params(dajax.load(write_folder(tmp_path, tiny_config(), tensors))[1], random_params(tiny_config()))


def test_dinov3_is_not_dinov2_with_registers(tmp_path):
    """It has register tokens too."""
    tensors = {
        "embeddings.register_tokens": np.zeros((1, 4, 32), np.float32),
        "embeddings.patch_embeddings.weight": np.zeros((32, 3, 16, 16), np.float32),
    }
    write_file(tmp_path / "model.safetensors", tensors)
    assert_refused(tmp_path / "model.safetensors", r"model\.safetensors is DINOv3", config=tiny_config())


def test_errors_have_the_names_of_the_file(tmp_path):
    config = tiny_config()
    tensors = {f"module.{name}": tensor for name, tensor in tensors_of(config, "official").items()}
    qkv = "module.pretrained.blocks.1.attn.qkv.weight"
    tensors |= {qkv: np.zeros((64, 32), np.float32), "module.depth_head.extra": np.zeros(3, np.float32)}
    folder = write_folder(tmp_path / "shape", config, tensors)
    message = assert_refused(folder, rf"wrong shape: {qkv}: the config asks for \[96, 32\], the file has \[64, 32\]")
    assert message.count(qkv) == 1  # once for its three parts
    assert "not in the model: module.depth_head.extra [3]" in message
    tensors = {f"module.{name}": tensor for name, tensor in tensors_of(config, "official").items()}
    tensors["module.depth_head.projects.0.bias"][3] = np.nan
    assert_refused(
        write_folder(tmp_path / "nan", config, tensors), r"tensor module\.depth_head\.projects\.0\.bias has NaN"
    )
