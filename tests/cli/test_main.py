"""`dajax` itself: its help, mistyped commands and options, colours, completion, and how every command ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dajax
from dajax.cli import COMMANDS, main, status_of
from dajax.errors import ConfigError, HubError, ImageError, JobError, JobRefusedError, WeightsError

ROOT = Path(dajax.__file__).parent.parent


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code, *capsys.readouterr()


def started(*arguments, cwd=None, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "dajax", *map(str, arguments)],
        cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)], ids=str)
def test_help(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    assert out.startswith("Example: dajax predict ")
    for name, summary in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", out, re.MULTILINE)
    for told in (dajax.__version__, "--version", "--tyro-print-completion"):
        assert told in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(capsys, monkeypatch, command):
    """It begins with an example, is a screen and a half, and its lines are not broken by the terminal."""
    monkeypatch.setenv("COLUMNS", "100")
    status, out, err = run(capsys, command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Example: dajax {command}")
    assert "Exit status: 0" in out.replace("\n", " ")
    assert len(out.splitlines()) <= 80
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("command", ["predict", "batch", "video", "convert", "train"])
def test_model_options_are_those_of_every_command(capsys, command):
    """`convert` names its model without an option."""
    _, out, _ = run(capsys, command, "--help")
    shown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", out))
    options = {"--config", "--kind", "--revision", "--local-files-only", "--style", "--dtype", "--input-size"}
    assert options | {"--cache", "--no-cache"} <= shown
    assert ("--model" in shown) == (command != "convert")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predct", "a.png"], "dajax: there is no command predct. Did you mean 'predict'? See: dajax --help\n"),
        (["room.jpg"], "dajax: there is no command room.jpg. See: dajax --help\n"),
        (["--verbose"], "dajax: there is no option --verbose. See: dajax --help\n"),
        (
            ["predict", "a.png", "--colourmap", "gray"],
            "dajax predict: there is no option --colourmap. Did you mean '--colormap'? See: dajax predict --help\n",
        ),
        # Whatever else is wrong: an option that is mistyped is what explains it.
        (
            ["batch", "--verfy"],
            "dajax batch: there is no option --verfy. Did you mean '--verify'? See: dajax batch --help\n",
        ),
        (["batch"], "dajax batch: SRC and OUT are missing. See: dajax batch --help\n"),
        (["batch", "a"], "dajax batch: OUT is missing. See: dajax batch --help\n"),
        (["convert", "a", "b", "c"], "dajax convert: 'c' is one argument too many. See: dajax convert --help\n"),
        (["models", "small"], "dajax models: 'small' is one argument too many. See: dajax models --help\n"),
        (["predict", "-x"], "dajax predict: there is no option -x. Put -- before a name that begins with a dash."),
        (
            ["predict", "a", "--tiles", "two"],
            "Error parsing --tiles: expected a whole number, got 'two'. See: dajax",
        ),
        (["predict", "a", "--dtype", "float31"], "--dtype"),
        (["video", "a", "b", "--limits", "1"], "--limits"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistyped(capsys, arguments, said):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) <= 3
    assert "─" not in err


def test_an_error_says_what_status_it_is():
    assert [status_of(kind("")) for kind in (HubError, WeightsError, JobError)] == [1, 1, 1]
    assert [status_of(kind("")) for kind in (ConfigError, ImageError, JobRefusedError)] == [2, 2, 2]


def test_no_color(tmp_path):
    """`script` gives a terminal."""
    command = f"{sys.executable} -m dajax models --help; {sys.executable} -m dajax predict --help"
    for no_color, coloured in (("", True), ("1", False)):
        done = subprocess.run(
            ["script", "-qec", command, "/dev/null"],
            capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "NO_COLOR": no_color},
        )  # fmt: skip
        assert "Example: dajax predict" in done.stdout
        assert ("\x1b[" in done.stdout) == coloured


def test_completion(capsys):
    status, out, _ = run(capsys, "--tyro-print-completion", "bash")
    assert not status
    for told in ("predict", "--side-by-side", "--process-index"):
        assert told in out


@pytest.mark.parametrize("command", ["predict", "convert", "train", "batch", "video"])
def test_ctrl_c_is_a_sentence(capsys, monkeypatch, tmp_path, command):
    """Wherever it comes before a command begins to handle it itself."""

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('output = "out"\nsteps = 1\n')
    (tmp_path / "in").mkdir()
    monkeypatch.setattr("dajax.cli.model_options.is_hub_id", interrupt)
    arguments = {
        "predict": [str(ROOT / "dajax" / "assets" / "scene.jpg"), "-m", "nobody", "--no-cache"],
        "batch": ["in", "out", "-m", "nobody", "--no-cache"],
        "video": ["in.mp4", "out.mp4", "-m", "nobody", "--no-cache", "--no-smooth"],
        "convert": ["nobody", "out"],
        "train": ["run.toml", "--model", "nobody", "--no-cache"],
    }
    status, out, err = run(capsys, command, *arguments[command])
    assert (status, out) == (130, "")
    assert err.startswith(f"dajax {command}: interrupted")
    assert err.count("\n") == 1


def test_ctrl_c_in_a_process(tmp_path):
    """While many tiles of an image are estimated."""
    scene = ROOT / "dajax" / "assets" / "scene.jpg"
    options = ("-m", "tiny", "--tiles", 16, "-o", tmp_path / "out", "--no-cache", "--input-size", 350)
    with started("predict", scene, *options) as process:
        while not (said := process.stderr.readline()).startswith("dajax predict: preparing"):
            assert said
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=240)  # it ends when the compiler returns
    assert process.returncode == 130
    assert err.endswith("dajax predict: interrupted; the depth maps that were finished are whole\n")
    assert "Traceback" not in err
