from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import tiny_config, tiny_metric_config, tiny_swiglu_config

from dajax import DepthAnything, DepthAnythingConfig
from dajax.checkpoints import ALIASES
from dajax.weights.mapping import TABLES, TRANSFORMS, flax_shapes, sources, targets, torch_shape
from dajax.weights.random import random_params
from dajax.weights.shapes import parameter_shapes


def with_backbone(config, **changes):
    return replace(config, backbone_config=replace(config.backbone_config, **changes))


SIZES = {
    "small": DepthAnythingConfig.small(),
    "base": DepthAnythingConfig.base(),
    "large": DepthAnythingConfig.large(),
    "giant": DepthAnythingConfig.giant(),
}
CONFIGS = SIZES | {
    "tiny": tiny_config(),
    "tiny metric": tiny_metric_config(),
    "tiny swiglu": tiny_swiglu_config(),
    "no qkv bias": with_backbone(tiny_config(), qkv_bias=False),
    "no mask token": with_backbone(tiny_config(), use_mask_token=False),
    "no layernorm": with_backbone(tiny_config(), apply_layernorm=False),
    "mlp ratio": with_backbone(tiny_swiglu_config(), mlp_ratio=2.7),
    "two taps": tiny_config(
        backbone_config=replace(tiny_config().backbone_config, out_indices=(0, 4)),
        reassemble_factors=(0.5, 3),
        neck_hidden_sizes=(8, 12),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_those_of_init(name):
    config = CONFIGS[name]
    side = 2 * config.patch_size
    variables = jax.eval_shape(DepthAnything(config).init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    found = {path: leaf.shape for path, leaf in flatten_dict(variables["params"], sep="/").items()}
    assert set(variables) == {"params"}
    assert found == parameter_shapes(config)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}


def test_released_have_the_shapes_of_their_size():
    for row in ALIASES.values():
        config = DepthAnythingConfig.from_pretrained(row.alias)
        assert parameter_shapes(config) == parameter_shapes(SIZES[row.size])


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("small", 24_785_089), ("base", 97_470_785), ("large", 335_315_649), ("giant", 1_258_132_225)],
)
def test_parameter_counts(size, parameters):
    shapes = parameter_shapes(SIZES[size])
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters
    # The bound that refuses absurd configs is near the truth.
    assert 0.9 < SIZES[size].num_parameters_bound() / parameters < 1.1


# The authors' code has four levels: saving refuses others, and none of their files has them.
FITTING = [(name, table) for name in CONFIGS for table in TABLES if (name, table) != ("two taps", "official")]


@pytest.mark.parametrize(("name", "table"), FITTING)
def test_tables_are_bijective(name, table):
    shapes = parameter_shapes(CONFIGS[name])
    found = sources(table, shapes)
    assert list(found) == list(shapes)  # every path has a row
    parts = [(name, source.part) for source in found.values() for name in source.names]
    assert len(parts) == len(set(parts))  # and no two the same part of the same tensor
    for tensor in {name for name, _ in parts}:  # all of whose parts are somewhere
        counts = {part.of for name, part in parts if name == tensor}
        assert sorted(part.number for name, part in parts if name == tensor) == list(range(counts.pop()))


@pytest.mark.parametrize(("name", "table"), FITTING)
def test_shapes_are_found_back(name, table):
    """From the names and shapes of the tensors alone; but for shrinking layers, which have the name of growing ones."""
    shapes = parameter_shapes(CONFIGS[name])
    tensors = {}
    for path, source in sources(table, shapes).items():
        rows, *rest = torch_shape(source, shapes[path])
        tensors |= dict.fromkeys(source.names, (rows // len(source.names), *rest))
    expected = {path.replace("downsample", "upsample") if table != "flax" else path: s for path, s in shapes.items()}
    assert flax_shapes(table, tensors) == expected


@pytest.mark.parametrize(("name", "table"), [f for f in FITTING if f[0] in ("tiny", "tiny swiglu", "two taps")])
def test_every_value_arrives(name, table):
    """There and back through each table, every element is at its place."""
    config = CONFIGS[name]
    flat = flatten_dict(random_params(config), sep="/")
    for path, source in sources(table, flat).items():
        tensor = source.transform.to_torch(flat[path])
        rows, *rest = torch_shape(source, flat[path].shape)
        assert tensor.shape == (rows // source.part.of, *rest)
        np.testing.assert_array_equal(source.transform.to_flax(tensor), flat[path])


# Written out by hand: the names that the Hub's files have, those of the authors' code, and those of the modules of
# Transformers 5.
OFFICIAL_EXAMPLES = [
    ("backbone/embeddings/cls_token", "pretrained.cls_token", (0, 1), (1, 1, 32)),
    ("backbone/embeddings/position_embeddings", "pretrained.pos_embed", (0, 1), (1, 26, 32)),
    ("backbone/embeddings/patch_embeddings/kernel", "pretrained.patch_embed.proj.weight", (0, 1), (32, 3, 14, 14)),
    ("backbone/layer_3/attention/query/kernel", "pretrained.blocks.3.attn.qkv.weight", (0, 3), (96, 32)),
    ("backbone/layer_3/attention/key/bias", "pretrained.blocks.3.attn.qkv.bias", (1, 3), (96,)),
    ("backbone/layer_3/attention/value/kernel", "pretrained.blocks.3.attn.qkv.weight", (2, 3), (96, 32)),
    ("backbone/layer_0/attention/output/bias", "pretrained.blocks.0.attn.proj.bias", (0, 1), (32,)),
    ("backbone/layer_1/layer_scale2/lambda1", "pretrained.blocks.1.ls2.gamma", (0, 1), (32,)),
    ("backbone/layer_1/norm1/scale", "pretrained.blocks.1.norm1.weight", (0, 1), (32,)),
    ("backbone/layer_1/mlp/weights_in/kernel", "pretrained.blocks.1.mlp.w12.weight", (0, 1), (176, 32)),
    ("backbone/layer_1/mlp/weights_out/bias", "pretrained.blocks.1.mlp.w3.bias", (0, 1), (32,)),
    ("backbone/layernorm/scale", "pretrained.norm.weight", (0, 1), (32,)),
    ("neck/reassemble_2/projection/kernel", "depth_head.projects.2.weight", (0, 1), (16, 32, 1, 1)),
    ("neck/reassemble_1/upsample/kernel", "depth_head.resize_layers.1.weight", (0, 1), (12, 12, 2, 2)),
    ("neck/reassemble_3/downsample/kernel", "depth_head.resize_layers.3.weight", (0, 1), (24, 24, 3, 3)),
    ("neck/conv_0/kernel", "depth_head.scratch.layer1_rn.weight", (0, 1), (16, 8, 3, 3)),
    ("neck/conv_3/kernel", "depth_head.scratch.layer4_rn.weight", (0, 1), (16, 24, 3, 3)),
    ("neck/fusion_0/projection/kernel", "depth_head.scratch.refinenet4.out_conv.weight", (0, 1), (16, 16, 1, 1)),
    ("neck/fusion_3/residual_layer1/convolution2/bias", "depth_head.scratch.refinenet1.resConfUnit1.conv2.bias",
     (0, 1), (16,)),
    ("head/conv1/kernel", "depth_head.scratch.output_conv1.weight", (0, 1), (8, 16, 3, 3)),
    ("head/conv2/bias", "depth_head.scratch.output_conv2.0.bias", (0, 1), (8,)),
    ("head/conv3/kernel", "depth_head.scratch.output_conv2.2.weight", (0, 1), (1, 8, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("path", "name", "part", "shape"), OFFICIAL_EXAMPLES)
def test_official_names(path, name, part, shape):
    shapes = parameter_shapes(tiny_swiglu_config())
    source = sources("official", shapes)[path]
    assert (source.names, source.part) == ((name,), part)
    assert torch_shape(source, shapes[path]) == shape


def test_targets():
    """The inverse of a table: which parameters a tensor is made of, in their order."""
    shapes = parameter_shapes(tiny_config())
    found = targets(sources("official", reversed(list(shapes))))
    layer = "backbone/layer_2/attention"
    assert found["pretrained.blocks.2.attn.qkv.bias"] == [f"{layer}/{name}/bias" for name in ("query", "key", "value")]
    assert sorted(path for paths in found.values() for path in paths) == sorted(shapes)


EXAMPLES = [
    ("backbone/embeddings/cls_token", "backbone.embeddings.cls_token", None, (1, 1, 32)),
    ("backbone/embeddings/mask_token", "backbone.embeddings.mask_token", None, (1, 32)),
    ("backbone/embeddings/position_embeddings", "backbone.embeddings.position_embeddings", None, (1, 26, 32)),
    ("backbone/embeddings/patch_embeddings/kernel", "backbone.embeddings.patch_embeddings.projection.weight", None,
     (32, 3, 14, 14)),
    ("backbone/layer_3/attention/query/kernel", "backbone.encoder.layer.3.attention.attention.query.weight",
     ["backbone.encoder.layer.3.attention.q_proj.weight"], (32, 32)),
    ("backbone/layer_0/attention/value/bias", "backbone.encoder.layer.0.attention.attention.value.bias",
     ["backbone.encoder.layer.0.attention.v_proj.bias"], (32,)),
    ("backbone/layer_0/attention/output/kernel", "backbone.encoder.layer.0.attention.output.dense.weight",
     ["backbone.encoder.layer.0.attention.o_proj.weight"], (32, 32)),
    ("backbone/layer_1/norm2/scale", "backbone.encoder.layer.1.norm2.weight", None, (32,)),
    ("backbone/layer_1/layer_scale2/lambda1", "backbone.encoder.layer.1.layer_scale2.lambda1", None, (32,)),
    ("backbone/layer_1/mlp/weights_in/kernel", "backbone.encoder.layer.1.mlp.weights_in.weight",
     ["backbone.encoder.layer.1.mlp.gate_proj.weight", "backbone.encoder.layer.1.mlp.up_proj.weight"], (176, 32)),
    ("backbone/layer_1/mlp/weights_in/bias", "backbone.encoder.layer.1.mlp.weights_in.bias",
     ["backbone.encoder.layer.1.mlp.gate_proj.bias", "backbone.encoder.layer.1.mlp.up_proj.bias"], (176,)),
    ("backbone/layer_1/mlp/weights_out/kernel", "backbone.encoder.layer.1.mlp.weights_out.weight",
     ["backbone.encoder.layer.1.mlp.down_proj.weight"], (32, 88)),
    ("backbone/layernorm/bias", "backbone.layernorm.bias", None, (32,)),
    ("neck/reassemble_0/projection/kernel", "neck.reassemble_stage.layers.0.projection.weight", None, (8, 32, 1, 1)),
    ("neck/reassemble_0/upsample/kernel", "neck.reassemble_stage.layers.0.resize.weight", None, (8, 8, 4, 4)),
    ("neck/reassemble_3/downsample/bias", "neck.reassemble_stage.layers.3.resize.bias", None, (24,)),
    ("neck/conv_2/kernel", "neck.convs.2.weight", None, (16, 16, 3, 3)),
    ("neck/fusion_0/residual_layer1/convolution2/kernel",
     "neck.fusion_stage.layers.0.residual_layer1.convolution2.weight", None, (16, 16, 3, 3)),
    ("neck/fusion_3/projection/kernel", "neck.fusion_stage.layers.3.projection.weight", None, (16, 16, 1, 1)),
    ("head/conv1/kernel", "head.conv1.weight", None, (8, 16, 3, 3)),
    ("head/conv3/kernel", "head.conv3.weight", None, (1, 8, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("path", "v4", "v5", "shape"), EXAMPLES)
def test_names(path, v4, v5, shape):
    shapes = parameter_shapes(tiny_swiglu_config())
    old, new = (sources(table, shapes)[path] for table in ("huggingface", "huggingface-5"))
    assert old.names == (v4,)
    assert new.names == tuple(v5 or [v4])
    assert torch_shape(old, shapes[path]) == torch_shape(new, shapes[path]) == shape


def test_a_path_without_a_row_is_a_bug():
    with pytest.raises(KeyError, match="backbone/unheard/of"):
        sources("huggingface", ["backbone/unheard/of"])


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        ("same", (3, 4)),
        ("linear", (5, 3)),
        ("pointwise", (5, 3, 1, 1)),
        ("conv", (5, 3, 2, 4)),
        ("deconv", (3, 5, 2, 4)),
    ],
)
def test_transforms_are_views(transform, shape):
    """Loading writes through them, so none may copy."""
    tensor = np.arange(np.prod(shape)).reshape(shape)
    flax = TRANSFORMS[transform].to_flax(tensor)
    back = TRANSFORMS[transform].to_torch(flax)
    np.testing.assert_array_equal(back, tensor)
    assert np.shares_memory(flax, tensor)
    assert np.shares_memory(back, tensor)


def test_axes():
    """Element by element: PyTorch's (out, in, rows, columns), transposed convolutions (in, out, rows, columns)."""
    o, i, y, x = 4, 2, 1, 0
    conv = np.random.default_rng(0).normal(size=(5, 3, 2, 4))
    deconv = conv.swapaxes(0, 1)
    assert TRANSFORMS["conv"].to_flax(conv)[y, x, i, o] == conv[o, i, y, x]
    assert TRANSFORMS["deconv"].to_flax(deconv)[y, x, i, o] == deconv[i, o, y, x]
    assert TRANSFORMS["linear"].to_flax(conv[:, :, y, x])[i, o] == conv[o, i, y, x]
    assert TRANSFORMS["pointwise"].to_flax(conv[:, :, :1, :1])[i, o] == conv[o, i, 0, 0]
