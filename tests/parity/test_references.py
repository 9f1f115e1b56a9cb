"""The stored references are what Transformers gives today."""

import json
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from make_references import references
from seeded import error

# They compute everything again. tests/parity/test_model.py compares with Transformers directly.
pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[1] / "references" / "data"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return references(tmp_path_factory.mktemp("checkpoints"))


def test_tensor_names_are_those_of_transformers(fresh):
    assert json.loads((DATA / "shapes.json").read_text()) == fresh[1]
    assert set(fresh[1]) == set(CASES)


def test_arrays_are_those_of_transformers(fresh):
    with np.load(DATA / "references.npz") as stored:
        assert set(stored) == set(fresh[0])
        # Small and the pipeline's maps are kept in float32.
        bounds = {"small": 1e-6, "pipeline": 1e-6, "processor": 1e-6}
        found = {key: error(stored[key], fresh[0][key]) for key in stored}
    wrong = {key: value for key, value in found.items() if not value <= bounds.get(key.split("/")[0], 1e-9)}
    assert not wrong, wrong
