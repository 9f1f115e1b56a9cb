"""Resizing and convolving in strips, as CPUs do it, is resizing and convolving."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeded import error, uniform

from dajax.kernels import cpu, reference, resize, resize_and_convolve
from dajax.resample import linear_matrix

WEIGHTS = (
    jnp.asarray(uniform("kernel", (3, 3, 4, 6)) / 6, jnp.float32),
    jnp.asarray(uniform("bias", (6,)), jnp.float32),
)


PROJECTION = (jnp.asarray(uniform("projection", (6, 1)), jnp.float32), jnp.asarray([0.3], jnp.float32))


def in_strips(maps, size, weights=WEIGHTS, projection=None):
    return resize_and_convolve(maps, size, weights, jnp.float32, projection)


def whole(maps, size, weights=WEIGHTS, projection=None):
    return reference.resize_and_convolve(maps, size, weights, jnp.float32, projection)


def maps_of(*shape):
    return jnp.asarray(uniform(f"maps {shape}", shape), jnp.float32)


@pytest.fixture(autouse=True)
def small_strips(monkeypatch):
    monkeypatch.setattr(cpu, "_STRIP_BYTES", 1)
    monkeypatch.setattr(cpu, "_STRIP_ROWS", 5)


def loops(function, *arguments) -> bool:
    return "scan[" in str(jax.make_jaxpr(function)(*arguments))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("size_in", "size"),
    [
        ((7, 9), (20, 18)),  # four strips
        ((7, 9), (23, 18)),  # the last one repeats rows
        ((7, 9), (6, 18)),  # of which most
        ((12, 5), (7, 9)),  # fewer rows than before
        ((11, 6), (11, 6)),  # as many
        ((1, 1), (9, 4)),
        ((2, 1), (41, 1)),
    ],
)
def test_strips_are_the_whole(batch, size_in, size):
    maps = maps_of(batch, *size_in, 4)
    assert loops(lambda maps: in_strips(maps, size), maps)
    found = jax.jit(in_strips, static_argnums=1)(maps, size)
    assert found.shape == (batch, *size, 6)
    assert error(found, whole(maps, size)) < 2e-6


def test_small_maps_are_one_strip():
    maps = maps_of(1, 7, 9, 4)
    assert not loops(lambda maps: in_strips(maps, (5, 18)), maps)
    assert error(in_strips(maps, (5, 18)), whole(maps, (5, 18))) == 0


def test_with_a_projection():
    maps = maps_of(2, 7, 9, 4)
    found = in_strips(maps, (23, 18), projection=PROJECTION)
    assert error(found, whole(maps, (23, 18), projection=PROJECTION)) < 2e-6
    rectified = jax.nn.relu(whole(maps, (23, 18)))
    assert error(found, jnp.einsum("bhwc,cd->bhwd", rectified, PROJECTION[0]) + PROJECTION[1]) < 2e-6


def test_a_nan_stays_in_its_image():
    maps = maps_of(2, 7, 9, 4).at[0].set(jnp.nan)
    found = in_strips(maps, (23, 18))
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1:], in_strips(maps[1:], (23, 18)))


def agree(found, expected, bound):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert error(ours, theirs) < bound


@pytest.mark.parametrize(("size_in", "size"), [((7, 9), (23, 18)), ((2, 2), (7, 2))])
def test_derivatives_are_those_of_the_whole(size_in, size):
    maps, mask = maps_of(2, *size_in, 4), maps_of(2, *size, 6)

    def loss(way, maps, weights):
        return (way(maps, size, weights) * mask).sum()

    for derivative in (jax.grad, jax.jacfwd):
        agree(*(jax.jit(derivative(partial(loss, way), (0, 1)))(maps, WEIGHTS) for way in (in_strips, whole)), 1e-5)
    tangents = (jnp.ones_like(maps), jax.tree.map(jnp.ones_like, WEIGHTS))
    agree(*(jax.jvp(partial(loss, way), (maps, WEIGHTS), tangents) for way in (in_strips, whole)), 1e-5)


def test_vmap():
    maps = maps_of(3, 1, 7, 9, 4)
    found = jax.vmap(lambda maps: in_strips(maps, (23, 18)))(maps)
    assert error(found[:, 0], whole(maps[:, 0], (23, 18))) < 2e-6


@pytest.mark.parametrize(
    ("size_in", "size"), [((7, 9), (20, 18)), ((12, 5), (7, 9)), ((1, 3), (4, 3)), ((2, 3), (1, 1))]
)
def test_the_gradient_is_a_product(size_in, size):
    """Not a scatter, whose sums a GPU adds up in no fixed order."""
    maps, cotangent = maps_of(2, *size_in, 4), maps_of(2, *size, 4)

    def pulled_back(maps):
        return jax.vjp(partial(resize, size=size), maps)[1](cotangent)[0]

    assert "scatter" not in str(jax.make_jaxpr(pulled_back)(maps))
    rows, columns = (linear_matrix(n_in, n_out, np.float64) for n_in, n_out in zip(size_in, size, strict=True))
    assert error(pulled_back(maps), np.einsum("oh,pw,bopc->bhwc", rows, columns, cotangent)) < 1e-6
    # Forwards, and through itself.
    found = jax.jvp(partial(resize, size=size), (maps,), (maps,))
    agree(found, (resize(maps, size),) * 2, 1e-6)

    def squares(maps):
        return (resize(maps, size) ** 2).sum() / 2

    # Of squares the second derivative is the same everywhere: in the direction of the maps it is the first.
    gradient, of_gradient = jax.jvp(jax.grad(squares), (maps,), (maps,))
    assert error(of_gradient, gradient) < 1e-6
