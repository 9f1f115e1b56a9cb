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


@pytest.fixture
def maps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maps").write_text("a file")
    (tmp_path / "gone").symlink_to("nowhere")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("batch", "IMAGES", "maps"), "'maps' is a file: name another folder"),
        (("batch", "IMAGES", "maps/x"), "'maps' is a file, so 'maps/x' cannot be a folder: name another folder"),
        (("batch", "IMAGES", "gone"), "'gone' is a link to nothing: name another folder"),
        (("batch", "IMAGES", "maps", "--verify"), "'maps' is a file: name another folder"),
        (("predict", "IMAGES", "-o", "maps", "--model", "tiny"), "'maps' is a file: name another folder"),
        (("predict", "IMAGES", "-o", "maps/x", "--model", "tiny"), "'maps' is a file, so 'maps/x' cannot"),
        (("convert", "tiny", "maps"), "'maps' is a file: name another folder"),
        (("convert", "nowhere", "x"), "SOURCE: 'nowhere' is no alias"),
        (("batch", "IMAGES", "x", "--column", "file"), "--column 'file' goes with a .csv"),
        (("batch", "IMAGES", "x", "--write", "color", "--values", "float16"), "--values 'float16' goes with npy"),
    ],
    ids=" ".join,
)
def test_messages_name_what_was_written(capsys, model, images, maps, command, said):
    arguments = [str(images) if argument == "IMAGES" else argument for argument in command]
    if command[0] == "batch":
        arguments += ["--model", str(model), "--no-cache"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith(f"dajax {command[0]}: {said}")
    assert ".dajax" not in err


def test_other_options_are_named_as_options(capsys, model, images, tmp_path):
    options = ("--model", model, "--no-cache", "--batch-size", 4)
    run(capsys, images, tmp_path, *options, "--write", "npy")
    status, _, err = run(capsys, images, tmp_path, *options, "--write", "npz", "--values", "float16", "--shards", 3)
    assert status == 2
    for text in (
        '--write was ["npy"] and is ["npz"]; ', '; --shard-format was null and is "tar"; --shards was null and is 3; ',
        '; --values was "float32" and is "float16"',
    ):  # fmt: skip
        assert text in err


def test_what_is_passed_over_and_what_has_changed_is_said(capsys, model, images, tmp_path):
    import shutil

    source = tmp_path / "in"
    shutil.copytree(images / "set0", source)
    for name in ("._a.jpg", "@eaDir/b.jpg", "c.jp2", "d.jp2", ".jpg"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).touch()
    options = (source, tmp_path / "out", "--model", model, "--no-cache", "--batch-size", 4)
    said = "dajax batch: passed over: 2 .jp2, 2 system files (._*, @eaDir, #recycle and the like), 1 files named .jpg\n"
    assert run(capsys, *options, "--dry-run")[::2] == (0, said)
    status, _, err = run(capsys, *options)
    assert (status, said in err) == (0, True)
    os.utime(source / "image 0.jpg", ns=(0, 1))
    changed = "1 image has changed since its depth map was made; --remake-changed makes it again"
    for more in ((), ("--dry-run",)):
        status, _, err = run(capsys, *options, "--check-inputs", *more)
        assert (status, changed in err) == (0 if more else 3, True)
    status, out, _ = run(capsys, *options, "--check-inputs", "--remake-changed")
    assert (status, out.partition(" in ")[0]) == (0, "1 images")


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
