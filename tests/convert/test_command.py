"""`python -m convert`: exit statuses, what it prints where, and which files it leaves. Without PyTorch."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from authors import official_shapes, official_state, write_official
from flax.traverse_util import flatten_dict
from seeded import write_checkpoint
from tiny import tiny_config, tiny_metric_config

import convert.__main__ as command
import dajax
from convert import verify
from convert.to_flax import to_flax
from convert.to_pytorch import to_pytorch
from convert.verify_table import StageError
from dajax.weights.safetensors_io import SafetensorsFile
from dajax.weights.shapes import parameter_shapes

ROOT = Path(dajax.__file__).parents[1]
SHAPES = json.loads((ROOT / "tests" / "references" / "data" / "shapes.json").read_text())
README = (ROOT / "convert" / "README.md").read_text(encoding="utf-8")
CONFIG = tiny_config()
FLAX_FILES = {"config.json", "params.safetensors", "preprocessor_config.json"}


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "tiny", CONFIG.to_dict(), SHAPES["tiny"])


@pytest.fixture
def lone(tmp_path):
    """A file with the authors' names, and a config.json elsewhere."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.json").write_text(json.dumps(tiny_metric_config().to_dict()))
    return write_official(tmp_path / "files" / "mine.safetensors", CONFIG)


@pytest.fixture
def run(capsys):
    def run(*arguments, tool=command.main):
        with pytest.raises(SystemExit) as ended:
            tool([*map(str, arguments)])
        return ended.value.code, *capsys.readouterr()

    return run


def files(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def assert_same_params(first, second):
    first, second = flatten_dict(first, sep="/"), flatten_dict(second, sep="/")
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[path], err_msg=path)


# --- done


def test_flax_is_the_default(run, checkpoint, tmp_path):
    status, out, err = run(checkpoint, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    assert files(tmp_path / "out") == {f"tiny/{name}" for name in FLAX_FILES}
    lines = out.splitlines()
    assert lines[0] == f"{checkpoint}: reading"
    assert lines[1].startswith(f"{checkpoint}: wrote {tmp_path / 'out' / 'tiny'}: ")
    assert "params.safetensors (" in lines[1]
    with SafetensorsFile(tmp_path / "out" / "tiny" / "params.safetensors") as file:
        assert {path: info.shape for path, info in file.tensors.items()} == parameter_shapes(CONFIG)
    model, params = dajax.load(tmp_path / "out" / "tiny")
    assert model.config == CONFIG
    assert_same_params(params, dajax.load(checkpoint)[1])


@pytest.mark.parametrize(("format", "weights"), [("hf", "model.safetensors"), ("official", "model.pth")])
def test_formats(run, checkpoint, tmp_path, format, weights):
    assert run(checkpoint, "-o", tmp_path / "out", "--format", format)[0] == 0
    assert files(tmp_path / "out" / "tiny") == {"config.json", "preprocessor_config.json", weights}
    assert_same_params(dajax.load(tmp_path / "out" / "tiny")[1], dajax.load(checkpoint)[1])


def test_config_of_a_lone_file(run, lone, tmp_path):
    status, _, err = run(lone, "--out", tmp_path / "out", "--config", tmp_path / "configs" / "mine.json")
    assert (status, err) == (0, "")
    model, params = dajax.load(tmp_path / "out" / "mine")
    assert model.config == tiny_metric_config()
    assert flatten_dict(params, sep="/").keys() == parameter_shapes(CONFIG).keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(run, checkpoint, tmp_path, dtype):
    assert run(checkpoint, "--out", tmp_path / "out", "--dtype", dtype)[0] == 0
    params, before = dajax.load(tmp_path / "out" / "tiny")[1], dajax.load(checkpoint)[1]
    assert {str(leaf.dtype) for leaf in flatten_dict(params, sep="/").values()} == {dtype}
    kernel, exact = (p["head"]["conv1"]["kernel"] for p in (params, before))
    np.testing.assert_array_equal(kernel, exact.astype(jnp.dtype(dtype)))


def test_there_and_back(checkpoint, tmp_path):
    """Transformers' layout to Flax, to the authors', and to Transformers' again: byte for byte."""
    to_flax(checkpoint, tmp_path / "flax")
    to_pytorch(tmp_path / "flax", tmp_path / "official", format="official")
    assert to_pytorch(tmp_path / "official", tmp_path / "hf") == tmp_path / "hf"
    before, after = ((folder / "model.safetensors").read_bytes() for folder in (checkpoint, tmp_path / "hf"))
    assert before == after


def test_the_authors_names_there_and_back(lone, tmp_path):
    """Names, shapes and values of a .pth are those of the file that the Flax params came from."""
    from dajax.weights.torch_files.torch_file import TorchFile

    to_flax(lone, tmp_path / "flax", config=CONFIG)
    to_pytorch(tmp_path / "flax", tmp_path / "official", format="official")
    before = official_state(CONFIG)
    with TorchFile(tmp_path / "official" / "model.pth") as file:
        assert {name: info.shape for name, info in file.tensors.items()} == official_shapes(CONFIG)
        for name, expected in before.items():
            np.testing.assert_array_equal(file.read(name), expected, err_msg=name)


# --- several


def test_several_and_one_that_fails(run, checkpoint, lone, tmp_path):
    status, out, err = run(tmp_path / "missing", checkpoint, lone, "--out", tmp_path / "out")
    assert status == 1
    assert files(tmp_path / "out") == {f"tiny/{name}" for name in FLAX_FILES}
    assert out.splitlines()[-1] == f"{lone}: reading"
    errors = err.splitlines()
    assert errors[0].startswith(f"convert: {tmp_path / 'missing'}: ")
    assert errors[1].startswith(f"convert: {lone}: ")  # no config, and no released size
    assert errors[-1] == "convert: 2 of 3 failed"


def test_names_of_folders_and_options(run, tmp_path, monkeypatch):
    """Aliases, Hub ids and paths; what is asked of the Hub is passed on."""
    seen = []

    def recorded(name, directory, **options):
        directory.mkdir(parents=True)
        seen.append((name, directory, options))

    monkeypatch.setattr(command, "to_flax", recorded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    names = ["small", "large-metric-indoor", "someone/their-model", "here/", "mine.final.pth"]
    options = ("--revision", "v1", "--token", "secret", "--local-files-only", "--dtype", "float16")
    status, out, _ = run(*names, "--out", "out", *options)
    assert status == 0
    assert "secret" not in out
    folders = ["small", "large-metric-indoor", "their-model", "here", "mine.final"]
    assert [(name, directory) for name, directory, _ in seen] == [
        (name, Path("out") / folder) for name, folder in zip(names, folders, strict=True)
    ]
    expected = {"config": None, "dtype": "float16", "revision": "v1", "token": "secret", "local_files_only": True}
    assert all(options == expected for *_, options in seen)


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(run, tmp_path):
    """The name of the file says metric, its config relative."""
    path = write_official(tmp_path / "files" / "depth_anything_v2_metric_hypersim_vits.safetensors", CONFIG)
    (path.parent / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    status, _, err = run(path, "--out", tmp_path / "out")
    assert status == 0
    assert err.count("\n") == 1
    assert err.startswith(f"convert: warning: the name of {path} says 'small-metric-indoor'")


# --- bad usage


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--out", "out"], "name at least one checkpoint"),
        (["a/x.pth", "b/x.pth", "--out", "out"], "a/x.pth and b/x.pth would both go to out/x"),
        (["tiny", "--out", "."], "tiny would be written over itself"),
        (["a/a.pth", "--out", "."], "a/a.pth would be written over itself"),
        (["small", "--out", "out", "--config", "nowhere.json"], "nowhere.json"),
        (["small", "--out", "out", "--format", "onnx"], "onnx"),
        (["small", "--out", "out", "--dtype", "int8"], "int8"),
        (["small"], "--out"),
    ],
)
def test_bad_usage(run, checkpoint, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.pth", "a/a.pth", "b/x.pth"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    before = files(tmp_path)
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert match in err
    assert files(tmp_path) == before


def test_verify_without_pytorch(run, checkpoint, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else found(name, *rest)
    )
    status, out, err = run(checkpoint, "--out", tmp_path / "out", "--verify")
    assert (status, out) == (2, "")
    assert err == "convert: verifying needs torch: pip install '.[parity]'\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", re.findall(r"^python -m convert(.*?)#", README, re.MULTILINE))
def test_command_of_the_readme(run, line, tmp_path, monkeypatch):
    """Each is understood, and ends well where the conversion and the comparison do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_convert", lambda *arguments: True)
    monkeypatch.setattr(verify, "verify", lambda *arguments, **options: [StageError("depth", (1,), 0.0, 0.0, 1e-4)])
    monkeypatch.setattr(verify, "require", lambda *packages: None)
    tool = verify.main if line.startswith(".verify ") else command.main
    assert run(*line.removeprefix(".verify").split(), tool=tool)[0] == 0


def test_the_readme_says_first_where_the_table_is():
    first = README.split("\n\n")[1]
    assert "dajax/weights/mapping.py" in first
    assert "`dajax.load` needs it" in first
    assert len(re.findall(r"^python -m convert", README, re.MULTILINE)) == 6


# --- the process


def test_process(checkpoint, tmp_path):
    """As people run it; and a conversion needs neither torch nor transformers."""
    code = f"""if True:
        import runpy, sys
        sys.argv = ["convert", {str(checkpoint)!r}, "--out", {str(tmp_path / "out")!r}]
        try:
            runpy.run_module("convert", run_name="__main__")
        finally:
            print(sorted({{"torch", "transformers"}} & sys.modules.keys()))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "[]"
    assert files(tmp_path / "out" / "tiny") == FLAX_FILES


def test_dajax_does_not_import_the_tool():
    imports = re.compile(r"^\s*(?:import convert\b|from convert\b)", re.MULTILINE)
    assert imports.search("    from convert.verify import verify")
    assert not [path for path in (ROOT / "dajax").rglob("*.py") if imports.search(path.read_text())]
