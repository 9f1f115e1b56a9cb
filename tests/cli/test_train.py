"""`dajax train`."""

import pytest
from tiny import shallow_config

import dajax
from dajax.cli import main
from dajax.errors import JobError
from dajax.training.train_settings import ModelSettings
from dajax.weights.random import random_params

SETTINGS = """
output = "out"
steps = 2
loss = "depth_anything"
[model]
start = "start"
[data]
size = 28
count = 2
batch_size = 2
validation = 2
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(SETTINGS)
    dajax.save(tmp_path / "start", dajax.DepthAnything(shallow_config()), random_params(shallow_config()))
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["train", *map(str, arguments)])
    return ended.value.code, *capsys.readouterr()


def test_trains_and_goes_on(place, capsys):
    status, out, err = run(capsys, "run.toml")
    assert status == 0
    assert "dajax train: compiling the training step" in err
    assert out.startswith("2 steps; 2 held-out scenes: AbsRel 0.")
    assert out.endswith("% of pairs; wrote out/model\n")
    assert dajax.load("out/model")[0].config == shallow_config()
    saved = (place / "out" / "log.csv").read_text()
    assert run(capsys, "run.toml")[:2] == (0, out)
    assert (place / "out" / "log.csv").read_text() == saved


def settings_of(capsys, monkeypatch, *arguments):
    """Return the settings that a command line comes to; nothing is trained."""
    seen = []

    def train(settings):
        seen.append(settings)
        raise JobError("here")

    monkeypatch.setattr("dajax.training.trainer.train", train)
    status, _, err = run(capsys, *arguments, "--no-cache")
    assert (status, err.rsplit(": ", 1)[-1]) == (1, "here\n")
    return seen[0]


def test_options_replace_what_the_file_says(place, capsys, monkeypatch):
    of_file = settings_of(capsys, monkeypatch, "run.toml")
    assert (of_file.output, of_file.data.size, of_file.model) == ("out", 28, ModelSettings(start="start"))
    options = ("-o", "elsewhere", "--input-size", 42, "--dtype", "bfloat16", "--style", "official")
    found = settings_of(capsys, monkeypatch, "run.toml", *options)
    assert (found.output, found.data.size) == ("elsewhere", 42)
    assert found.model == ModelSettings(start="start", dtype="bfloat16", style="official")
    options = ("-m", "tiny", "--kind", "v1", "--revision", "a", "--local-files-only")
    expected = ModelSettings(start="tiny", kind="v1", revision="a", local_files_only=True)
    assert settings_of(capsys, monkeypatch, "run.toml", *options).model == expected
    # What the file says by its other name gives way.
    (place / "run.toml").write_text(SETTINGS.replace('start = "start"', 'start = "start"\nkind = "v1"'))
    found = settings_of(capsys, monkeypatch, "run.toml", "--config", "base")
    assert found.model == ModelSettings(start="start", weights_config="base")
    assert not (place / "out").exists()


def test_an_option_that_makes_no_sense(place, capsys):
    status, _, err = run(capsys, "run.toml", "--input-size", 30)
    assert status == 2
    assert "data.size must be a multiple of 14, got 30" in err
    status, _, err = run(capsys, "run.toml", "--kind", "v1", "--config", "base")
    assert status == 2
    assert "give one of them" in err


def test_a_file_where_the_output_has_to_be(place, capsys):
    (place / "maps").write_text("a file")
    # Notepad puts a byte order mark first.
    (place / "run.toml").write_text(SETTINGS, encoding="utf-8-sig")
    for output, said in (("maps", "'maps' is a file: name"), ("maps/x", "'maps' is a file, so 'maps/x' cannot be")):
        status, out, err = run(capsys, "run.toml", "-o", output)
        assert (status, out) == (2, "")
        assert err.startswith(f"dajax train: output: {said}")
    status, _, err = run(capsys, ".")
    assert (status, err) == (2, "dajax train: . cannot be read as TOML: Is a directory\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps", "step", "run.toml: step is not a setting; did you mean steps?; steps is missing"),
        ('"depth_anything"', '"silog"', "'silog' is not for a relative model"),
        ('"start"', '"nowhere"', "model.start: 'nowhere' is no alias"),
    ],
)
def test_bad_settings(place, capsys, old, new, message):
    (place / "run.toml").write_text(SETTINGS.replace(old, new))
    status, out, err = run(capsys, "run.toml")
    assert (status, out) == (2, "")
    assert err.startswith("dajax train: ")
    assert message in err
    assert not (place / "out").exists()


def test_no_file(place, capsys):
    status, _, err = run(capsys, "no.toml")
    assert status == 2
    assert "no.toml cannot be read" in err
    assert "Traceback" not in err


def test_help(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for told in ("SETTINGS", "synthetic scenes", "--output", "Exit status"):
        assert told in out
