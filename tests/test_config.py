import json
import time
import warnings
from dataclasses import replace

import pytest
from refusal import put_no_file, refused
from tiny import tiny_config, tiny_swiglu_config

from dajax.checkpoints import ALIASES
from dajax.config import DepthAnythingConfig, Dinov2Config
from dajax.errors import ConfigError, WeightsError

# As published for V2-Small: everything else is left to the defaults.
PUBLISHED = {
    "_commit_hash": None,
    "architectures": ["DepthAnythingForDepthEstimation"],
    "backbone": None,
    "backbone_config": {
        "architectures": ["Dinov2Model"],
        "hidden_size": 384,
        "image_size": 518,
        "model_type": "dinov2",
        "num_attention_heads": 6,
        "out_features": ["stage3", "stage6", "stage9", "stage12"],
        "out_indices": [3, 6, 9, 12],
        "patch_size": 14,
        "reshape_hidden_states": False,
        "torch_dtype": "float32",
    },
    "fusion_hidden_size": 64,
    "head_hidden_size": 32,
    "head_in_index": -1,
    "initializer_range": 0.02,
    "model_type": "depth_anything",
    "neck_hidden_sizes": [48, 96, 192, 384],
    "patch_size": 14,
    "reassemble_factors": [4, 2, 1, 0.5],
    "reassemble_hidden_size": 384,
    "torch_dtype": "float32",
    "transformers_version": None,
    "use_pretrained_backbone": False,
}

RELEASED = {row.alias: DepthAnythingConfig.from_pretrained(row.alias) for row in ALIASES.values()}


def published(**changes):
    return PUBLISHED | changes


def with_backbone(**changes):
    return published(backbone_config=PUBLISHED["backbone_config"] | changes)


def written(folder, value):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    (folder / "config.json").write_bytes(text)
    return folder


def assert_refused(folder, value, match, error=ConfigError):
    """Refused, as a file, in under a second and without memory for what it describes."""
    written(folder, value)
    message = refused(lambda: DepthAnythingConfig.from_pretrained(folder), error, match)
    assert len(message) < 2000


def test_defaults_are_v1_small():
    assert DepthAnythingConfig() == DepthAnythingConfig.v1("small") == DepthAnythingConfig.from_dict({})
    assert DepthAnythingConfig().backbone_config.out_indices == (9, 10, 11, 12)


def test_published_config_is_v2_small():
    assert DepthAnythingConfig.from_dict(PUBLISHED) == DepthAnythingConfig.small()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (12,)),
        ({"out_indices": []}, (12,)),
        ({"out_indices": [-1]}, (12,)),
        ({"out_indices": [0, -2]}, (0, 11)),
        ({"out_features": ["stem", "stage4"]}, (0, 4)),
        ({"out_features": None, "out_indices": [3]}, (3,)),
        ({"out_features": ["stage12"], "out_indices": [-1]}, (12,)),
    ],
)
def test_taps(given, expected):
    assert Dinov2Config.from_dict(given).out_indices == expected


def test_square_sizes_and_nulls():
    given = with_backbone(image_size=[518, 518], patch_size=[14, 14], num_hidden_layers=None)
    given |= {"patch_size": [14, 14], "max_depth": None}
    assert DepthAnythingConfig.from_dict(given) == DepthAnythingConfig.small()


@pytest.mark.parametrize(
    "config",
    [
        *RELEASED.values(),
        DepthAnythingConfig.giant(),
        tiny_config(),
        tiny_swiglu_config(),
        DepthAnythingConfig.small().with_style("official"),
    ],
)
def test_round_trip(config):
    text = json.dumps(config.to_dict())
    assert DepthAnythingConfig.from_dict(json.loads(text)) == config
    assert hash(DepthAnythingConfig.from_dict(json.loads(text))) == hash(config)


@pytest.mark.parametrize("alias", ALIASES)
def test_released(alias):
    config, row = RELEASED[alias], ALIASES[alias]
    width, layers, heads, fusion = {
        "small": (384, 12, 6, 64), "base": (768, 12, 12, 128), "large": (1024, 24, 16, 256),
    }[row.size]  # fmt: skip
    backbone = config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (width, layers, heads)
    assert (backbone.image_size, backbone.patch_size, backbone.grid_size) == (518, 14, 37)
    assert config.fusion_hidden_size == fusion
    last_four = tuple(range(layers - 3, layers + 1))
    v2 = (5, 12, 18, 24) if row.size == "large" else (3, 6, 9, 12)
    assert backbone.out_indices == (last_four if row.kind == "v1 relative" else v2)
    assert config.is_metric == row.kind.startswith("metric")
    assert config.max_depth == {"metric indoor": 20, "metric outdoor": 80}.get(row.kind, 1)


def test_giant():
    backbone = DepthAnythingConfig.giant().backbone_config
    assert (backbone.use_swiglu_ffn, backbone.mlp_width, backbone.out_indices) == (True, 4096, (10, 20, 30, 40))


def test_style():
    config = DepthAnythingConfig.small()
    assert config.with_style("official").backbone_config.interpolate_offset == 0.1
    assert config.with_style("official").with_style("huggingface") == config
    with pytest.raises(ConfigError, match="style must be one of"):
        config.with_style("opencv")


HUGE = 10**400  # JSON may say so; it is past every float

BAD_BACKBONE = {
    "num_hidden_layers": [10**9, 257, 0, -1, "12", 12.0, True, [12], {}, HUGE, float("nan"), float("inf")],
    "hidden_size": [10**9, 0, -384, "384", 384.5, False, HUGE],
    "num_attention_heads": [7, 5, 0, -6, "6", HUGE],
    "mlp_ratio": [0, -4, 1e9, "4", True, float("nan"), float("inf"), HUGE, [4]],
    "image_size": [13, 0, -518, 10**9, "518", [518, 280], [518, 518, 518], [518.0, 518.0], [[518], [518]]],
    "patch_size": [0, -14, 10**6, "14", [14, 7]],
    "num_channels": [0, -3, 10**9, "3"],
    "hidden_dropout_prob": [-0.1, 1.0, float("nan"), "0"],
    "drop_path_rate": [2, "0"],
    "layer_norm_eps": [0, -1e-6, float("nan"), "1e-6", HUGE],
    "initializer_range": [-1, float("inf")],
    "layerscale_value": [float("nan"), "1"],
    "qkv_bias": [1, "true", []],
    "use_swiglu_ffn": [0, "false"],
    "use_mask_token": [2],
    "hidden_act": ["relu", "gelu_new", 3, ["gelu"]],
    "reshape_hidden_states": [True],
    "out_indices": [0, False, "3,6", 12, [3, 6, 9, 13], [-14], [6, 3], [3, 3], ["3"], [True], [[3]], [3] * 17, {}],
}  # fmt: skip
BAD = {
    "patch_size": [16, 0, "14"],
    "reassemble_hidden_size": [768, 0, "384"],
    "reassemble_factors": [[4, 2, 1], [], 4, [4, 2, 1, 0], [4, 2, 1, -1], [1e9, 2, 1, 1], [2.5, 2, 1, 1],
                           ["4", 2, 1, 1]],
    "neck_hidden_sizes": [[48, 96, 192], [48, 96, 192, 0], [48, 96, 192, 10**9], [48, 96, 192, 1.5], "48"],
    "fusion_hidden_size": [0, 1, -64, 10**9, "64", True, HUGE],
    "head_in_index": [4, -5, "0", 0.0],
    "head_hidden_size": [0, -1, 10**9],
    "depth_estimation_type": ["absolute", 1, ["metric"], True],
    "max_depth": [0, -1, float("nan"), float("inf"), 1e9, "80", True, HUGE, [80]],
    "backbone_config": [[], "dinov2", 3, [["hidden_size", 384]]],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD_BACKBONE.items() for v in values])
def test_bad_backbone_field(tmp_path, field, value):
    given = with_backbone(**{field: value})
    if field == "out_indices":
        del given["backbone_config"]["out_features"]
    assert_refused(tmp_path, given, field)


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD.items() for v in values])
def test_bad_field(tmp_path, field, value):
    assert_refused(tmp_path, published(**{field: value}), field)


@pytest.mark.parametrize("value", [10**5000, -(10**5000), 1.5, "x" * 10**6], ids=["big", "negative", "float", "long"])
def test_bad_value_from_python(value):
    """What no JSON file can hold is refused just as well."""
    with pytest.raises(ConfigError, match="num_hidden_layers") as caught:
        Dinov2Config(num_hidden_layers=value)
    assert len(str(caught.value)) < 500
    with pytest.raises(ConfigError, match="backbone_config must be a Dinov2Config"):
        DepthAnythingConfig(backbone_config=value)


def test_too_many_parameters(tmp_path):
    given = with_backbone(num_hidden_layers=256, hidden_size=16384, num_attention_heads=64)
    assert_refused(tmp_path, given | {"reassemble_hidden_size": 16384}, "parameters")


def test_contradicting_taps(tmp_path):
    assert_refused(tmp_path, with_backbone(out_indices=[3, 6, 9, 11]), "name different layers")
    assert_refused(tmp_path, with_backbone(out_features=["layer3"]), "out_features must be 'stem' or 'stageN'")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"<!DOCTYPE html><html></html>", "not valid JSON"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'[{"hidden_size": 384}]', "JSON object"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not valid JSON"),
        (b'{"hidden_size": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_bad_json(tmp_path, text, match):
    assert_refused(tmp_path, text, match)


@pytest.mark.parametrize("depth", [*range(900, 1000, 7), *range(10, 900, 111)])
def test_lists_in_lists(tmp_path, depth):
    """Parsed or not: near the interpreter's limit, showing or comparing a value may fail where reading it did not."""
    nested = b"[" * depth + b"]" * depth
    for field in (b"image_size", b"num_hidden_layers", b"model_type", b"out_indices"):
        assert_refused(
            tmp_path, b'{"backbone_config": {"%s": %s}}' % (field, nested), "JSON|backbone_config|model_type"
        )
    assert_refused(tmp_path, b'{"backbone_config": {"image_size": [%s, %s]}}' % (nested, nested), "JSON|image_size")


def test_100_megabytes(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.write(b'{"architectures": ["')
        file.truncate(100_000_000)
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"config\.json has 100,000,000 bytes"):
        DepthAnythingConfig.from_pretrained(tmp_path)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "endless device", "loop", "dangling", "long name"])
def test_not_a_file(tmp_path, kind):
    path = tmp_path / "config.json"
    if kind == "long name":
        path = tmp_path / ("x" * 5000)
    else:
        put_no_file(path, kind)
    with pytest.raises(WeightsError, match=r"config\.json|xxx"):
        DepthAnythingConfig.from_pretrained(path if kind == "long name" else tmp_path)


def test_unreadable(tmp_path, monkeypatch):
    written(tmp_path, PUBLISHED)

    def denied(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", denied)
    with pytest.raises(WeightsError, match=r"config\.json cannot be read: Permission denied"):
        DepthAnythingConfig.from_pretrained(tmp_path)


def test_reads_a_folder_and_a_file(tmp_path):
    written(tmp_path, PUBLISHED)
    small = DepthAnythingConfig.small()
    assert DepthAnythingConfig.from_pretrained(tmp_path) == small
    assert DepthAnythingConfig.from_pretrained(str(tmp_path / "config.json")) == small


def test_remote_code_is_ignored():
    given = published(auto_map={"AutoModel": "evil.py--Evil"}, trust_remote_code=True)
    with pytest.warns(UserWarning, match="'trust_remote_code'") as caught:
        assert DepthAnythingConfig.from_dict(given) == DepthAnythingConfig.small()
    assert "auto_map" not in str(caught[0].message)


def test_unknown_field_is_named():
    with pytest.warns(UserWarning, match=r"'fusion_hidden_sise' \(did you mean 'fusion_hidden_size'\?\)") as caught:
        DepthAnythingConfig.from_dict(published(fusion_hidden_sise=64))
    assert caught[0].filename == __file__


def test_metric_without_max_depth_warns():
    with pytest.warns(UserWarning, match="metric model without max_depth"):
        config = DepthAnythingConfig.from_dict(published(depth_estimation_type="metric"))
    assert (config.is_metric, config.max_depth) == (True, 1)
    with warnings.catch_warnings(action="error"):
        DepthAnythingConfig.from_dict(published(depth_estimation_type="metric", max_depth=80))


@pytest.mark.parametrize(
    ("given", "family"),
    [
        (published(model_type="dpt"), "DPT"),
        (published(model_type="zoedepth"), "ZoeDepth"),
        (published(model_type="prompt_depth_anything"), "Prompt Depth Anything"),
        (published(model_type="depth_pro"), "Depth Pro"),
        ({"model_name": "da3-large", "config": {"__object__": {}}}, "Depth Anything 3"),
        (with_backbone(model_type="dinov2_with_registers"), "DINOv2 with registers"),
        (with_backbone(model_type="dinov3_vit"), "DINOv3"),
        (published(model_type="bert"), "bert"),
        (published(model_type=["dpt"]), "dpt"),
        (published(backbone="facebook/dinov2-small", backbone_config=None), "facebook/dinov2-small"),
    ],
)
def test_other_families(tmp_path, given, family):
    assert_refused(tmp_path, given, family)


def test_named_constructors_refuse_other_sizes():
    for make in (DepthAnythingConfig.v1, DepthAnythingConfig.metric_indoor, DepthAnythingConfig.metric_outdoor):
        with pytest.raises(ConfigError, match="size must be one of"):
            make("huge")


def test_changes_are_checked():
    config = DepthAnythingConfig.small()
    with pytest.raises(ConfigError, match="max_depth"):
        replace(config, max_depth=0)
    assert DepthAnythingConfig.small(max_depth=3).max_depth == 3


def test_max_depth_without_a_type_is_noticed():
    fields = DepthAnythingConfig.metric_indoor().to_dict()
    del fields["depth_estimation_type"]
    with pytest.warns(UserWarning, match=r"max_depth is 20, but depth_estimation_type is missing.*relative"):
        config = DepthAnythingConfig.from_dict(fields)
    assert (config.depth_estimation_type, config.max_depth) == ("relative", 20)
    DepthAnythingConfig.from_dict(fields | {"depth_estimation_type": "relative"})  # it is said: no warning
    DepthAnythingConfig.from_dict(fields | {"max_depth": 1})
