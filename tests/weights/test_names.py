import pytest

from dajax.errors import WeightsError
from dajax.weights.names import plain_names


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("pretrained.cls_token", "pretrained.cls_token"),
        ("module.pretrained.blocks.3.attn.qkv.weight", "pretrained.blocks.3.attn.qkv.weight"),
        ("_orig_mod.module.pretrained.norm.bias", "pretrained.norm.bias"),
        ("module._orig_mod.pretrained.norm.bias", "pretrained.norm.bias"),
        ("model.module.depth_head.projects.0.weight", "depth_head.projects.0.weight"),
        ("pretrained._orig_mod.norm.bias", "pretrained.norm.bias"),
        # DINOv2's chunks: the number of a block is that of the whole model
        ("pretrained.blocks.0.11.mlp.fc1.weight", "pretrained.blocks.11.mlp.fc1.weight"),
        ("module.pretrained.blocks.3.11.ls1.gamma", "pretrained.blocks.11.ls1.gamma"),
        # Distill-Any-Depth
        ("backbone.pos_embed", "pretrained.pos_embed"),
        ("backbone.patch_embed.proj.weight", "pretrained.patch_embed.proj.weight"),
        ("backbone.blocks.0.7.norm1.bias", "pretrained.blocks.7.norm1.bias"),
        ("backbone.norm.weight", "pretrained.norm.weight"),
        # Transformers
        ("backbone.layernorm.weight", "backbone.layernorm.weight"),
        ("backbone.encoder.layer.0.norm1.weight", "backbone.encoder.layer.0.norm1.weight"),
        ("module.backbone.embeddings.cls_token", "backbone.embeddings.cls_token"),
        # dajax
        ("backbone/layer_0/norm1/scale", "backbone/layer_0/norm1/scale"),
        # what only looks like it
        ("head.module.weight", "head.module.weight"),
        ("depth_head.backbone.norm.weight", "depth_head.backbone.norm.weight"),
        ("modules.weight", "modules.weight"),
    ],
)
def test_names(name, plain):
    assert plain_names([name], "file") == {plain: name}


def test_a_wrapper_is_around_all():
    """A module that is called so is not one."""
    names = ["module.weight", "head.weight"]
    assert plain_names(names, "file") == {name: name for name in names}


def test_two_names_for_one_tensor():
    names = ["pretrained.blocks.0.3.norm1.bias", "pretrained.blocks.3.norm1.bias"]
    with pytest.raises(
        WeightsError, match=r"my\.pth: two tensors.*\n  pretrained\.blocks\.0\.3.* and pretrained\.blocks\.3"
    ):
        plain_names(names, "my.pth")


def test_no_names():
    assert plain_names([], "file") == {}
