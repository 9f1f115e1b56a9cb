"""What all tests of training need."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _as_users_have_it(request, compiled_once):
    """optax promotes types by itself, which the strict mode of the other tests forbids."""
    if "test_tiny" not in request.node.name:  # it renders and estimates a lot, which takes good code
        request.getfixturevalue("compiled_quickly")
    with jax.numpy_dtype_promotion("standard"):
        yield
