"""Style "official" from image to map, against the authors' recipe in float64, stored by tests/parity."""

import json
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from official_cases import NAME, SIZES, stark, thinned
from seeded import error, write_checkpoint

import dajax

DATA = Path(__file__).parent / "data"
BOUND = 1e-4
IDS = [f"{height}x{width}" for height, width in SIZES]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    shapes = json.loads((DATA / "shapes.json").read_text())[NAME]
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints"), CASES[NAME][0].to_dict(), shapes)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
def test_image_to_map(checkpoint, size):
    with np.load(DATA / "official.npz") as maps:
        expected = maps[f"{size[0]}x{size[1]}"]
    depth = dajax.DepthEstimator(checkpoint, style="official")(stark(*size))
    assert depth.shape == size
    found = error(thinned(depth), expected)
    print(f"{found:.1e} of the deviation from float64")
    assert found <= BOUND, f"largest error {found:.1e} of the deviation"
