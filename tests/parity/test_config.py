"""The meaning of a config.json against Transformers' own reading of it."""

import json
import random

import pytest
from transformers import DepthAnythingConfig as Reference

from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError

BACKBONE_CHOICES = {
    "hidden_size": [384, 768, 960, 36],
    "num_hidden_layers": [12, 24, 5],
    "num_attention_heads": [4, 12, 2],
    "mlp_ratio": [4, 3],
    "layer_norm_eps": [1e-6, 1e-5],
    "image_size": [518, 224, 70, [518, 518]],
    "patch_size": [14],
    "num_channels": [3, 1],
    "qkv_bias": [True, False],
    "layerscale_value": [1.0, 1e-5],
    "drop_path_rate": [0.0, 0.1],
    "hidden_dropout_prob": [0.0, 0.2],
    "use_swiglu_ffn": [False, True],
    "use_mask_token": [True, False],
    "apply_layernorm": [True, False],
    "initializer_range": [0.02, 0.5],
}
CHOICES = {
    "patch_size": [14],
    "initializer_range": [0.02, 0.1],
    "reassemble_factors": [[4, 2, 1, 0.5], [2, 1, 1, 0.5]],
    "neck_hidden_sizes": [[48, 96, 192, 384], [8, 8, 16, 24]],
    "fusion_hidden_size": [64, 128],
    "head_in_index": [-1, 0],
    "head_hidden_size": [32, 16],
    "depth_estimation_type": ["relative", "metric"],
    "max_depth": [1, 20, 80],
}


def some_fields(draw, choices):
    return {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.5}


def some_config(seed):
    draw = random.Random(seed)
    given = some_fields(draw, CHOICES) | {"model_type": "depth_anything"}
    if given.get("depth_estimation_type") == "metric":
        given["max_depth"] = 20
    elif "max_depth" in given:  # without the type there is a warning
        given["depth_estimation_type"] = "relative"
    width = 384
    if draw.random() < 0.8:
        backbone = some_fields(draw, BACKBONE_CHOICES) | {"model_type": "dinov2", "reshape_hidden_states": False}
        layers = backbone.get("num_hidden_layers", 12)
        taps = sorted(draw.sample(range(layers + 1), 4))
        kind = draw.random()
        if kind < 0.7:
            backbone["out_indices"] = taps if kind < 0.5 else [*taps[:3], -1] if taps[3] == layers else taps
        if kind < 0.2 or kind >= 0.7:
            backbone["out_features"] = ["stem" if i == 0 else f"stage{i}" for i in taps]
        width = backbone.get("hidden_size", 768)
        given["backbone_config"] = backbone
    if width != 384 or draw.random() < 0.5:
        given["reassemble_hidden_size"] = width
    return given


def assert_same(config, reference):
    for ours, theirs, skip in (
        (config, reference, {"backbone_config", "preprocessing"}),
        (config.backbone_config, reference.backbone_config, {"interpolate_offset"}),
    ):
        for name in vars(ours).keys() - skip:
            mine, other = getattr(ours, name), getattr(theirs, name)
            if isinstance(other, list | tuple) and name in ("image_size", "patch_size"):
                other = other[0]
            if name == "out_indices":  # Transformers keeps negative ones, and counts them from the end
                other = [i % (theirs.num_hidden_layers + 1) for i in other]
            if isinstance(other, list | tuple):
                other = tuple(other)
            assert mine == other, name


@pytest.mark.parametrize("seed", range(300))
def test_random_partial_configs(seed):
    given = some_config(seed)
    config = DepthAnythingConfig.from_dict(given)
    reference = Reference(**json.loads(json.dumps(given)))
    assert_same(config, reference)
    # What dajax writes means the same to Transformers.
    assert_same(config, Reference(**json.loads(json.dumps(config.to_dict()))))


def test_defaults():
    assert_same(DepthAnythingConfig(), Reference())
    assert_same(DepthAnythingConfig.from_dict({"backbone_config": None}), Reference(backbone_config=None))


def test_contradicting_taps_are_refused_by_both():
    backbone = {
        "model_type": "dinov2",
        "out_indices": [3, 6, 9, 12],
        "out_features": ["stage3", "stage6", "stage9", "stage11"],
    }
    given = {"backbone_config": backbone, "reassemble_hidden_size": 768}
    with pytest.raises(ConfigError, match="name different layers"):
        DepthAnythingConfig.from_dict(given)
    with pytest.raises(ValueError):
        Reference(**given)


def test_saved_by_transformers(tmp_path):
    """The file that Transformers writes: every field is known, and none is warned about."""
    for config in (
        DepthAnythingConfig(),
        DepthAnythingConfig.small(),
        DepthAnythingConfig.metric_outdoor("large"),
        DepthAnythingConfig.giant(),
    ):
        reference = Reference(**config.to_dict())
        reference.save_pretrained(tmp_path)
        assert DepthAnythingConfig.from_pretrained(tmp_path) == config
        # ... and the longest form of it.
        assert DepthAnythingConfig.from_dict(json.loads(json.dumps(reference.to_dict()))) == config
