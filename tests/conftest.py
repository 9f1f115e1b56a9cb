"""Strict JAX for every test: no silent promotion of types, two devices, full precision."""

import gc
import os
import signal
import sys
import time
from contextlib import nullcontext

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from loopback_hub import LoopbackHub
from quick_compilation import full_compilation, quick_compilation

# A process that was started in the background ignores SIGINT, and so do the commands to which tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _own_cores():
    """Give each worker its part of the cores, because the threads of two workers would disturb each other."""
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: count] or cores)


# Tracing makes very many objects, and nearly all of them stay: looking for garbage often takes a twentieth of the time.
gc.set_threshold(50_000, 100, 100)

_own_cores()  # before jax starts its threads

# Threads of PyTorch that wait for others spin, and take the cores from the other worker.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")


# A worker takes a whole file at a time (--dist loadfile): the longest come first, so that no worker is left with one of
# them at the end, when the other has finished.
LONGEST_FIRST = (
    "tests/model/test_depth_anything.py", "tests/references/test_references.py", "tests/batch/test_faults.py",
    "tests/test_docs.py", "tests/parity/test_model.py", "tests/inference/test_parallel.py",
    "tests/parity/test_verify.py", "tests/batch/test_engine.py", "tests/training/test_trainer.py",
    "tests/video/test_run.py", "tests/inference/test_estimator.py", "tests/batch/test_changes.py",
    "tests/inference/test_tiles.py", "tests/inference/test_compile.py", "tests/kernels/test_tpu.py",
    "tests/inference/test_self_check.py", "tests/training/test_step.py", "tests/video/test_smoothing.py",
    "tests/parity/test_pipeline.py", "tests/cli/test_predict.py", "tests/cli/test_batch.py", "tests/cli/test_train.py",
    "tests/test_losses.py", "tests/parity/test_losses.py", "tests/weights/torch_files/test_torch_pickle.py",
    "tests/weights/test_preprocessing_kept.py", "tests/weights/test_loading.py", "tests/weights/test_saving.py",
)  # fmt: skip


def pytest_collection_modifyitems(config, items):
    """Put the longest files first, and skip tests that take minutes or a connection unless they are asked for."""
    places = {file: place for place, file in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.nodeid.split("::")[0], len(places)))
    if config.getoption("-m"):
        return
    for item in items:
        for mark in ("slow", "very_slow", "network"):
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=f"run with: python -m pytest -m {mark}"))


# These tests check numbers, or render and estimate a lot: they run the programs that users run. The other tests check
# what a program does, and compile it quickly.
FULLY_OPTIMISED = (
    "tests/benchmarks/", "tests/convert/", "tests/network/", "tests/parity/", "tests/references/",
    "tests/training/test_tiny.py",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _programs(request):
    """Forget a file's compiled programs after it: they would grow to gigabytes, and slow down garbage collection."""
    cache = jax.config.jax_compilation_cache_dir
    with nullcontext() if request.node.nodeid.startswith(FULLY_OPTIMISED) else quick_compilation():
        yield
    if jax.config.jax_compilation_cache_dir != cache:  # the command line has a cache of its own
        jax.config.update("jax_compilation_cache_dir", cache)
        compilation_cache.reset_cache()
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def fully_optimised():
    """Compile the programs of one test as users do, in a file whose other tests compile quickly."""
    with full_compilation():
        yield


WEEK = 7 * 24 * 3600


def pytest_sessionstart(session):
    """Delete programs that were compiled long ago: every change of the network leaves unused ones behind."""
    if hasattr(session.config, "cache") and not hasattr(session.config, "workerinput"):
        for program in session.config.cache.mkdir("programs").iterdir():
            if program.stat().st_mtime < time.time() - WEEK:
                program.unlink()


@pytest.fixture(autouse=True, scope="session")
def _compiled_once(request):
    """Keep compiled programs for the next run: compiling is half of the work of all tests.

    They are in .pytest_cache, which `pytest --cache-clear` empties.
    """
    if not hasattr(request.config, "cache"):  # -p no:cacheprovider
        return
    jax.config.update("jax_compilation_cache_dir", str(request.config.cache.mkdir("programs")))
    # The command line keeps its programs here, and not in the cache of the user who runs the tests.
    os.environ["XDG_CACHE_HOME"] = str(request.config.cache.mkdir("home"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch, request):
    """Open no connection in the main suite: tests that need a Hub serve one themselves."""
    if request.node.get_closest_marker("network"):
        return
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "huggingface_hub" in sys.modules:  # it has already read the environment
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty Hub on loopback for the real client; `hub.push(repository, folder)` fills it."""
    from huggingface_hub import close_session

    close_session()  # an earlier session may use a proxy
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
