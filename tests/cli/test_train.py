"""`dajax train`."""

import pytest
from tiny import shallow_config

import dajax
from dajax.cli import main
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
    status, out, _ = run(capsys, "run.toml")
    assert status == 0
    assert out.startswith("2 steps; 2 held-out scenes: AbsRel 0.")
    assert out.endswith("% of pairs; wrote out/model\n")
    assert dajax.load("out/model")[0].config == shallow_config()
    saved = (place / "out" / "log.csv").read_text()
    assert run(capsys, "run.toml")[:2] == (0, out)
    assert (place / "out" / "log.csv").read_text() == saved


def test_another_folder(place, capsys):
    (place / "run.toml").write_text(SETTINGS.replace("steps = 2", "steps = 1"))
    status, out, _ = run(capsys, "run.toml", "-o", "elsewhere")
    assert (status, out.endswith("wrote elsewhere/model\n")) == (0, True)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps", "step", "run.toml: step is no setting; did you mean steps?; steps is missing"),
        ('"depth_anything"', '"silog"', "'silog' is not for a relative model"),
        ('"start"', '"nowhere"', "--model: 'nowhere' is no alias"),
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


def test_a_stopped_run_has_a_status_of_its_own(place, capsys, monkeypatch):
    from dajax.errors import JobError
    from dajax.training.run_checkpoints import RunCheckpoints

    def full(self, state, data):
        raise JobError("step 2 could not be saved: No space left on device")

    monkeypatch.setattr(RunCheckpoints, "save", full)
    status, _, err = run(capsys, "run.toml")
    assert status == 1
    assert err.rstrip().endswith("dajax train: step 2 could not be saved: No space left on device")


def test_help(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for told in ("SETTINGS", "synthetic scenes", "--output", "Exit status"):
        assert told in out
