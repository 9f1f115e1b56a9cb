"""Every stage of Transformers' model, on a file with Transformers' names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import DepthAnythingConfig as TheirConfig
from transformers import DepthAnythingForDepthEstimation
from transformers.utils import logging

from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError, WeightsError
from dajax.weights.checkpoint_files import TRANSFORMERS_FILES, Files, find_shards

from .verify_state import read_state

# Module -> the stage that its output is.
_STAGES = {
    r"backbone\.embeddings\.patch_embeddings": "patches",
    r"backbone\.embeddings": "embeddings",
    r"backbone\.encoder\.layer\.(\d+)": r"block \1",
    r"neck\.reassemble_stage\.layers\.(\d+)": r"reassembled \1",
    r"neck\.convs\.(\d+)": r"lateral \1",
    r"neck\.fusion_stage\.layers\.(\d+)": r"fused \1",
    r"head": "depth",
}
# What training scripts put before the names of Transformers.
_WRAPPERS = re.compile(r"^.*?\.(?=(?:backbone|neck|head)\.)|_orig_mod\.")


def transformers_stages(
    files: Files,
    given: DepthAnythingConfig | None,
    fallback: DepthAnythingConfig,
    pixels: np.ndarray,
    dtype: torch.dtype,
    rounded_to: torch.dtype | None,
) -> dict[str, np.ndarray]:
    """Return {stage: its output, channels last}.

    Args:
        files: the checkpoint.
        given: instead of the checkpoint's config.json.
        fallback: what dajax takes the checkpoint for, where there is no config.json.
        pixels: float [batch, height, width, 3], normalised.
        dtype: what is computed in.
        rounded_to: round the weights to this type first.

    Raises:
        WeightsError: Transformers finds tensors missing, left over or of another shape.
        ConfigError: position embeddings are to be resampled as Transformers does not.
    """
    if fallback.backbone_config.interpolate_offset:
        raise ConfigError(
            "Transformers resamples position embeddings in its own way: verify this checkpoint with style huggingface"
        )
    model = _load(files, given, fallback, dtype)
    if rounded_to is not None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(rounded_to).to(dtype)
    found: dict[str, np.ndarray] = {}

    def keep(stage: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            found[stage] = (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).numpy()

        return hook

    def keep_taps(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        found.update({f"tap {i}": tap.numpy() for i, tap in enumerate(inputs[0])})

    model.neck.register_forward_pre_hook(keep_taps)
    for name, module in model.named_modules():
        for pattern, stage in _STAGES.items():
            if match := re.fullmatch(pattern, name):
                module.register_forward_hook(keep(match.expand(stage)))
    with torch.inference_mode():
        model(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(dtype))
    return found


def _load(
    files: Files, given: DepthAnythingConfig | None, fallback: DepthAnythingConfig, dtype: torch.dtype
) -> DepthAnythingForDepthEstimation:
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    folder = files.weights.parent if files.config is not None and files.weights.name in TRANSFORMERS_FILES else None
    if given is not None:
        options["config"] = _as_theirs(given)
    elif folder is None:
        options["config"] = _as_theirs(fallback) if files.config is None else TheirConfig.from_pretrained(files.config)
    if folder is None:  # under another name than theirs, or as a training script left it
        state = read_state(find_shards(files.weights))
        options["state_dict"] = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    with _no_progress_bar():
        loaded: Any = DepthAnythingForDepthEstimation.from_pretrained(folder, **options)
    model, info = loaded
    problems = [
        f"{key.removesuffix('_keys')}: {name}"
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for name in sorted(map(str, info[key]))
    ]
    if problems:
        raise WeightsError("\n  ".join([f"{files.weights} does not fit Transformers' model:", *problems[:100]]))
    return model.eval()


def _as_theirs(config: DepthAnythingConfig) -> TheirConfig:
    return TheirConfig(**config.to_dict())


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
