"""Checkpoints that do not fit their config, or are another family's: one error with all of it."""

import json

import numpy as np
import pytest
from checkpoint_files import (
    assert_refused,
    sparse,
    tensors_of,
    write_file,
    write_folder,
)
from tiny import tiny_config

from dajax import limits
from dajax.config import DepthAnythingConfig
from dajax.weights.shapes import parameter_shapes


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
