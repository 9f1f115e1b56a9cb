"""The environment of processes that are to compute what the test's own one does."""

import os

import jax


def as_here():
    """Return this process's environment, with what tests/conftest.py sets in jax: numbers are rounded alike."""
    return os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(jax.config.read("jax_disable_most_optimizations")),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
