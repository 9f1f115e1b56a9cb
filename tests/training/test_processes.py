"""Several processes that train together: two on this machine, as Open MPI would start them."""

import itertools
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from environment import as_here
from flax.traverse_util import flatten_dict
from plain_scenes import plain_scenes
from tiny import single_config

import dajax
from dajax.training import batches
from dajax.training.batches import SceneBatches
from dajax.training.log import read_log
from dajax.training.train_settings import DataSettings, ModelSettings, OptimizerSettings, TrainSettings
from dajax.training.trainer import train

# What a process does that is preempted (it is gone at the batch `stop`), whose loss is NaN (as its labels of the batch
# `nan` are), or that is late (it makes its first params or its first batch only after so many seconds).
PROCESS = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from dajax.cli import main
from dajax.training import batches, trainer
stop, nan, late, plain, *arguments = sys.argv[1:]
if plain == "True":
    from plain_scenes import plain_scenes
    batches.render_scenes = plain_scenes
made, started = batches.SceneBatches.__call__, trainer.starting_point
def batch_of(self, number):
    if number == int(stop):
        os._exit(9)
    if number == 0:
        time.sleep(float(late))
    batch = made(self, number)
    return batch | {{"labels": batch["labels"] * float("nan")}} if number == int(nan) else batch
def starting_point(*settings):
    time.sleep(float(late))
    return started(*settings)
batches.SceneBatches.__call__ = batch_of
trainer.starting_point = starting_point
main(arguments)
"""
# Below the ports that systems give away by themselves, so that nobody takes one between the search and its use.
PORTS = itertools.cycle(range(21000 + os.getpid() % 1000, 31000, 7))


def settings(output):
    return TrainSettings(
        output=str(output), steps=4, loss="affine_invariant", save_every=2, validate_every=2, ema_decay=0.5,
        data=DataSettings(size=42, count=6, batch_size=4, validation=3),
        model=ModelSettings(config=single_config().to_dict()), optimizer=OptimizerSettings(learning_rate=1e-3),
    )  # fmt: skip


def write(path, settings):
    def lines(values, section=""):
        plain = {name: value for name, value in values.items() if not isinstance(value, dict) and value is not None}
        text = f"[{section}]\n" if section else ""
        for name, value in plain.items():
            text += f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n"
        for name, value in values.items():
            if isinstance(value, dict):
                text += lines(value, f"{section}.{name}".strip("."))
        return text

    path.write_text(lines(asdict(settings)))


def free_port():
    for port in PORTS:
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def together(*arguments, stop=-1, nan=-1, late=0, plain=True):
    """Run two processes with a device each; return their exit statuses, outputs and errors.

    The second one has the labels that are NaN, and is the late one.
    """
    port = free_port()
    environment = as_here() | {
        "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_CPU_DEVICES": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-c", PROCESS, str(stop), *((str(nan), str(late)) if rank else ("-1", "0")), str(plain),
                "train", *map(str, arguments),
            ],
            env=environment | {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], *zip(*told, strict=True)


@pytest.fixture
def place(tmp_path):
    write(tmp_path / "settings.toml", settings(tmp_path / "run"))
    return tmp_path


@pytest.mark.parametrize(
    "plain",
    [
        pytest.param(True, id="plain", marks=pytest.mark.slow),
        pytest.param(False, id="rendered", marks=pytest.mark.very_slow),
    ],
)
def test_two_processes_that_were_preempted_end_as_one_that_was_not(place, monkeypatch, plain):
    """The single process has two devices: the sum of two numbers is the same in either order."""
    if plain:
        monkeypatch.setattr(batches, "render_scenes", plain_scenes)
    alone = train(settings(place / "alone"), progress=False)
    statuses, _, errors = together(place / "settings.toml", "--distributed", stop=3, plain=plain)
    assert 0 not in statuses
    assert (place / "run" / "checkpoints" / "2").is_dir(), errors
    assert not (place / "run" / "model").exists()
    statuses, told, errors = together(place / "settings.toml", "--distributed", plain=plain)
    assert statuses == [0, 0], errors
    assert "4 steps; 3 held-out scenes: AbsRel" in told[0]
    assert "held-out" not in told[1]

    for name in ("log.csv", "validation.csv", "images/00000002.png", "images/00000004.png"):
        assert (place / "run" / name).read_bytes() == (place / "alone" / name).read_bytes(), name
    one, two = (flatten_dict(dajax.load(folder)[1], sep="/") for folder in (alone, place / "run" / "model"))
    for path, leaf in one.items():
        np.testing.assert_array_equal(two[path], leaf, err_msg=path)


@pytest.mark.very_slow
def test_a_process_may_be_late(place):
    """On CPUs a process waits 30 seconds for the others in its first collective operation. Compiling may be longer."""
    began = time.monotonic()
    statuses, _, errors = together(place / "settings.toml", "--distributed", late=40)
    assert statuses == [0, 0], errors
    assert time.monotonic() - began > 80


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_both_with_the_whole_batch_saved(place):
    statuses, _, errors = together(place / "settings.toml", "--distributed", nan=2)
    assert statuses[0] == 1
    assert statuses[1] != 0  # what it says is the same, unless the first was gone before
    assert "dajax train: step 3: the loss is nan" in errors[0]
    with np.load(place / "run" / "not_finite.npz") as saved:
        assert saved["pixel_values"].shape == (4, 42, 42, 3)
        assert np.isnan(saved["labels"]).all((1, 2)).tolist() == [False, False, True, True]
    assert [row["step"] for row in read_log(place / "run" / "log.csv")] == [1, 2]


@pytest.mark.slow
def test_each_process_makes_its_rows_of_the_same_batch():
    data = DataSettings(size=42, count=6, batch_size=4)
    whole = SceneBatches(data, is_metric=False)
    rows = [np.array([0, 1]), np.array([2, 3])]
    parts = [SceneBatches(data, is_metric=False, rows=own) for own in rows]
    for number in range(3):
        batch = whole(number)
        for own, part in zip(rows, parts, strict=True):
            for name, value in part(number).items():
                np.testing.assert_array_equal(value, batch[name][own])


def test_alone_there_are_no_others_to_find(place):
    result = subprocess.run(
        [sys.executable, "-m", "dajax", "train", "settings.toml", "--distributed"],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("dajax train: --distributed: jax finds no other processes (coordinator_address")
    assert not (place / "run").exists()
