"""Stored depth maps: what makes them, and what is noticed."""

import jax
import numpy as np
import pytest

import dajax
from dajax.errors import ConfigError
from dajax.inference import Agreement, check_device, self_check
from dajax.inference.self_check import BOUNDS, ROUNDED_BOUNDS, read_stored
from dajax.kernels import operations, reference, target

# Older versions of jax have it elsewhere.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


@pytest.fixture
def stored(monkeypatch):
    """A copy of what is stored, which a test may change."""
    copy = {name: array.copy() for name, array in read_stored().items()}
    monkeypatch.setattr(self_check, "read_stored", lambda: copy)
    return copy


@pytest.mark.parametrize("dtype", BOUNDS)
def test_this_device_is_right(dtype):
    found = check_device(dtype)
    assert found.is_within
    assert 0 < found.mean < found.largest
    assert (found.dtype, found.device, found.bounds) == (dtype, "cpu", BOUNDS[dtype])
    assert 0 < found.seconds < 60
    if dtype != "float32":  # it is what was computed
        assert found.mean > 3 * BOUNDS["float32"][0]


@pytest.mark.parametrize(("platform", "dtype"), [("cuda", "bfloat16"), ("tpu", "bfloat16"), ("tpu", "float32")])
def test_other_platforms_are_right(platform, dtype):
    """As they compute it, on this machine."""
    with target(platform, interpreted=platform == "tpu"):
        found = check_device(dtype)
        assert found.is_within
        assert found.bounds == (ROUNDED_BOUNDS if dtype == "bfloat16" else BOUNDS)[dtype]


def test_every_kernel_of_a_tpu_is_used():
    """What tiny does not use, the check does not show."""
    model, params = dajax.load("tiny", dtype="bfloat16")
    used = set()
    with target("tpu", interpreted=True), pytest.MonkeyPatch.context() as patch:
        choose = operations.choose

        def noted(operation, *arguments, **options):
            found = choose(operation, *arguments, **options)
            used.add((operation, found is getattr(reference, operation)))
            return found

        patch.setattr(operations, "choose", noted)
        for shape in ("landscape", "portrait"):
            pixels = dajax.DepthImageProcessor.from_pretrained("tiny")(read_stored()[f"{shape}_image"])["pixel_values"]
            jax.eval_shape(model.apply, {"params": params}, pixels)
    assert used >= {(row.operation, False) for row in operations.TABLE if row.platform == "tpu"}


def test_several_devices():
    found = check_device(mesh="local")
    assert found.is_within
    assert found.device == f"{jax.local_device_count()} x cpu"


def test_a_pixel_that_is_wrong(stored):
    depth = stored["portrait_depth"]
    depth[3, 5] += 1e-4 * depth.std()
    found = check_device()
    assert found.mean < BOUNDS["float32"][0]
    assert found.largest == pytest.approx(1e-4, rel=0.1)
    assert not found.is_within


def test_depth_that_is_no_number(stored):
    stored["landscape_depth"][0, 0] = np.nan
    assert not check_device().is_within


def test_an_error_everywhere():
    assert not Agreement("float32", "cpu", 2e-5, 2e-5, BOUNDS["float32"], 0.1).is_within


def test_other_types():
    with pytest.raises(ConfigError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        check_device("int8")


def test_the_stored_depth_is_that_of_float64():
    """In a computation of its own: the model applied to the processor's pixels, in float64."""
    stored = read_stored()
    processor = dajax.DepthImageProcessor.from_pretrained("tiny")
    with enable_x64(True):
        model, params = dajax.load("tiny", dtype="float64")
        for shape in ("landscape", "portrait"):
            pixels = processor(stored[f"{shape}_image"])["pixel_values"].astype(np.float64)
            assert pixels.shape[1:] == stored[f"{shape}_image"].shape
            depth = jax.jit(model.apply)({"params": params}, pixels).predicted_depth[0]
            np.testing.assert_allclose(stored[f"{shape}_depth"], depth, rtol=1e-6)
