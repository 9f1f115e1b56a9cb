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


def test_an_error_that_is_too_large(run, monkeypatch):
    """All types are tried, and the advice comes once."""

    def check_device(dtype, mesh=None):
        return Agreement(dtype, "TPU v5", 1e-6, 1e-4, BOUNDS[dtype], 0.0123)

    monkeypatch.setattr(self_check, "check_device", check_device)
    status, out, err = run()
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["float32", "bfloat16", "float16"]
    assert [line.split("ms")[1].strip() for line in out.splitlines()[2:]] == ["NOT WITHIN", "ok", "ok"]
    assert out.count("12.3 ms") == 3
    assert err.count("JAX_PLATFORMS=cpu") == 1
