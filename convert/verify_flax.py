"""Every stage of the Flax model, captured as it runs."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from dajax.config import DepthAnythingConfig
from dajax.kernels.reference import upsample
from dajax.model.depth_anything import DepthAnything
from dajax.model.dpt import Level

# Modules whose outputs are stages, or hold some.
_CAPTURED = re.compile(
    r"backbone|backbone/embeddings/patch_embeddings|neck|neck/(?:reassemble|conv)_\d+|head", re.ASCII
)


def stage_names(config: DepthAnythingConfig) -> list[str]:
    """Return the stages from pixels to depth. They are numbered from 0, as in the paths of params."""
    blocks, levels = range(config.backbone_config.num_hidden_layers), range(len(config.neck_hidden_sizes))
    return [
        "patches", "embeddings", *(f"block {i}" for i in blocks), *(f"tap {i}" for i in levels),
        *(f"{kind} {i}" for kind in ("reassembled", "lateral", "fused") for i in levels), "depth",
    ]  # fmt: skip


def flax_stages(model: DepthAnything, params: Any, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return {stage: its output, channels last}, computed with full precision.

    Args:
        model: computes in its own dtype.
        params: as from `dajax.load`.
        pixels: float [batch, height, width, 3], normalised.
    """
    with jax.default_matmul_precision("highest"):
        captured = _run(model, params, pixels)
    (encoded,) = captured["backbone"]["__call__"]
    (patches_bhwd,) = captured["backbone"]["embeddings"]["patch_embeddings"]["__call__"]
    embeddings, *blocks = encoded.hidden_states
    levels = range(len(model.config.neck_hidden_sizes))
    found = {
        "patches": patches_bhwd.reshape(len(pixels), -1, patches_bhwd.shape[-1]),
        "embeddings": embeddings,
        **{f"block {i}": block for i, block in enumerate(blocks)},
        **{f"tap {i}": tap for i, tap in enumerate(encoded.taps)},
        **{f"reassembled {i}": _enlarged(captured["neck"][f"reassemble_{i}"]["__call__"][0], model) for i in levels},
        **{f"lateral {i}": captured["neck"][f"conv_{i}"]["__call__"][0] for i in levels},
        # PyTorch's stage ends after the enlargement.
        **{f"fused {i}": captured["neck"]["__call__"][0][i].enlarged() for i in levels},
        "depth": captured["head"]["__call__"][0],
    }
    return {stage: np.asarray(output) for stage, output in found.items()}


def _enlarged(level: Level, model: DepthAnything) -> Any:
    """Return the level as PyTorch has it: enlarged before the lateral convolution."""
    if level.upsampling is None:
        return level.features_bhwc
    return upsample(level.features_bhwc, level.upsampling, model.dtype)


@partial(jax.jit, static_argnums=0)
def _run(model: DepthAnything, params: Any, pixels: Any) -> Any:
    _, state = model.apply(
        {"params": params}, pixels, capture_intermediates=_is_captured, mutable=["intermediates"]
    )  # fmt: skip
    return state["intermediates"]


def _is_captured(module: nn.Module, method: str) -> bool:
    return method == "__call__" and _CAPTURED.fullmatch("/".join(module.path)) is not None
