"""Transformers' side of the comparisons."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation


def checkpoint_shapes(config: dict) -> dict:
    """Names and shapes of the tensors that Transformers writes for a config."""
    with tempfile.TemporaryDirectory() as folder:
        DepthAnythingForDepthEstimation(DepthAnythingConfig(**config)).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


def load_reference(folder: Path, dtype=torch.float64) -> DepthAnythingForDepthEstimation:
    """Transformers' model, with eager attention, which can return its weights."""
    model, info = DepthAnythingForDepthEstimation.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def run(model, pixels_bhwc: np.ndarray, **options):
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        return model(torch.from_numpy(pixels_bhwc.transpose(0, 3, 1, 2).copy()).to(dtype), **options)
