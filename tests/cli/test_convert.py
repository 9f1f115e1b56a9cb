"""`dajax convert`."""

import pytest
from tiny import tiny_config, tiny_metric_config

import dajax
from dajax.cli import main
from dajax.weights.random import random_params


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["convert", *map(str, arguments)])
    return ended.value.code, *capsys.readouterr()


@pytest.fixture
def source(tmp_path):
    config = tiny_metric_config()
    dajax.save(tmp_path / "source", dajax.DepthAnything(config), random_params(config))
    return tmp_path / "source"


def test_converts_and_says_what(capsys, source, tmp_path):
    for format, name in (("flax", "params.safetensors"), ("hf", "model.safetensors"), ("official", "model.pth")):
        status, out, err = run(capsys, source, tmp_path / format, "--format", format)
        assert (status, err) == (0, "")
        assert out == f"wrote {tmp_path / format / name} (metric, up to 20 m; 4 layers of width 32)\n"
        assert dajax.load(tmp_path / format)[0].config == tiny_metric_config()
        source = tmp_path / format
    status, out, _ = run(capsys, source, tmp_path / "default", "--dtype", "bfloat16")
    assert status == 0
    assert "params.safetensors" in out


def test_config_of_a_lone_file(capsys, source, tmp_path):
    """It says what the tensors cannot."""
    (source / "config.json").unlink()
    file = source / "model.safetensors"
    status, _, err = run(capsys, file, tmp_path / "out")
    assert status == 1
    assert "without a config.json" in err
    assert not (tmp_path / "out").exists()
    dajax.save(tmp_path / "other", dajax.DepthAnything(tiny_config()), random_params(tiny_config()))
    status, out, err = run(capsys, file, tmp_path / "out", "--config", tmp_path / "other" / "config.json")
    assert (status, err) == (0, "")
    assert "(relative; 4 layers" in out
    status, _, err = run(capsys, file, tmp_path / "big", "--config", "large-metric-indoor")
    assert status == 1
    assert "does not fit its config (24 layers of width 1024)" in err


def test_a_broken_checkpoint(capsys, source, tmp_path):
    """Weights that are damaged are no bad usage; fields of a config.json that cannot be are."""
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    status, out, err = run(capsys, source, tmp_path / "out")
    assert (status, out) == (1, "")
    assert "model.safetensors" in err
    (source / "model.safetensors").write_bytes(whole)
    (source / "config.json").write_text("{")
    status, out, err = run(capsys, source, tmp_path / "out")
    assert (status, out) == (2, "")
    assert "config.json is not valid JSON" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 2),
        (["small"], 2),
        (["a", "b", "c"], 2),
        (["a", "b", "--format", "onnx"], 2),
        (["a", "b", "--dtype", "int8"], 2),
        (["nothing here", "b"], 2),
        (["nothing here", "b", "--config", "nothing.json"], 2),
    ],
    ids=str,
)
def test_bad_usage(capsys, monkeypatch, tmp_path, arguments, status):
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (status, "")
    assert "Traceback" not in err
    assert err
    assert not list(tmp_path.iterdir())
