"""What passes for equal. Without PyTorch: tests/parity has the runs."""

from functools import partial

import jax
import numpy as np
import pytest
from tiny import tiny_config

import dajax
from convert.verify import main, random_pixels, verify
from convert.verify_flax import flax_stages, stage_names
from convert.verify_table import BOUNDS, compare, first_failure, table
from dajax.errors import ConfigError, WeightsError
from dajax.weights.random import random_params

CONFIG = tiny_config()


def some_stages():
    values = np.random.default_rng(0).normal(size=(1, 4, 5))
    return {"patches": values, "block 0": 3 * values, "depth": values[0]}


def shifted(stages, stage, by):
    """Return the stages with one element of one of them moved by so many deviations."""
    moved = {name: value.copy() for name, value in stages.items()}
    moved[stage].flat[3] += by * moved[stage].std()
    return moved


def test_errors_are_in_deviations():
    stages = some_stages()
    rows = compare(list(stages), shifted(stages, "block 0", 0.5), stages)
    assert [row.stage for row in rows] == ["patches", "block 0", "depth"]
    assert [row.shape for row in rows] == [(1, 4, 5), (1, 4, 5), (4, 5)]
    assert rows[0].max_error == 0
    assert rows[1].max_error == pytest.approx(0.5)
    assert rows[1].mean_error == pytest.approx(0.5 / 20)


@pytest.mark.parametrize("stage", ["patches", "block 0", "depth"])
def test_just_within_and_just_over(stage):
    stages, bound = some_stages(), BOUNDS[stage.split()[0]]
    assert first_failure(compare(list(stages), shifted(stages, stage, 0.99 * bound), stages)) is None
    failure = first_failure(compare(list(stages), shifted(stages, stage, 1.01 * bound), stages))
    assert failure.stage == stage
    assert first_failure(compare(list(stages), shifted(stages, stage, 1.01 * bound), stages, slack=2)) is None


def test_the_first_failure_is_named():
    stages = some_stages()
    rows = compare(list(stages), shifted(shifted(stages, "block 0", 1), "depth", 1), stages)
    assert first_failure(rows).stage == "block 0"
    text = table(rows)
    assert text.endswith("FAILED: block 0 is the first stage over its bound")
    assert [line.split()[0] for line in text.splitlines() if line.endswith("OVER")] == ["block", "depth"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["found", "expected"])
def test_not_finite_fails(value, side):
    stages = some_stages()
    broken = {**stages, "block 0": stages["block 0"].copy()}
    broken["block 0"].flat[0] = value
    sides = (broken, stages) if side == "found" else (stages, broken)
    assert first_failure(compare(list(stages), *sides)).stage == "block 0"


def test_a_flat_stage_fails():
    """On a flat map any two models agree."""
    stages = {**some_stages(), "depth": np.ones((4, 5))}
    assert first_failure(compare(list(stages), stages, stages)).stage == "depth"


def test_other_shape():
    stages = some_stages()
    with pytest.raises(WeightsError, match=r"depth has shape \[5, 4\] in Flax and \[4, 5\] in PyTorch"):
        compare(list(stages), {**stages, "depth": stages["depth"].T}, stages)


@pytest.mark.slow
def test_stages_of_flax():
    model, params = dajax.DepthAnything(CONFIG), random_params(CONFIG)
    pixels = random_pixels(56, 84)
    stages = flax_stages(model, params, pixels)
    assert list(stages) == stage_names(CONFIG)
    assert {stage.split()[0] for stage in stages} == BOUNDS.keys()
    shapes = {stage: value.shape for stage, value in stages.items()}
    assert shapes["patches"] == (1, 24, 32)
    assert shapes["block 3"] == shapes["tap 0"] == (1, 25, 32)
    assert shapes["reassembled 0"] == (1, 16, 24, 8)
    assert shapes["lateral 3"] == (1, 2, 3, 16)
    assert shapes["fused 3"] == (1, 32, 48, 16)
    output = jax.jit(partial(model.apply, output_hidden_states=True))({"params": params}, pixels)
    np.testing.assert_allclose(stages["depth"], output.predicted_depth, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stages["block 1"], output.hidden_states[2], rtol=1e-4, atol=1e-4)


def test_styles_differ_from_the_embeddings_on():
    """The +0.1 of the authors' code is far over the bound."""
    hf, official = (
        flax_stages(dajax.DepthAnything(CONFIG.with_style(style)), random_params(CONFIG), random_pixels(56, 84))
        for style in ("huggingface", "official")
    )
    assert first_failure(compare(stage_names(CONFIG), hf, official)).stage == "embeddings"


def test_dajaxs_own_files_need_another_side(tmp_path):
    dajax.save(tmp_path / "flax", dajax.DepthAnything(CONFIG), random_params(CONFIG), format="flax")
    with pytest.raises(ConfigError, match="has dajax's own names"):
        verify(tmp_path / "flax")


def test_command_fails_with_a_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "nothing")])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"verify: {tmp_path / 'nothing'}")
