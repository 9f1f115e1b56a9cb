"""Names and shapes of the tensors in the authors' files, and seeded ones. Nothing of dajax's tables is used.

Facts read from the state dicts of the authors' own modules, relative and metric, which have the same.
"""

import re

import numpy as np
from safetensors.numpy import save_file
from seeded import tensor

import dajax

_BLOCK = {
    "norm1.weight": ("width",),
    "norm1.bias": ("width",),
    "attn.qkv.weight": ("qkv", "width"),
    "attn.qkv.bias": ("qkv",),
    "attn.proj.weight": ("width", "width"),
    "attn.proj.bias": ("width",),
    "ls1.gamma": ("width",),
    "norm2.weight": ("width",),
    "norm2.bias": ("width",),
}
_MLP = {
    "mlp.fc1.weight": ("mlp", "width"),
    "mlp.fc1.bias": ("mlp",),
    "mlp.fc2.weight": ("width", "mlp"),
    "mlp.fc2.bias": ("width",),
}
_SWIGLU = {
    "mlp.w12.weight": ("gate and up", "width"),
    "mlp.w12.bias": ("gate and up",),
    "mlp.w3.weight": ("width", "mlp"),
    "mlp.w3.bias": ("width",),
}
_ENCODER = {
    "cls_token": (1, 1, "width"),
    "pos_embed": (1, "tokens", "width"),
    "mask_token": (1, "width"),
    "patch_embed.proj.weight": ("width", 3, 14, 14),
    "patch_embed.proj.bias": ("width",),
    "norm.weight": ("width",),
    "norm.bias": ("width",),
}
_HEAD = {
    "projects.{level}.weight": ("neck", "width", 1, 1),
    "projects.{level}.bias": ("neck",),
    "resize_layers.0.weight": ("neck 0", "neck 0", 4, 4),
    "resize_layers.0.bias": ("neck 0",),
    "resize_layers.1.weight": ("neck 1", "neck 1", 2, 2),
    "resize_layers.1.bias": ("neck 1",),
    "resize_layers.3.weight": ("neck 3", "neck 3", 3, 3),
    "resize_layers.3.bias": ("neck 3",),
    "scratch.layer{level + 1}_rn.weight": ("fusion", "neck", 3, 3),
    "scratch.refinenet{level + 1}.out_conv.weight": ("fusion", "fusion", 1, 1),
    "scratch.refinenet{level + 1}.out_conv.bias": ("fusion",),
    "scratch.refinenet{level + 1}.resConfUnit1.conv1.weight": ("fusion", "fusion", 3, 3),
    "scratch.refinenet{level + 1}.resConfUnit1.conv1.bias": ("fusion",),
    "scratch.refinenet{level + 1}.resConfUnit1.conv2.weight": ("fusion", "fusion", 3, 3),
    "scratch.refinenet{level + 1}.resConfUnit1.conv2.bias": ("fusion",),
    "scratch.refinenet{level + 1}.resConfUnit2.conv1.weight": ("fusion", "fusion", 3, 3),
    "scratch.refinenet{level + 1}.resConfUnit2.conv1.bias": ("fusion",),
    "scratch.refinenet{level + 1}.resConfUnit2.conv2.weight": ("fusion", "fusion", 3, 3),
    "scratch.refinenet{level + 1}.resConfUnit2.conv2.bias": ("fusion",),
    "scratch.output_conv1.weight": ("half", "fusion", 3, 3),
    "scratch.output_conv1.bias": ("half",),
    "scratch.output_conv2.0.weight": ("head", "half", 3, 3),
    "scratch.output_conv2.0.bias": ("head",),
    "scratch.output_conv2.2.weight": (1, "head", 1, 1),
    "scratch.output_conv2.2.bias": (1,),
}


def official_shapes(config: dajax.DepthAnythingConfig) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of the authors' model of these sizes."""
    backbone, fusion, neck = config.backbone_config, config.fusion_hidden_size, config.neck_hidden_sizes
    sizes = {
        "width": backbone.hidden_size,
        "qkv": 3 * backbone.hidden_size,
        "mlp": backbone.mlp_width,
        "gate and up": 2 * backbone.mlp_width,
        "tokens": (backbone.image_size // 14) ** 2 + 1,
        "fusion": fusion,
        "half": fusion // 2,
        "head": config.head_hidden_size,
        **{f"neck {level}": width for level, width in enumerate(neck)},
    }
    block = _BLOCK | (_SWIGLU if backbone.use_swiglu_ffn else _MLP) | {"ls2.gamma": ("width",)}
    patterns = {f"pretrained.{name}": shape for name, shape in _ENCODER.items()}
    for i in range(backbone.num_hidden_layers):
        patterns |= {f"pretrained.blocks.{i}.{name}": shape for name, shape in block.items()}
    for level in range(4):
        for name, shape in _HEAD.items():
            key = name.replace("{level}", str(level)).replace("{level + 1}", str(level + 1))
            patterns[f"depth_head.{key}"] = tuple(f"neck {level}" if size == "neck" else size for size in shape)
    return {name: tuple(sizes.get(size, size) for size in shape) for name, shape in patterns.items()}


def official_state(config: dajax.DepthAnythingConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return seeded tensors with the authors' names; maps have a mean and a deviation near one."""
    kinds = {r"gamma$": "lambda1", r"pos_embed$": "position_embeddings", r".*output_conv2\.2\.bias$": "head.conv3.bias"}
    state = {}
    for name, shape in official_shapes(config).items():
        kind = name
        for pattern, as_in_transformers in kinds.items():
            kind = re.sub(pattern, as_in_transformers, kind)
        state[name] = tensor(kind, shape, seed)
    return state


def write_official(path, config: dajax.DepthAnythingConfig, seed: int = 0):
    """Write a safetensors file with the authors' names, without a config."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(official_state(config, seed), path)
    return path
