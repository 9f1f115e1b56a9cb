"""Every stage of the authors' network, as plain functions on the tensors of their file.

Written from the architecture, by the file's own names, and not through dajax's tables: what is wrong in those cannot
hide here. Heads, taps and the kind of output do not stand in the file; they come from the config.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dajax.config import DepthAnythingConfig

Tensors = Mapping[str, torch.Tensor]
# DINOv2's own; config.json has the same number where it has one.
_EPS = 1e-6


def official_stages(
    state: Tensors, config: DepthAnythingConfig, pixels: np.ndarray, dtype: torch.dtype, rounded_to: torch.dtype | None
) -> dict[str, np.ndarray]:
    """Return {stage: its output, channels last}.

    Args:
        state: tensors as in the file.
        config: its heads, taps, kind of output and style of position embeddings count.
        pixels: float [batch, height, width, 3], normalised.
        dtype: what is computed in.
        rounded_to: round the weights to this type first.
    """
    named = {name: tensor.to(rounded_to or tensor.dtype).to(dtype) for name, tensor in _short_names(state).items()}
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(dtype)
    with torch.inference_mode():
        return {
            stage: (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).numpy()
            for stage, output in _stages(named, config, image)
        }


def _short_names(state: Tensors) -> dict[str, torch.Tensor]:
    """Drop what wrappers, chunks and other training code put into the names: "blocks.3.norm1.bias", "head.…"."""
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    encoder = _before("pos_embed", plain)
    head = _before("projects.0.weight", plain)
    short = {}
    for name, tensor in plain.items():
        if name.startswith(head):
            short["head." + name.removeprefix(head).removeprefix("scratch.")] = tensor
        else:
            short[re.sub(r"^blocks\.\d+\.(?=\d)", "blocks.", name.removeprefix(encoder))] = tensor
    return short


def _before(ending: str, state: Tensors) -> str:
    return next(name for name in state if name.endswith(ending)).removesuffix(ending)


def _stages(w: Tensors, config: DepthAnythingConfig, image: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    patches = _conv(w, "patch_embed.proj", image, stride=config.patch_size)
    rows, cols = patches.shape[2:]
    patches = patches.flatten(2).transpose(1, 2)
    yield "patches", patches
    tokens = torch.cat([w["cls_token"].expand(len(image), -1, -1), patches], dim=1)
    tokens = tokens + _positions(w["pos_embed"], rows, cols, config)
    yield "embeddings", tokens
    states = [tokens]
    for i in range(config.backbone_config.num_hidden_layers):
        tokens = _block(w, f"blocks.{i}", tokens, config.backbone_config.num_attention_heads)
        states.append(tokens)
        yield f"block {i}", tokens
    taps = [_norm(w, "norm", states[index]) for index in config.backbone_config.out_indices]
    for i, tap in enumerate(taps):
        yield f"tap {i}", tap

    levels = []
    for i, tap in enumerate(taps):
        maps = _conv(w, f"head.projects.{i}", tap[:, 1:].transpose(1, 2).unflatten(2, (rows, cols)))
        if i in (0, 1):
            kernel, bias = w[f"head.resize_layers.{i}.weight"], w[f"head.resize_layers.{i}.bias"]
            maps = F.conv_transpose2d(maps, kernel, bias, stride=kernel.shape[-1])
        elif i == 3:
            maps = _conv(w, "head.resize_layers.3", maps, stride=2, padding=1)
        yield f"reassembled {i}", maps
        levels.append(F.conv2d(maps, w[f"head.layer{i + 1}_rn.weight"], padding=1))
        yield f"lateral {i}", levels[i]

    # From coarse to fine. The file counts refinenets from the finest level.
    for i in range(4):
        name, level = f"head.refinenet{4 - i}", levels[3 - i]
        maps = maps + _residual(w, f"{name}.resConfUnit1", level) if i else level
        maps = _residual(w, f"{name}.resConfUnit2", maps)
        size = levels[2 - i].shape[2:] if i < 3 else [2 * side for side in level.shape[2:]]
        maps = _conv(w, f"{name}.out_conv", _enlarge(maps, size))
        yield f"fused {i}", maps

    maps = _conv(w, "head.output_conv1", maps, padding=1)
    maps = F.relu(_conv(w, "head.output_conv2.0", _enlarge(maps, image.shape[2:]), padding=1))
    depth = _conv(w, "head.output_conv2.2", maps)[:, 0]
    yield "depth", torch.sigmoid(depth) * config.max_depth if config.is_metric else F.relu(depth)


def _positions(table: torch.Tensor, rows: int, cols: int, config: DepthAnythingConfig) -> torch.Tensor:
    side = round((table.shape[1] - 1) ** 0.5)
    if rows == cols == side:
        return table
    maps = table[:, 1:].transpose(1, 2).unflatten(2, (side, side)).float()
    how: dict[str, Any] = {"size": (rows, cols)}
    if offset := config.backbone_config.interpolate_offset:
        how = {"scale_factor": ((rows + offset) / side, (cols + offset) / side)}
    maps = F.interpolate(maps, mode="bicubic", **how).to(table.dtype)
    return torch.cat([table[:, :1], maps.flatten(2).transpose(1, 2)], dim=1)


def _block(w: Tensors, name: str, tokens: torch.Tensor, heads: int) -> torch.Tensor:
    both = _linear(w, f"{name}.attn.qkv", _norm(w, f"{name}.norm1", tokens))
    query, key, value = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in both.chunk(3, dim=2))
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    tokens = tokens + w[f"{name}.ls1.gamma"] * _linear(w, f"{name}.attn.proj", mixed)
    normed = _norm(w, f"{name}.norm2", tokens)
    if f"{name}.mlp.w12.weight" in w:
        gate, up = _linear(w, f"{name}.mlp.w12", normed).chunk(2, dim=2)
        update = _linear(w, f"{name}.mlp.w3", F.silu(gate) * up)
    else:
        update = _linear(w, f"{name}.mlp.fc2", F.gelu(_linear(w, f"{name}.mlp.fc1", normed)))
    return tokens + w[f"{name}.ls2.gamma"] * update


def _residual(w: Tensors, name: str, maps: torch.Tensor) -> torch.Tensor:
    inner = _conv(w, f"{name}.conv1", F.relu(maps), padding=1)
    return maps + _conv(w, f"{name}.conv2", F.relu(inner), padding=1)


def _enlarge(maps: torch.Tensor, size: Any) -> torch.Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def _norm(w: Tensors, name: str, tokens: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], _EPS)


def _linear(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _conv(w: Tensors, name: str, maps: torch.Tensor, **how: int) -> torch.Tensor:
    return F.conv2d(maps, w[f"{name}.weight"], w[f"{name}.bias"], **how)
