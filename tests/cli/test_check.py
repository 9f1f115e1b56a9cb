"""`dajax check`."""

import re

import pytest

from dajax.cli import main
from dajax.inference import self_check
from dajax.inference.self_check import BOUNDS, Agreement


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setattr("dajax.inference.compilation_cache.enable_compilation_cache", lambda: None)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["check", *arguments])
        return ended.value.code, *capsys.readouterr()

    return run


def test_this_machine(run):
    status, out, err = run("--dtype", "float32")
    assert (status, err) == (0, "")
    assert re.match(r"\d+ x cpu, jax \d", out)
    assert re.search(r"^float32 .* 1\.0e-05 .* 3\.0e-05 .* ms   ok$", out, re.MULTILINE)


def erring(monkeypatch, *wrong):
    """Let these pairs (type, kernels) be too far from the stored depth maps."""

    def check_device(dtype, mesh=None, kernels="auto"):
        largest = 1.0 if (dtype, kernels) in wrong else 0.0
        return Agreement(dtype, "TPU v5", 0.0, largest, BOUNDS[dtype], 0.0123)

    monkeypatch.setattr(self_check, "check_device", check_device)


def test_an_error_that_is_too_large(run, monkeypatch):
    """All types are tried, the one that failed by the plain formulas too, and the advice comes once."""
    erring(monkeypatch, ("float32", "auto"), ("float32", "reference"), ("bfloat16", "auto"))
    status, out, err = run()
    assert status == 1
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["float32", "plain", "bfloat16", "plain", "float16"]
    verdicts = [line.split("ms")[1].strip() for line in out.splitlines()[2:]]
    assert verdicts == ["NOT WITHIN", "NOT WITHIN", "NOT WITHIN", "ok", "ok"]
    assert out.count("12.3 ms") == 5
    assert err.count("JAX_PLATFORMS=cpu") == 1
    assert "--kernels reference" not in err


def test_a_kernel_that_is_wrong(run, monkeypatch):
    erring(monkeypatch, ("bfloat16", "auto"))
    status, out, err = run("--dtype", "bfloat16")
    assert status == 1
    assert len(out.splitlines()) == 4
    assert err.count("--kernels reference") == 1
    assert "JAX_PLATFORMS" not in err
