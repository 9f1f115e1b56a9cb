"""dajax against stored results of Transformers in float64: the same proof where PyTorch is not installed.

tests/parity/make_references.py writes the data, tests/parity/test_references.py holds it against today's Transformers.
"""

import json
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import CASES, IMAGES, LAYER_BY_LAYER, PIPELINE, thinned
from quick_compilation import quick_compilation
from seeded import error, make_image, pixels, write_checkpoint

import dajax

DATA = Path(__file__).parent / "data"
QUICK = ("tiny-70x70", "tiny-56x84", "tiny-metric-70x70", "tiny-swiglu-70x70", "small-518x518")
SIZES = [
    pytest.param(name, size, id=f"{name}-{size[0]}x{size[1]}") for name, (_, sizes) in CASES.items() for size in sizes
]
# Float32 is compiled as users compile it, which takes long: one or two sizes of a program say it.
IN_FLOAT32 = [
    pytest.param(*case.values, id=case.id, marks=[] if case.id in QUICK else pytest.mark.slow) for case in SIZES
]
TINY_SIZES = [case for case in SIZES if case.values[0].startswith("tiny")]
# float64 against float64: what is left is rounding. Where position embeddings are resampled both do that in float32.
EXACT, RESAMPLED = 1e-11, 2e-6
FLOAT32 = 5e-5

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


@cache
def stored() -> dict:
    with np.load(DATA / "references.npz") as arrays:
        return dict(arrays)


@cache
def shapes() -> dict:
    return json.loads((DATA / "shapes.json").read_text())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")

    @cache
    def checkpoint(name: str) -> Path:
        return write_checkpoint(folder / name, CASES[name][0].to_dict(), shapes()[name])

    return checkpoint


def run(checkpoint: Path, size, dtype: str, **options):
    model, params = dajax.load(checkpoint, dtype=dtype)
    forward = jax.jit(lambda params, pixels: model.apply({"params": params}, pixels, **options))
    # float32 runs as users run it; float64 asks what is computed.
    with nullcontext() if dtype == "float32" else quick_compilation():
        return forward(params, jax.numpy.asarray(pixels(*size), dtype))


def bound(name: str, size) -> float:
    grid = CASES[name][0].backbone_config.grid_size
    return EXACT if size == (14 * grid, 14 * grid) else RESAMPLED


@pytest.mark.parametrize(("name", "size"), IN_FLOAT32)
def test_float32_is_within_its_bound_of_float64(checkpoints, name, size):
    depth = run(checkpoints(name), size, "float32").predicted_depth
    assert depth.dtype == np.float32
    assert depth.shape == (1, *size)
    found = error(thinned(name, np.asarray(depth)), stored()[f"{name}/{size[0]}x{size[1]}/depth"])
    assert found <= FLOAT32, f"largest error {found:.1e} of the deviation"


@pytest.mark.parametrize(("name", "size"), TINY_SIZES)
def test_float64_equals_float64(checkpoints, name, size):
    with enable_x64(True):
        depth = np.asarray(run(checkpoints(name), size, "float64").predicted_depth)
    found = error(depth, stored()[f"{name}/{size[0]}x{size[1]}/depth"])
    assert found <= bound(name, size), f"largest error {found:.1e} of the deviation"


@pytest.mark.parametrize("name", LAYER_BY_LAYER)
def test_every_layer_equals_its_reference(checkpoints, name):
    size = LAYER_BY_LAYER[name]
    with enable_x64(True):
        output = run(checkpoints(name), size, "float64", output_hidden_states=True, output_attentions=True)
    for what in ("hidden_states", "attentions"):
        expected = stored()[f"{name}/{size[0]}x{size[1]}/{what}"]
        got = getattr(output, what)
        assert len(got) == len(expected)
        for layer, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
            found = error(mine, theirs)
            assert found <= bound(name, size), f"{what} of layer {layer}: {found:.1e} of the deviation"


@pytest.mark.parametrize("size", IMAGES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_processor_gives_the_stored_pixels(size):
    values = dajax.DepthImageProcessor()(make_image(*size))["pixel_values"]
    expected = stored()[f"processor/{size[0]}x{size[1]}"]
    target = tuple(stored()[f"processor/{size[0]}x{size[1]}/size"])
    assert values.shape[1:3] == target, f"resized to {values.shape[1:3]}, not {target}"
    assert values.dtype == np.float32
    found = np.abs(values[0, ::13, ::13] - expected).max()
    assert found <= 1e-6, f"largest difference {found:.1e}"


@pytest.mark.parametrize("size", PIPELINE, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pipeline_gives_the_stored_maps(checkpoints, size):
    pipe = dajax.pipeline("depth-estimation", model=checkpoints("tiny"))
    result = pipe(make_image(*size))
    key = f"pipeline/{size[0]}x{size[1]}"
    found = error(result["predicted_depth"], stored()[f"{key}/predicted_depth"])
    levels = np.abs(np.asarray(result["depth"], int) - stored()[f"{key}/depth"].astype(int)).max()
    assert found <= 2e-4, f"largest error {found:.1e} of the deviation"  # of float32, at up to 518x924
    assert levels <= 1
