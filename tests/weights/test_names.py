"""Names as training scripts leave them."""

import pytest
from checkpoint_files import tensors_of
from tiny import tiny_config

from dajax.errors import WeightsError
from dajax.weights.mapping import TABLES
from dajax.weights.names import choose, find_bare_encoders, find_models, nearest_layout, refuse_unmerged

OFFICIAL = ["pretrained.cls_token", "pretrained.blocks.3.attn.qkv.weight", "depth_head.projects.0.weight"]
HUGGINGFACE = ["backbone.embeddings.cls_token", "backbone.encoder.layer.0.norm1.weight", "head.conv3.bias"]
FLAX = ["backbone/embeddings/cls_token", "backbone/layer_0/norm1/scale", "head/conv3/bias", "neck/conv_0/kernel"]


def only(names):
    (model,) = find_models(names, "my.pth")
    return model


@pytest.mark.parametrize("names", [OFFICIAL, HUGGINGFACE, FLAX])
def test_plain(names):
    model = only(names)
    assert (model.prefix, model.names) == ("", {name: name for name in names})


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "net.backbone.", "a.b.c.", "pretrained.", "ema/"]
)
@pytest.mark.parametrize("names", [OFFICIAL, HUGGINGFACE])
def test_a_prefix(prefix, names):
    model = only([prefix + name for name in names])
    assert model.prefix == prefix
    assert model.names == {name: prefix + name for name in names}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("pretrained._orig_mod.norm.bias", "pretrained.norm.bias"),
        ("pretrained.module.norm.bias", "pretrained.norm.bias"),
        (
            "pretrained._fsdp_wrapped_module.blocks.2._checkpoint_wrapped_module.norm1.bias",
            "pretrained.blocks.2.norm1.bias",
        ),
        ("depth_head._fpw_module.scratch.output_conv1.bias", "depth_head.scratch.output_conv1.bias"),
        # DINOv2's chunks: the number of a block is that of the whole model
        ("pretrained.blocks.0.11.mlp.fc1.weight", "pretrained.blocks.11.mlp.fc1.weight"),
        ("pretrained.blocks.3.11.ls1.gamma", "pretrained.blocks.11.ls1.gamma"),
    ],
)
def test_infixes(name, plain):
    assert only([*OFFICIAL, name]).names[plain] == name


def test_a_wrapped_encoder_is_found():
    names = [
        "module.backbone._orig_mod.embeddings.cls_token",
        "module.backbone._orig_mod.layernorm.bias",
        "module.neck.a",
    ]
    model = only(names)
    assert model.prefix == "module."
    assert list(model.names) == ["backbone.embeddings.cls_token", "backbone.layernorm.bias", "neck.a"]


def test_distill_any_depth():
    names = ["backbone.cls_token", "backbone.blocks.0.7.norm1.bias", "depth_head.projects.0.bias"]
    assert list(only(names).names) == [
        "pretrained.cls_token",
        "pretrained.blocks.7.norm1.bias",
        "depth_head.projects.0.bias",
    ]


def test_two_models_with_one_prefix_in_the_other():
    models = find_models([*OFFICIAL, *(f"module.{name}" for name in OFFICIAL)], "my.pth")
    assert [model.prefix for model in models] == ["", "module."]
    assert all(list(model.names) == OFFICIAL and model.is_whole for model in models)


def test_what_is_beside_the_model_is_not_in_it():
    assert only([*OFFICIAL, "loss.weight", "step", "heads.x", "pretrained_too.y"]).names.keys() == set(OFFICIAL)


def test_an_encoder_alone_is_no_whole_model():
    assert not only(OFFICIAL[:2]).is_whole
    for names, prefix, table in (
        (["cls_token", "blocks.0.norm1.bias"], "", "official"),
        (["teacher.embeddings.cls_token", "teacher.layernorm.bias", "x.bias"], "teacher.", "huggingface"),
        (["model._orig_mod.cls_token"], "model._orig_mod.", "official"),
    ):
        (found,) = find_bare_encoders(names, "model.pth")
        assert (found.prefix, found.table, found.is_whole) == (prefix, table, False)
        assert list(found.names.values()) == [name for name in names if name.startswith(prefix)]
    assert not find_bare_encoders(["a", "not_cls_token_b"], "model.pth")


@pytest.mark.parametrize("table", TABLES)
def test_tables(table):
    model = only(tensors_of(tiny_config(), table))
    # Only SwiGLU and attention differ between the two of Transformers.
    assert model.table == table
    assert model.is_whole


def test_two_names_for_one_tensor():
    names = [*OFFICIAL, "pretrained.blocks.0.3.norm1.bias", "pretrained.blocks.3.norm1.bias"]
    with pytest.raises(
        WeightsError, match=r"my\.pth: two tensors.*\n  pretrained\.blocks\.0\.3.* and pretrained\.blocks\.3"
    ):
        find_models(names, "my.pth")


def test_no_names():
    assert find_models([], "file") == []


@pytest.mark.parametrize("prefix", ["ema.", "ema", "model", "model."])
def test_a_model_is_chosen_by_its_prefix(prefix):
    models = find_models([p + name for p in ("model.", "ema.") for name in OFFICIAL], "f")
    assert choose(models, prefix, "f").prefix == prefix.rstrip(".") + "."
    with pytest.raises(WeightsError, match=r"f has 2 models, .* begin with 'model\.', 'ema\.': say with prefix="):
        choose(models, None, "f")
    with pytest.raises(WeightsError, match=r"no model with the prefix 'teacher'; it has: 'model\.', 'ema\.'"):
        choose(models, "teacher", "f")


@pytest.mark.parametrize("prefix", [None, "", "model"])
def test_two_layouts_with_one_prefix_are_refused(prefix):
    start = "model." if prefix == "model" else ""
    models = find_models([start + name for name in (*OFFICIAL, *HUGGINGFACE)], "f")
    with pytest.raises(WeightsError, match=r"2 models with one prefix.*the authors' code and Transformers"):
        choose(models, prefix, "f")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("base_model.model.pretrained.blocks.0.attn.qkv.lora_A.weight", "merge"),
        ("pretrained.blocks.0.attn.qkv.lora_B.default.weight", "merge"),
        ("pretrained.blocks.0.attn.qkv.base_layer.weight", "merge"),
        ("pretrained.blocks.0.attn.qkv.ia3_l", "merge"),
        ("pretrained.blocks.0.adapter.down.weight", "merge"),
        ("pretrained.patch_embed.proj.parametrizations.weight.original0", "remove_parametrizations"),
    ],
)
def test_unmerged_weights_are_refused(name, advice):
    with pytest.raises(WeightsError, match=advice):
        refuse_unmerged([*OFFICIAL, name], "f")


def test_names_that_only_look_unmerged():
    refuse_unmerged(["explora_map", "adapters_count", "parametrizations", "flora_A", "head.adaptive.weight"], "f")


def test_the_nearest_names():
    layout, missing = nearest_layout(["pretrained.blocks.0.norm1.bias", "pretrained.norm.weight", "other"])
    assert (layout.name, missing) == ("the authors' code", ["pretrained.cls_token", "depth_head."])
