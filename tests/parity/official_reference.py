"""The authors' recipe from image to map, recomputed in float64 without dajax.

OpenCV resizes the image, Transformers' float64 model is the network, numpy resizes the map back. Their code resamples
the position embeddings in float32 whatever the model's type is; that is float32's rounding like any other of theirs, so
here it is float64 too. `python tests/parity/official_reference.py` writes tests/references/data/official.npz.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "references"), str(TESTS / "parity")]

from cases import CASES  # noqa: E402
from official_cases import NAME, SIZES, stark, thinned  # noqa: E402
from reference import checkpoint_shapes, load_reference, run  # noqa: E402
from seeded import write_checkpoint  # noqa: E402

DATA = TESTS / "references" / "data" / "official.npz"


def official_pixels(image: np.ndarray) -> np.ndarray:
    """An RGB image, uint8, to the network's pixels, float64."""
    scale = 518 / min(image.shape[:2])
    height, width = (max(518, 14 * round(scale * side / 14)) for side in image.shape[:2])
    resized = cv2.resize(image / 255.0, (width, height), interpolation=cv2.INTER_CUBIC)
    return (resized - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


def load_official(folder: Path, positions=torch.float64):
    """Transformers' float64 model with position embeddings resampled as the authors do, in the type `positions`."""
    model = load_reference(folder)
    embeddings = model.backbone.embeddings

    def interpolate(tokens, height, width):
        table = embeddings.position_embeddings
        grid = round((table.shape[1] - 1) ** 0.5)
        rows, cols = height // 14, width // 14
        if rows == cols == grid:
            return table
        maps = table[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2).to(positions)
        factors = ((rows + 0.1) / grid, (cols + 0.1) / grid)
        resampled = torch.nn.functional.interpolate(maps, scale_factor=factors, mode="bicubic")
        assert resampled.shape[2:] == (rows, cols)
        return torch.cat((table[:, :1], resampled.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)), dim=1)

    embeddings.interpolate_pos_encoding = interpolate
    return model


def official_map(model, image: np.ndarray) -> np.ndarray:
    """Depth in the image's size, float64: linear between pixels, the corners' centres kept in place."""
    depth = run(model, official_pixels(image)[None]).predicted_depth[0].numpy()
    for axis, size in enumerate(image.shape[:2]):
        known, wanted = np.arange(depth.shape[axis]), np.linspace(0, depth.shape[axis] - 1, size)
        depth = np.apply_along_axis(partial(np.interp, wanted, known), axis, depth)
    return depth


def references(folder: Path) -> dict[str, np.ndarray]:
    """Every map that is stored, thinned."""
    config = CASES[NAME][0].to_dict()
    model = load_official(write_checkpoint(folder / NAME, config, checkpoint_shapes(config)))
    return {f"{size[0]}x{size[1]}": thinned(official_map(model, stark(*size))) for size in SIZES}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        maps = references(Path(folder))
    np.savez_compressed(DATA, **{key: depth.astype(np.float32) for key, depth in maps.items()})
    print(f"{len(maps)} maps, {DATA.stat().st_size / 1e3:.0f} kB")
    for key, depth in maps.items():
        print(f"  {key}: mean {depth.mean():.2f}, deviation {depth.std():.2f}")


if __name__ == "__main__":
    main()
