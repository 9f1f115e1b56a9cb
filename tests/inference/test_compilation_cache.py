"""The cache of compiled programs: where it is, and that nothing but the one call switches it on."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

import dajax
from dajax.errors import ConfigError

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    before = {option: getattr(jax.config, option) for option in OPTIONS}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield
    for option, value in before.items():
        jax.config.update(option, value)
    compilation_cache.reset_cache()


def test_directory_is_the_one_that_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "other"))
    assert dajax.enable_compilation_cache(tmp_path / "here") == tmp_path / "here"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "here")
    assert dajax.enable_compilation_cache(str(tmp_path)) == tmp_path


def test_directory_by_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dajax.enable_compilation_cache() == tmp_path / ".cache" / "dajax" / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert dajax.enable_compilation_cache() == tmp_path / "xdg" / "dajax" / "compiled"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    assert dajax.enable_compilation_cache() == tmp_path / "jax"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jax")
    assert not list(tmp_path.iterdir())


def test_quick_programs_are_kept_too_even_after_others_were_compiled(tmp_path):
    jax.jit(lambda x: x * 2.0)(jnp.ones(3, jnp.float32))
    dajax.enable_compilation_cache(tmp_path)
    jax.jit(lambda x: x * 3.0 + 1.0)(jnp.ones(5, jnp.float32))
    assert [path for path in tmp_path.iterdir() if path.name.startswith("jit")]


def test_another_directory_later(tmp_path):
    for place in ("a", "b"):
        dajax.enable_compilation_cache(tmp_path / place)
        jax.jit(lambda x: x * 5.0 - 1.0)(jnp.ones(7, jnp.float32))
        assert any(path.name.startswith("jit") for path in (tmp_path / place).iterdir())


def test_importing_and_loading_switch_nothing_on(tmp_path):
    code = """if True:
        import jax, dajax
        dajax.DepthEstimator, dajax.pipeline, dajax.load, dajax.enable_compilation_cache
        import dajax.cli.predict, dajax.inference.image_files
        jax.jit(lambda x: x)(1)
        print(jax.config.jax_compilation_cache_dir)
    """
    environment = {
        **{name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"},
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(dajax.__file__).parent.parent),
    }
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.strip() == "None"
    assert not list(tmp_path.iterdir())


def test_no_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(ConfigError, match="set JAX_COMPILATION_CACHE_DIR"):
        dajax.enable_compilation_cache()
