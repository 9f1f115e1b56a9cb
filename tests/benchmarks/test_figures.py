"""What is computed from times and outputs."""

import numpy as np
import pytest

from benchmarks.figures import FLOAT32_BOUND, compare, merge, paired_ratio, quartiles

MACHINE = {"processor": "one", "threads": 2, "memory_gib": 8, "system": "Linux x86_64"}


def test_quartiles():
    assert quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == (2.0, 3.0, 4.0)


def test_rounds_that_are_slow_for_all_do_not_move_the_ratio():
    ours, theirs = [1.0, 1.0, 9.0, 9.0, 9.0], [2.0, 2.0, 18.0, 18.0, 18.0]
    assert paired_ratio(ours, theirs) == 0.5
    # Unpaired, one slow round more on one side would give another figure.
    assert paired_ratio([1.0, 1.0, 8.0], [2.0, 16.0, 16.0]) == 0.5


@pytest.fixture
def depth():
    return np.random.default_rng(0).normal(1, 3, (1, 14, 14)).astype(np.float32)


def test_errors_are_in_deviations_of_the_reference(depth):
    other = depth.copy()
    other[0, 3, 4] += 0.5 * depth.std()
    error = compare(other, depth, "bfloat16")
    assert error["max"] == pytest.approx(0.5, rel=1e-5)
    assert error["mean"] == pytest.approx(0.5 / depth.size, rel=1e-5)


def test_float32_outputs_that_differ_are_refused(depth):
    near, far = depth.copy(), depth.copy()
    near[0, 0, 0] += 0.9 * FLOAT32_BOUND * depth.std()
    far[0, 0, 0] += 1.1 * FLOAT32_BOUND * depth.std()
    compare(near, depth, "float32")
    compare(far, depth, "default")
    with pytest.raises(ValueError, match="deviations from dajax's"):
        compare(far, depth, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "default"])
def test_what_is_no_depth_map_is_refused(depth, dtype):
    broken = depth.copy()
    broken[0, 1, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        compare(broken, depth, dtype)
    with pytest.raises(ValueError, match="its depth map is"):
        compare(depth[0], depth, dtype)


def test_a_new_measurement_takes_the_place_of_its_kind_only():
    case = {"kind": "model", "size": "small", "image": "518x518", "batch": 1, "rows": []}
    results = merge(None, MACHINE, case)
    results = merge(results, MACHINE, case | {"kind": "jpeg"})
    results = merge(results, MACHINE, case | {"batch": 8})
    results = merge(results, MACHINE, case | {"rows": ["new"]})
    assert [(case["kind"], case["batch"], case["rows"]) for case in results["cases"]] == [
        ("model", 1, ["new"]),
        ("model", 8, []),
        ("jpeg", 1, []),
    ]
    with pytest.raises(ValueError, match="another machine"):
        merge(results, MACHINE | {"processor": "two"}, case)
