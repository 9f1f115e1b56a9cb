"""The loop: killed at any moment, it gives what an undisturbed one gives."""

import os
import re
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from environment import as_here

from dajax.errors import JobError
from dajax.training import run_checkpoints as checkpoints_module
from dajax.training.log import read_log
from dajax.training.loop import run_training_loop
from dajax.training.run_checkpoints import RunCheckpoints
from dajax.training.step import TrainState

OPTIMIZER = optax.adam(1e-2)


def start():
    return TrainState.create({"w": jnp.arange(6.0), "b": {"c": jnp.ones((2, 3))}}, OPTIMIZER, ema=True)


def step(state, batch):
    """A model of one layer: the loop knows none."""

    def loss(params):
        return ((params["w"] - batch["x"]) ** 2).sum() + (params["b"]["c"] * batch["x"].sum()).sum()

    value, gradients = jax.value_and_grad(loss)(state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = jax.tree.map(lambda mean, new: 0.9 * mean + 0.1 * new, state.ema, params)
    return TrainState(state.step + 1, params, opt_state, ema), {
        "loss": value,
        "grad_norm": jnp.abs(gradients["w"]).max(),
    }


def batch_of(number):
    return {"x": np.random.default_rng(number).standard_normal(6).astype(np.float32)}


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def trained(output, steps=20, **options):
    return run_training_loop(step, start(), batch_of, output, steps=steps, save_every=5, progress=False, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    return trained(output), list(read_log(output / "log.csv"))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moments", [(1,), (4, 5, 6), (9, 9, 9), (7, 11, 19), (0, 0)])
def test_stopped_and_started_again(tmp_path, undisturbed, moments):
    for moment in moments:

        def killing(number, moment=moment):
            if number == moment:
                raise Killed
            return batch_of(number)

        with pytest.raises(Killed):
            run_training_loop(step, start(), killing, tmp_path, steps=20, save_every=5, progress=False)
    assert same(trained(tmp_path), undisturbed[0])
    assert list(read_log(tmp_path / "log.csv")) == undisturbed[1]
    assert [row["step"] for row in undisturbed[1]] == list(range(1, 21))


PROCESS = """
import sys; sys.path[:0] = {paths!r}
from test_loop import *
import time
print("ready", flush=True)
slow = lambda n: (time.sleep(0.05), batch_of(n))[1]
run_training_loop(step, start(), slow, {output!r}, steps={steps}, save_every=4, progress=False)
"""


@pytest.mark.parametrize(
    ("times", "steps"),
    [pytest.param(2, 60, marks=pytest.mark.slow), pytest.param(20, 500, marks=pytest.mark.very_slow)],
)
def test_killed_at_random(tmp_path, times, steps):
    """By a signal that cannot be caught, at any moment of a run: restoring, stepping, saving."""
    undisturbed = run_training_loop(
        step, start(), batch_of, tmp_path / "undisturbed", steps=steps, save_every=4, progress=False
    )
    here, output = Path(__file__).parent, tmp_path / "killed"
    paths = [str(here), str(here.parent), str(here.parents[1])]
    code = PROCESS.format(paths=paths, output=str(output), steps=steps)
    rng = np.random.default_rng(0)
    reached = []
    for _ in range(times):
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=as_here()
        ) as process:
            assert process.stdout.readline() == b"ready\n"
            while not reached and not list(read_log(output / "log.csv")):
                time.sleep(0.05)  # once at least, something was done before the kill
            time.sleep(rng.uniform(0, 2))
            assert process.poll() is None, "it ended by itself: nothing was killed"
            process.kill()
        reached.append(max((row["step"] for row in read_log(output / "log.csv")), default=0))
    print(reached)
    assert 0 < reached[-1] < steps
    assert same(
        run_training_loop(step, start(), batch_of, output, steps=steps, save_every=4, progress=False), undisturbed
    )
    logs = [list(read_log(folder / "log.csv")) for folder in (output, tmp_path / "undisturbed")]
    assert logs[0] == logs[1]
    assert len(logs[0]) == steps


@pytest.mark.parametrize("tail", [b"", b"1", b"11,", b"11,0.5", b"11,0.5,0.2", b"11,0.5,0.2\r\n12,"])
def test_a_torn_log_is_mended(tmp_path, undisturbed, tail):
    """What a killed process leaves behind the rows that belong to its last state."""
    trained(tmp_path, steps=10)
    with (tmp_path / "log.csv").open("ab") as log:
        log.write(tail)
    trained(tmp_path)
    assert list(read_log(tmp_path / "log.csv")) == undisturbed[1]


def test_a_loss_that_is_not_finite_stops(tmp_path):
    def poisoned(number):
        batch = batch_of(number)
        if number == 7:
            batch["x"][2] = np.nan
        return batch

    with pytest.raises(JobError, match=r"step 8: the loss is nan .*not_finite\.npz.* after 5 steps is whole"):
        run_training_loop(step, start(), poisoned, tmp_path, steps=20, save_every=5, progress=False)
    saved = np.load(tmp_path / "not_finite.npz")
    assert saved["step"] == 8
    np.testing.assert_array_equal(saved["x"], poisoned(7)["x"])
    assert len(list(read_log(tmp_path / "log.csv"))) == 7
    manager = RunCheckpoints(tmp_path / "checkpoints")
    assert manager.latest() == 5
    state, data = manager.restore(start())
    manager.close()
    assert int(state.step) == data["next_step"] == 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


# Beyond it the kernel refuses to write, as it does when a disk is full.
FILE_LIMIT = 100_000


def large_state(step):
    """Noise, which does not compress: its leaves take 160 kB each."""
    noise = jnp.asarray(np.random.default_rng(0).standard_normal(40_000), jnp.float32)
    state = start()
    return state.replace(
        step=jnp.asarray(step), ema=state.ema | {"noise": noise}, params=state.params | {"noise": noise}
    )


def save_beyond_the_limit(directory):
    """Run in a process of its own: a failed save leaves coroutines in orbax, which complain at any later moment."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
    try:
        RunCheckpoints(Path(directory)).save(large_state(10), {"next_step": 10})
    except JobError as error:
        print(error, flush=True)
        os._exit(7)


def test_a_state_that_cannot_be_written_leaves_the_earlier_one(tmp_path):
    manager = RunCheckpoints(tmp_path)
    manager.save(large_state(5), {"next_step": 5})
    manager.close()
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import test_loop; test_loop.save_beyond_the_limit({str(tmp_path)!r})"
    )
    stopped = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert stopped.returncode == 7, stopped.stderr
    assert re.search(r"step 10 could not be saved .*; the newest state there is 5", stopped.stdout)
    manager = RunCheckpoints(tmp_path)
    assert manager.latest() == 5
    state, data = manager.restore(large_state(0))
    assert same(state, large_state(5))
    assert data == {"next_step": 5}
    # With room again it goes on.
    manager.save(large_state(10), {"next_step": 10})
    assert manager.latest() == 10
    manager.close()


def test_a_log_that_cannot_be_written_stops(tmp_path):
    trained(tmp_path, steps=5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "log.csv").stat().st_size + 100, before[1]))
    try:
        with pytest.raises(JobError, match=r"log\.csv.* cannot be written \(File too large\)"):
            trained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    trained(tmp_path)
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == list(range(1, 21))


def test_a_state_of_another_model_is_refused(tmp_path):
    trained(tmp_path, steps=5)
    other = TrainState.create({"w": jnp.arange(7.0), "b": {"c": jnp.ones((2, 3))}}, OPTIMIZER, ema=True)
    with pytest.raises(JobError, match=r"step 5 .*another model or optimizer"):
        run_training_loop(step, other, batch_of, tmp_path, steps=20, progress=False)


def test_a_damaged_state_is_named(tmp_path):
    trained(tmp_path, steps=5)
    for path in (tmp_path / "checkpoints" / "5" / "leaves").iterdir():
        path.write_bytes(b"{")
    with pytest.raises(JobError, match=r"step 5 .* cannot be restored: it is damaged"):
        trained(tmp_path)


def test_validation_is_called_on_time(tmp_path):
    def validate(state, done):
        assert int(state.step) == done
        return {"score": done / 4}

    trained(tmp_path, steps=7, validate_every=5, validate=validate)
    trained(tmp_path, steps=12, validate_every=5, validate=validate)
    rows = list(read_log(tmp_path / "validation.csv"))
    assert rows == [{"step": done, "score": done / 4} for done in (5, 7, 10, 12)]


def test_it_says_that_it_compiles_and_how_far_it_is(tmp_path, capsys, monkeypatch):
    """This is for a pipe: pytest's standard error is not a terminal."""
    monkeypatch.setattr("dajax.progress.LINE_EVERY_S", 0.0)
    run_training_loop(step, start(), batch_of, tmp_path, steps=2)
    compiles, first, second = capsys.readouterr().err.splitlines()
    assert compiles == "dajax train: compiling the training step (seconds on a GPU, up to some minutes on a CPU)"
    assert first.startswith("dajax train: 1 of 2 steps, ")
    last = list(read_log(tmp_path / "log.csv"))[-1]
    assert second.startswith("dajax train: 2 of 2 steps, ")
    assert second.endswith(f"loss {last['loss']:.4f}")
    run_training_loop(step, start(), batch_of, tmp_path, steps=2)
    run_training_loop(step, start(), batch_of, tmp_path, steps=3, progress=False)
    assert capsys.readouterr().err == ""


def test_without_orbax_the_extra_is_named(tmp_path, monkeypatch):
    from dajax.errors import ConfigError

    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    monkeypatch.setitem(sys.modules, "orbax", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[train\]'"):
        checkpoints_module.RunCheckpoints(tmp_path)


@pytest.mark.parametrize(("mask", "labels", "warns"), [(True, 1, True), (False, 1, False), (True, 0, False)])
def test_a_gradient_of_zero_is_noticed(tmp_path, mask, labels, warns):
    """A dead model, labels that are masked, and labels that it predicts."""

    def dead(state, batch):
        loss = jnp.mean(batch["labels"])
        return state.replace(step=state.step + 1), {"loss": loss, "grad_norm": jnp.zeros(())}

    def batch_of(number):
        return {"mask": np.full((1, 2, 2), mask), "labels": np.full((1, 2, 2), labels, np.float32)}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_training_loop(dead, start(), batch_of, tmp_path, steps=3, progress=False)
    said = [str(warning.message) for warning in caught if "every gradient is exactly 0" in str(warning.message)]
    assert len(said) == warns
    assert not warns or said[0].startswith("step 1: every gradient is exactly 0, although the mask is not empty")
