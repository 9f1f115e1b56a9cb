"""Checkpoints and inputs made from seeds alone: the same bytes on every machine, with and without PyTorch.

A freshly initialised model gives maps near zero, on which a wrong port agrees with a right one. Here every tensor is
drawn anew, so that maps have a mean and a deviation near one. Nothing of dajax is used: its tables of names are tested.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

# What every released checkpoint has.
PREPROCESSOR = {
    "image_processor_type": "DPTImageProcessor",
    "size": {"height": 518, "width": 518},
    "keep_aspect_ratio": True,
    "ensure_multiple_of": 14,
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def uniform(key: str, shape) -> np.ndarray:
    """Numbers of mean 0 and deviation 1, straight from the generator's bits: numpy may change its normal ones."""
    bits = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    return (bits.random(tuple(shape)) - 0.5) * np.sqrt(12)


def tensor(name: str, shape, seed: int = 0) -> np.ndarray:
    """One tensor of a checkpoint in Transformers' layout, float32."""
    unit = uniform(f"{seed}/{name}", shape)
    if name.endswith("lambda1"):
        value = 0.3 + 0.1 * unit
    elif name.endswith("bias"):
        value = 0.1 * unit + (1.0 if name == "head.conv3.bias" else 0.0)
    elif "norm" in name:
        value = 1 + 0.2 * unit
    elif name.endswith(("token", "position_embeddings")):
        value = 0.5 * unit
    else:
        value = np.sqrt(1.4 / np.prod(shape[1:])) * unit
    return value.astype(np.float32)


def write_checkpoint(directory: Path, config: dict, shapes: dict, seed: int = 0) -> Path:
    """Write a checkpoint directory with seeded tensors of these names and shapes."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    tensors = {name: tensor(name, shape, seed) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def pixels(height: int, width: int, batch: int = 1) -> np.ndarray:
    """Normalised pixels, float32 [batch, height, width, 3]."""
    return uniform(f"pixels {batch} {height} {width}", (batch, height, width, 3)).astype(np.float32)


def make_image(height: int, width: int) -> np.ndarray:
    """An image with edges, gradients and noise, uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (7 + 5 * c)) * np.cos(y / (11 + 3 * c)) for c in range(3)]
    edges = ((x // 23 + y // 17) % 2)[..., None]
    mix = (
        0.5
        + 0.22 * np.stack(waves, -1)
        + 0.15 * (edges - 0.5)
        + 0.06 * uniform(f"{height} {width}", (height, width, 3))
    )
    return np.clip(np.rint(mix * 255), 0, 255).astype(np.uint8)


def error(got, expected) -> float:
    """Largest difference over the whole map, in standard deviations of what is expected."""
    expected = np.asarray(expected, np.float64)
    return float(np.abs(np.asarray(got, np.float64) - expected).max() / max(expected.std(), 1e-30))
