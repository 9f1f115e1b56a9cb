"""Strict JAX for every test: no silent promotion of types, two devices, full precision."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    """Tests of the main suite open no connection; those that want a Hub serve one themselves."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
