"""`dajax models`, and what `dajax` itself says."""

import signal
import subprocess
import sys

import pytest

import dajax
from dajax.cli import main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code, *capsys.readouterr()


def test_table_has_a_row_for_each_model(capsys):
    status, out, err = run(capsys, "models")
    assert (status, err) == (0, "")
    header, *rows = out.splitlines()
    assert header.split() == ["ALIAS", "KIND", "PARAMETERS", "LICENCE", "HUB", "ID"]
    models = dajax.list_models()
    assert len(rows) == len(models)
    for row, model in zip(rows, models, strict=True):
        assert row.split()[0] == model.alias
        assert row.endswith(model.hub_id or "(in dajax itself)")
        assert f" {model.kind} " in row
        assert f" {model.licence} " in row
        assert f"{model.parameters / 1e6:.1f} M" in row
    # Columns line up.
    for column in ("KIND", "PARAMETERS", "LICENCE", "HUB ID"):
        assert {line[header.index(column) - 2 : header.index(column)] for line in out.splitlines()} == {"  "}


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"depth-anything-jax {dajax.__version__}\n", "")


def test_nobody_reads_it():
    """As in `dajax models | head -1`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dajax", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGPIPE, b"")
