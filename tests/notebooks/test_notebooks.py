"""Notebooks run from top to bottom, as someone opening them would run them, with a Hub on this machine."""

import os
from pathlib import Path

import jupytext
import nbclient
import pytest
from quick_compilation import quick_environment

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_notebooks():
    assert NOTEBOOKS
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in (ROOT / "notebooks").glob("*.py")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_paired_script_is_the_same(path):
    """After a change: jupytext --sync notebooks/NAME.py."""
    notebook = jupytext.read(path)
    assert cells(notebook) == cells(jupytext.read(path.with_suffix(".py")))
    for cell in notebook.cells:  # results of one machine and its weights are nobody else's
        assert not cell.get("outputs"), cell.source


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, released_hub, tmp_path):
    notebook = jupytext.read(path)
    home = tmp_path / "home"
    environment = released_hub.environment(home, PYTHONPATH=str(ROOT), XDG_CACHE_HOME=str(home), IPYTHONDIR=str(home))
    # Cells have to run; compiling takes most of the time.
    environment |= quick_environment()
    # Matplotlib's choice for notebooks: the kernel sets it.
    environment.pop("MPLBACKEND", None)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment, cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    warned = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    if folder := os.environ.get("DAJAX_KEEP_NOTEBOOKS"):  # to look at
        jupytext.write(notebook, Path(folder) / path.name)
    assert len(images) >= 2
    # Only what is meant to be read: the licence of some weights, the client's progress bars, and (without ipywidgets,
    # which Colab has) that those are plain ones.
    meant = ("LicenceWarning", "%|", "IProgress not found")
    unexpected = [text for text in warned if not any(mark in text for mark in meant)]
    assert not unexpected, unexpected
