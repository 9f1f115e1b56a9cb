"""The released sizes, whole maps, against Transformers in float64 (the judge) and in float32."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
import torch
from quick_compilation import quick_compilation
from reference import checkpoint_shapes, load_reference, run
from seeded import error, pixels, write_checkpoint
from tiny import tiny_swiglu_config

import dajax
from dajax import DepthAnythingConfig

SMALL_BOUNDS, LARGE_BOUNDS = (5e-5, 1e-4), (2e-4, 3e-4)  # against float64, against torch's float32
CASES = {
    # 28x36 patches, an even grid and smaller than the training grid; a single patch
    "small": (DepthAnythingConfig.small(), [(392, 504), (14, 14)], SMALL_BOUNDS),
    "small-metric": (DepthAnythingConfig.metric_indoor("small"), [(518, 518)], SMALL_BOUNDS),
    "v1-small": (DepthAnythingConfig.v1("small"), [(392, 518)], SMALL_BOUNDS),
    "base": (DepthAnythingConfig.base(), [(518, 518)], SMALL_BOUNDS),
    "large": (DepthAnythingConfig.large(), [(252, 350)], LARGE_BOUNDS),
    "tiny-swiglu": (tiny_swiglu_config(), [(70, 70), (84, 56)], SMALL_BOUNDS),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")

    @cache
    def get(name: str):
        config = CASES[name][0].to_dict()
        return write_checkpoint(folder / name, config, checkpoint_shapes(config))

    return get


# Run with: python -m pytest -m slow tests/parity/test_model.py
FURTHER = [
    ("small", (518, 518)),
    ("small", (518, 686)),
    ("small", (518, 784)),
    ("v1-small", (518, 686)),
    ("large", (392, 518)),
]


@pytest.mark.parametrize(
    ("name", "sizes"),
    # The others are the program of Small with other numbers, another activation or other taps.
    [
        pytest.param(name, case[1], id=name, marks=[] if name in ("small", "tiny-swiglu") else pytest.mark.slow)
        for name, case in CASES.items()
    ]
    + [
        pytest.param(
            name,
            [size],
            id=f"{name} {size[0]}x{size[1]}",
            marks=pytest.mark.very_slow if name == "large" else pytest.mark.slow,
        )
        for name, size in FURTHER
    ],
)
def test_whole_map(models, name, sizes):
    bound64, bound32 = CASES[name][2]
    model, params = dajax.load(models(name))
    forward = jax.jit(lambda params, pixels: model.apply({"params": params}, pixels).predicted_depth)
    mine = {size: np.asarray(forward(params, pixels(*size))) for size in sizes}
    reference = load_reference(models(name), torch.float32)
    single = {size: run(reference, pixels(*size)).predicted_depth.numpy() for size in sizes}
    reference.double()
    for size in sizes:
        judge = run(reference, pixels(*size)).predicted_depth.numpy()
        assert judge.std() > 0.1, "a flat map would agree with anything"
        found = error(mine[size], judge)
        direct = float(np.abs(mine[size] - single[size]).max() / judge.std())
        torchs = error(single[size], judge)
        print(
            f"{name} {size[0]}x{size[1]}: {found:.1e} from float64 (torch's own {torchs:.1e}), {direct:.1e} from torch"
        )
        assert found <= bound64, f"{size}: {found:.1e} of the deviation from float64"
        assert direct <= bound32, f"{size}: {direct:.1e} of the deviation from torch"


def test_every_hidden_state_and_attention_of_small(models):
    size = (196, 266)  # what a layer computes does not depend on it
    model, params = dajax.load(models("small"))
    options = {"output_hidden_states": True, "output_attentions": True}
    forward = jax.jit(lambda params, pixels: model.apply({"params": params}, pixels, **options))
    mine = forward(params, pixels(*size))
    judge = run(load_reference(models("small")), pixels(*size), **options)
    assert len(mine.hidden_states) == len(judge.hidden_states) == 13
    assert len(mine.attentions) == len(judge.attentions) == 12
    for layer, (got, expected) in enumerate(zip(mine.hidden_states, judge.hidden_states, strict=True)):
        found = error(got, expected.numpy())
        assert found <= 1e-4, f"hidden state {layer}: {found:.1e} of the deviation"
    for layer, (got, expected) in enumerate(zip(mine.attentions, judge.attentions, strict=True)):
        found = float(np.abs(np.asarray(got) - expected.numpy()).max() / expected.max())
        assert found <= 1e-5, f"attention of layer {layer}: {found:.1e} of the largest weight"


def test_initialisation_is_that_of_transformers(tmp_path):
    """Same constants, and the same deviation where it is random."""
    from safetensors.numpy import load_file
    from transformers import DepthAnythingConfig as TheirConfig
    from transformers import DepthAnythingForDepthEstimation

    config = DepthAnythingConfig.small(initializer_range=0.05)
    config = replace(
        config, backbone_config=replace(config.backbone_config, num_hidden_layers=3, out_indices=(0, 1, 2, 3))
    )
    DepthAnythingForDepthEstimation(TheirConfig(**config.to_dict())).save_pretrained(tmp_path / "theirs")
    model = dajax.DepthAnything(config)
    # The usual generator takes twice as long to compile.
    with quick_compilation():
        variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), pixels(28, 28))
    dajax.save(tmp_path / "mine", model, variables["params"])
    theirs, mine = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "mine"))
    assert theirs.keys() == mine.keys()
    for name, expected in theirs.items():
        if expected.std() == 0:
            np.testing.assert_array_equal(mine[name], expected, err_msg=name)
        else:
            tolerance = 6 / np.sqrt(2 * expected.size)
            assert abs(mine[name].std() / expected.std() - 1) < tolerance, (
                f"{name}: {mine[name].std()}, {expected.std()}"
            )
            assert abs(mine[name].mean()) < 6 * expected.std() / np.sqrt(expected.size), name


@pytest.mark.parametrize("grid", [(37, 49), (25, 37), (37, 56), (1, 1), (60, 20)])
@pytest.mark.parametrize("style", ["huggingface", "official"])
def test_positions_are_resampled_as_pytorch_does(grid, style):
    from dajax.model.dinov2 import resample_positions

    config = DepthAnythingConfig.small().with_style(style).backbone_config
    positions = np.random.default_rng(0).normal(size=(1, 37 * 37 + 1, 8)).astype(np.float32)
    maps = torch.from_numpy(positions[:, 1:].reshape(1, 37, 37, 8).transpose(0, 3, 1, 2).copy())
    # The authors' code passes scale factors of (n + 0.1) / 37, Transformers the size.
    how = {"size": grid} if style == "huggingface" else {"scale_factor": tuple((n + 0.1) / 37 for n in grid)}
    expected = torch.nn.functional.interpolate(maps, mode="bicubic", **how).numpy()
    assert expected.shape[2:] == grid
    got = np.asarray(resample_positions(jax.numpy.asarray(positions), config, *grid))
    found = np.abs(got[0, 1:].reshape(*grid, 8) - expected[0].transpose(1, 2, 0)).max()
    assert found <= 2e-5, found
    np.testing.assert_array_equal(got[:, 0], positions[:, 0])
