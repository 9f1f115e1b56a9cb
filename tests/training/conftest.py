"""What all tests of training need."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _as_users_have_it():
    """optax promotes types by itself, which the strict mode of the other tests forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield
