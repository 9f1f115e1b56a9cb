"""The environment of processes that are to compute what the test's own one does."""

import os

import jax
from quick_compilation import is_quick, quick_environment


def as_here():
    """Return this process's environment, with what tests/conftest.py sets in jax: numbers are rounded alike."""
    return (
        os.environ
        | (quick_environment() if is_quick() else {})
        | {
            # XLA divides sums among its threads, of which it starts one for each core and device at least.
            "NPROC": str(max(_cores(), jax.local_device_count())),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    )


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
