"""Strict JAX for every test: no silent promotion of types, two devices, full precision."""

import gc
import os
import sys
import time
from contextlib import nullcontext

import jax
import pytest
from loopback_hub import LoopbackHub
from quick_compilation import full_compilation, quick_compilation

# Threads of PyTorch that wait for others spin, and take the cores from the other worker.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_collection_modifyitems(config, items):
    """Tests that take minutes or a connection run when they are asked for."""
    if config.getoption("-m"):
        return
    for item in items:
        for mark in ("slow", "network"):
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=f"run with: python -m pytest -m {mark}"))


# Tests of numbers, and those that render and estimate a lot, run what users run. The others ask what programs do: with
# LLVM's dearest passes left out they compile in half the time.
FULLY_OPTIMISED = (
    "tests/benchmarks/", "tests/convert/", "tests/network/", "tests/parity/", "tests/references/",
    "tests/test_losses.py",
    "tests/model/test_platform.py", "tests/training/data/", "tests/training/test_tiny.py",
    "tests/video/test_smoothing.py",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _programs(request):
    """A file's compiled programs go with it: gigabytes by the end, through which every garbage collection would go."""
    with nullcontext() if request.node.nodeid.startswith(FULLY_OPTIMISED) else quick_compilation():
        yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def fully_optimised():
    """One test is compiled as users compile, in a file that is compiled quickly."""
    with full_compilation():
        yield


WEEK = 7 * 24 * 3600


def pytest_sessionstart(session):
    """Forget programs that were compiled long ago: whatever changes the network leaves its own behind."""
    if hasattr(session.config, "cache") and not hasattr(session.config, "workerinput"):
        for program in session.config.cache.mkdir("programs").iterdir():
            if program.stat().st_mtime < time.time() - WEEK:
                program.unlink()


@pytest.fixture(autouse=True, scope="session")
def _compiled_once(request):
    """A quarter of the work of all tests is compiling: what one run has compiled, the next ones read.

    Programs are in .pytest_cache, which `pytest --cache-clear` empties.
    """
    if not hasattr(request.config, "cache"):  # -p no:cacheprovider
        return
    jax.config.update("jax_compilation_cache_dir", str(request.config.cache.mkdir("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch, request):
    """Tests of the main suite open no connection; those that want a Hub serve one themselves."""
    if request.node.get_closest_marker("network"):
        return
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "huggingface_hub" in sys.modules:  # it has read the environment already
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty Hub on loopback that the real client is pointed at; `hub.push(repository, folder)` fills it."""
    from huggingface_hub import close_session

    close_session()  # opened before, it may go through a proxy
    with LoopbackHub() as hub:
        hub.point_client(monkeypatch, tmp_path / "huggingface")
        yield hub
        close_session()


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """Folders with small checkpoints of every alias's kind, by Hub id."""
    from released import write_released

    return write_released(tmp_path_factory.mktemp("released"))


@pytest.fixture
def released_hub(hub, released):
    """The Hub on loopback with a small checkpoint under every alias."""
    for repository, folder in released.items():
        hub.push(repository, folder)
    return hub
