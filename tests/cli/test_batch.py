"""`dajax batch` as someone starts it on Friday and finds it on Monday."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from batch_jobs import make_images, outputs, rows
from tiny import tiny_config

import dajax
from dajax.batch.engine import Report
from dajax.cli import main
from dajax.cli.batch import _summary
from dajax.preprocessing.processor import DepthImageProcessor
from dajax.weights.random import random_params


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["batch", *map(str, arguments)])
    return ended.value.code, *capsys.readouterr()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = tiny_config()
    dajax.save(
        folder, dajax.DepthAnything(config), random_params(config, 0), processor=DepthImageProcessor(input_size=28)
    )
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def test_a_job(capsys, model, images, tmp_path):
    options = ("--model", model, "--write", "npy", "color", "--no-cache", "--batch-size", 4)
    status, out, err = run(capsys, images, tmp_path, *options)
    assert status == 3
    assert out.startswith("9 images in ")
    assert "3 left out, of 12; float32 on 2 x cpu" in out  # all devices that there are
    assert err.count("left out 'set1/bad") == 3
    assert len(outputs(tmp_path)) == 18
    progress = json.loads((tmp_path / ".dajax" / "progress.json").read_text())
    assert (progress["total"], progress["finished"], progress["running"]) == (12, 12, False)
    status, out, _ = run(capsys, images, tmp_path, *options)
    assert status == 3
    assert out.startswith("0 images")
    assert "12 by earlier runs" in out
    status, out, _ = run(capsys, images, tmp_path, "--verify")
    assert (status, out) == (0, "9 outputs are whole, 0 are lost, 3 images were left out\n")
    (tmp_path / "set0" / "image 0_depth.npy").unlink()
    status, out, err = run(capsys, images, tmp_path, "--verify")
    assert status == 3
    assert "8 outputs are whole, 1 are lost" in out
    assert "image 0_depth.npy is missing" in err
    status, out, err = run(capsys, images, tmp_path, *options, "--values", "float16")
    assert status == 2
    assert "values was" in err


def test_notes_are_counted():
    assert _summary(Report(3, 0, 0, 3, 0, 1.5, False, noted=2)).endswith("0 left out, of 3; notes in the manifest: 2")
    assert "notes" not in _summary(Report(3, 0, 0, 3, 0, 1.5, False))


def test_process_index_and_count(capsys, images, tmp_path):
    options = (images, tmp_path / "out", "--model", "nobody/nothing", "--dry-run")
    status, out, _ = run(capsys, *options, "--process-index", 4, "--process-count", 5)
    assert (status, out.splitlines()[0]) == (0, "2 images, 0 finished, 2 to be done")
    for index, count in (("5", "5"), ("-1", "5"), ("0", "0"), ("a", "5"), ("1", "1")):
        status, _, err = run(capsys, *options, f"--process-index={index}", f"--process-count={count}")
        assert status == 2
        assert "process" in err


def test_how_images_are_read_belongs_to_the_job(capsys, model, images, tmp_path):
    options = (images, tmp_path / "out", "--model", model, "--no-cache", "--batch-size", 4)
    assert run(capsys, *options, "--value-range", "0,4095", "--partial")[0] == 3
    assert run(capsys, *options, "--value-range", "0,4095", "--partial")[0] == 3
    status, _, err = run(capsys, *options, "--value-range", "auto", "--partial")
    assert status == 2
    assert '--value-range was [0.0, 4095.0] and is "auto"' in err
    status, _, err = run(capsys, *options, "--value-range", "9,1")
    assert status == 2
    assert "--value-range: expected auto or two numbers LO,HI" in err


def test_dry_run_loads_no_model(capsys, images, tmp_path):
    status, out, err = run(capsys, images, tmp_path / "out", "--model", "nobody/nothing", "--dry-run")
    assert (status, err) == (0, "")
    assert out.startswith("12 images, 0 finished, 12 to be done\n")
    assert "'set0/image 0.jpg' -> " in out
    assert "and 7 more" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing", "out"), "no such file or folder"),
        (("https://example.org/a.jpg", "out"), "download the images first"),
        (("IMAGES", "IMAGES"), "is or holds the source folder"),
        (("IMAGES", "out", "--shards", "0"), "--shards must be"),
        (("IMAGES", "out", "--column", "file"), "goes with a .csv"),
    ],
)
def test_bad_usage(capsys, model, images, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    arguments = [str(images) if argument == "IMAGES" else argument for argument in arguments]
    status, out, err = run(capsys, *arguments, "--model", model, "--no-cache")
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_stopped_on_the_way(capsys, model, images, tmp_path):
    status, _, err = run(capsys, images, tmp_path, "--model", model, "--no-cache", "--max-rejects", 1)
    assert status == 1
    assert "--max-rejects is 1" in err


# `make faults` sets more.
TIMES = max(int(os.environ.get("DAJAX_FAULTS", 2)) // 4, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)] * TIMES)
def test_a_signal_ends_it_and_the_same_command_goes_on(capsys, model, tmp_path, number):
    images = make_images(tmp_path / "images", good=400, bad=2)
    output = tmp_path / "out"
    command = [sys.executable, "-m", "dajax", "batch", str(images), str(output), "--model", str(model), "--no-cache"]
    command += ["--batch-size", "2", "--write", "npy"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(output.rglob("*_depth.npy")) and time.monotonic() < deadline:
            time.sleep(0.02)
        began = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        seconds = time.monotonic() - began
    assert process.returncode == 75
    assert seconds < 10
    assert "the same command goes on" in err
    done = len(rows(output))
    assert 0 < done < 402
    assert len(outputs(output)) == sum(row.status == "done" for row in rows(output))
    status, _, _ = run(capsys, images, output, "--model", model, "--no-cache", "--batch-size", 2)
    assert status == 3
    assert len(rows(output)) == 402
    assert len(outputs(output)) == 400


def test_help(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for text in ("SRC", "OUT", "--dry-run", "--verify", "Exit status", "75"):
        assert text in out
