"""A kernel's function has the derivatives of the plain formula, and takes part in jax's transformations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dajax.kernels.primitive import Kernel, kernel_function

X = jnp.linspace(0, 1, 6).reshape(2, 3)
W = jnp.linspace(-1, 1, 12).reshape(3, 4)


def plain(x, w, *, power):
    return jnp.sin(x) @ w * power


called = []


def compute(x, w, *, power):
    called.append("compute")
    return jnp.dot(jnp.sin(x), w) * power


def pull_back(arrays, cotangent, *, power):
    called.append("pull back")
    return jax.vjp(partial(plain, power=power), *arrays)[1](cotangent)


PLAIN = partial(plain, power=3.0)


@pytest.fixture(params=[None, pull_back], ids=["plain gradient", "its own gradient"])
def function(request):
    called.clear()
    return partial(kernel_function(Kernel(compute, plain, 1, request.param)), power=3.0)


def same(found, expected):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def loss(function):
    return lambda x, w: (function(x, w) ** 2).sum()


TRANSFORMS = {
    "value": lambda f: f,
    "jit": jax.jit,
    "grad": lambda f: jax.grad(loss(f), (0, 1)),
    "grad of one": lambda f: jax.grad(loss(f)),
    "jitted grad": lambda f: jax.jit(jax.grad(loss(f), (0, 1))),
    "forward": lambda f: jax.jacfwd(loss(f), (0, 1)),
    "hessian": lambda f: jax.hessian(loss(f)),
    "grad of grad": lambda f: jax.grad(lambda x, w: jax.grad(loss(f))(x, w).sum()),
    "remat": lambda f: jax.grad(loss(jax.checkpoint(f)), (0, 1)),
    "scan": lambda f: jax.grad(lambda x, w: jax.lax.scan(lambda c, _: (f(c, w)[:, :3], None), x, None, 3)[0].sum()),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(function, name):
    same(TRANSFORMS[name](function)(X, W), TRANSFORMS[name](PLAIN)(X, W))


@pytest.mark.parametrize("name", ["value", "jit", "grad", "jitted grad", "forward"])
@pytest.mark.parametrize("axes", [(0, None), (0, 0), (None, 0), (1, None)])
def test_vmap(function, name, axes):
    x = X if axes[0] is None else jnp.stack([X, 2 * X], axes[0])
    w = W if axes[1] is None else jnp.stack([W, -W])
    same(jax.vmap(TRANSFORMS[name](function), axes)(x, w), jax.vmap(TRANSFORMS[name](PLAIN), axes)(x, w))


def test_vmap_twice(function):
    x, w = jnp.stack([X, 2 * X]), jnp.stack([W, -W])
    found, expected = (jax.vmap(jax.vmap(TRANSFORMS["grad"](f), (0, None)), (None, 0))(x, w) for f in (function, PLAIN))
    same(found, expected)


def test_a_larger_batch_of_images_is_one_call(function):
    jax.vmap(function, (0, None))(jnp.stack([X, 2 * X]), W)
    assert called == ["compute"]


def test_the_kernel_s_gradient_is_its_own():
    called.clear()
    function = partial(kernel_function(Kernel(compute, plain, 1, pull_back)), power=3.0)
    jax.grad(loss(function))(X, W)
    assert "pull back" in called
    called.clear()
    jax.jacfwd(function)(X, W)
    assert "pull back" not in called, "forward mode follows the plain formula"


def test_a_program_that_is_divided_over_devices_takes_the_plain_formula(function):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    x, w = jax.device_put(X, rows), jax.device_put(W, whole)
    same(jax.jit(function)(x, w), PLAIN(X, W))
    assert called == []
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=(PartitionSpec("data"), PartitionSpec()), out_specs=PartitionSpec("data"),
        check_vma=False,
    )  # fmt: skip
    same(jax.jit(mapped)(x, w), PLAIN(X, W))
    assert called == ["compute"]


def test_what_xla_can_divide_is_the_kernel():
    called.clear()
    function = partial(kernel_function(Kernel(compute, plain, 1, can_be_divided=True)), power=3.0)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    same(jax.jit(function)(jax.device_put(X, NamedSharding(mesh, PartitionSpec("data"))), W), PLAIN(X, W))
    assert called == ["compute"]
