"""What all tests of training need."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dajax import enable_compilation_cache

CHANGED = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    """optax promotes types by itself, which the strict mode of the other tests forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    """Each run jits its own functions: the same programs are compiled once and then read."""
    before = {name: getattr(jax.config, name) for name in CHANGED}
    enable_compilation_cache(tmp_path_factory.getbasetemp() / "compiled")
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
