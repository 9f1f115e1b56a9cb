"""What the shapes of a checkpoint's tensors say about its model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dajax.config import DepthAnythingConfig, Dinov2Config
from dajax.errors import ConfigError
from dajax.weights.mapping import Shape, flax_shapes, sources, torch_shape
from dajax.weights.shapes import parameter_shapes

# What tensors do not show: how many heads share a width, which layers are tapped, and what the output means.
_ENCODER_FIELDS = (
    "hidden_size", "num_hidden_layers", "mlp_ratio", "image_size", "patch_size", "num_channels", "qkv_bias",
    "use_swiglu_ffn", "use_mask_token",
)  # fmt: skip
_FIELDS = (
    "reassemble_hidden_size",
    "reassemble_factors",
    "neck_hidden_sizes",
    "fusion_hidden_size",
    "head_hidden_size",
)


def consistent_structure(table: str, shapes: Mapping[str, Shape]) -> DepthAnythingConfig | None:
    """Return a config that these tensors fit, names and shapes, none missing and none left over; or None.

    Its number of heads, its taps and its kind mean nothing: tensors do not show them.

    Args:
        table: the names that the tensors have; see `dajax.weights.mapping.TABLES`.
        shapes: {name: shape}.
    """
    try:
        structure = _structure(flax_shapes(table, shapes))
    except (KeyError, IndexError, ValueError, ZeroDivisionError, ConfigError):
        return None
    wanted = parameter_shapes(structure)
    found = sources(table, wanted)
    fits = {name for source in found.values() for name in source.names} == shapes.keys() and all(
        joined([shapes[name] for name in source.names]) == torch_shape(source, wanted[path])
        for path, source in found.items()
    )
    return structure if fits else None


def encoder_structure(table: str, shapes: Mapping[str, Shape]) -> Dinov2Config | None:
    """Return the config of an encoder with tensors of these shapes, without taps; None if they are of no encoder.

    Heads are 64 wide, as in every DINOv2: tensors do not show it.

    Args:
        table: the names that the tensors have; see `dajax.weights.mapping.TABLES`.
        shapes: {name: shape}.
    """
    try:
        return _encoder(flax_shapes(table, shapes))
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None


def _encoder(shapes: Mapping[str, Shape]) -> Dinov2Config:
    width = shapes["backbone/embeddings/cls_token"][2]
    patch, _, channels, _ = shapes["backbone/embeddings/patch_embeddings/kernel"]
    grid = round((shapes["backbone/embeddings/position_embeddings"][1] - 1) ** 0.5)
    swiglu = "backbone/layer_0/mlp/weights_out/kernel" in shapes
    hidden = shapes[f"backbone/layer_0/mlp/{'weights_out' if swiglu else 'fc2'}/kernel"][0]
    layers = {int(number) for path in shapes for number in re.findall(r"^backbone/layer_(\d+)/", path)}
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=max(layers) + 1,
        num_attention_heads=max(width // 64, 1) if width % 64 == 0 else 1,
        # SwiGLU's width is two thirds of the MLP's, rounded up; released models have a ratio of 4.
        mlp_ratio=4 if swiglu else hidden / width,
        image_size=grid * patch,
        patch_size=patch,
        num_channels=channels,
        qkv_bias="backbone/layer_0/attention/query/bias" in shapes,
        use_swiglu_ffn=swiglu,
        use_mask_token="backbone/embeddings/mask_token" in shapes,
    )


def _structure(shapes: Mapping[str, Shape]) -> DepthAnythingConfig:
    levels = sorted({int(number) for path in shapes for number in re.findall(r"^neck/conv_(\d+)/", path)})
    encoder = _encoder(shapes)
    last = encoder.num_hidden_layers + 1
    encoder = replace(encoder, out_indices=tuple(range(last - len(levels), last)))
    return DepthAnythingConfig(
        backbone_config=encoder,
        patch_size=encoder.patch_size,
        reassemble_hidden_size=encoder.hidden_size,
        reassemble_factors=tuple(_factor(shapes, level) for level in levels),
        neck_hidden_sizes=tuple(shapes[f"neck/conv_{level}/kernel"][2] for level in levels),
        fusion_hidden_size=shapes["neck/conv_0/kernel"][3],
        head_hidden_size=shapes["head/conv2/kernel"][3],
    )


def _factor(shapes: Mapping[str, Shape], level: int) -> int | float:
    """Return the factor of a level. Two kinds of layers have one name: shrinking ones have kernels of 3x3."""
    layer = f"neck/reassemble_{level}"
    found = shapes.get(f"{layer}/upsample/kernel", shapes.get(f"{layer}/downsample/kernel"))
    return 1 if found is None else 0.5 if found[0] == 3 else found[0]


def differences(config: DepthAnythingConfig, structure: DepthAnythingConfig) -> list[str]:
    """Return a sentence for each field of the config that is not what the tensors show."""
    mine, theirs = config.backbone_config, structure.backbone_config
    pairs = [(f"backbone_config.{name}", getattr(mine, name), getattr(theirs, name)) for name in _ENCODER_FIELDS]
    pairs += [(name, getattr(config, name), getattr(structure, name)) for name in _FIELDS]
    return [
        f"{path} is {_shown(one)} in the config, and the tensors have {_shown(other)}"
        for path, one, other in pairs
        if one != other and not (path.endswith("mlp_ratio") and mine.mlp_width == theirs.mlp_width)
    ]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def joined(shapes: Sequence[Shape]) -> Shape | None:
    """Return the shape of tensors that are joined along their first axis; None if they do not fit together."""
    if len(set(shapes)) > 1:
        return None
    return shapes[0] if len(shapes) == 1 else (sum(s[0] if s else 0 for s in shapes), *shapes[0][1:])
