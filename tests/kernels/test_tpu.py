"""The kernels of TPUs, interpreted on this machine, compute the plain formulas. That a TPU's compiler takes them is
shown by tests/compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from seeded import error, uniform

from dajax.kernels import operations, reference, target, tpu
from dajax.kernels.targets import Target
from dajax.resample import linear_matrix

TPU = Target("tpu")

# Errors are the largest ones, in deviations. A result in bfloat16 is rounded to 8 digits: by 2^-9 of itself, and the
# largest are some deviations large. In float32 sums have another order.
ROUNDING = {"float32": 5e-6, "bfloat16": 0.02}


@pytest.fixture(autouse=True)
def interpreted():
    with target("tpu", interpreted=True), jax.numpy_dtype_promotion("strict"):
        yield


def array(name, *shape, dtype=jnp.float32):
    return jnp.asarray(uniform(f"{name} {shape}", shape), dtype)


def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


# --- attention -----------------------------------------------------------------------------------------------------


def heads_of(tokens, heads=2, width=64, dtype=jnp.float32, batch=2):
    return [array(name, batch, tokens, heads, width, dtype=dtype) for name in "qkv"]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("heads", "width"), [(2, 64), (4, 32), (1, 128), (6, 64)])
@pytest.mark.parametrize("tokens", [1, 17, 300])
def test_attention(dtype, heads, width, tokens):
    given = heads_of(tokens, heads, width, dtype)
    assert operations.choose("attention", *given) is tpu.attention
    found = operations.attention(*given)
    assert found.dtype == dtype
    assert error(wide(found), reference.attention(*wide(given))) < ROUNDING[dtype]


def test_scores_that_would_overflow():
    query, key, value = heads_of(9)
    found = operations.attention(query * 1e4, key * 1e4, value)
    assert error(found, reference.attention(query * 1e4, key * 1e4, value)) < ROUNDING["float32"]


def test_few_queries_at_a_time(monkeypatch):
    monkeypatch.setattr(tpu, "_KERNEL_BYTES", 100 * 3 * 4 * 2 * 32)
    assert tpu._queries(100) == 32
    given = heads_of(100)
    assert error(operations.attention(*given), reference.attention(*given)) < ROUNDING["float32"]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("tokens", [5, 130])
def test_gradients_of_attention(dtype, tokens):
    # The gradient in bfloat16 is jax's own kernel, which only this can interpret.
    with pltpu.force_tpu_interpret_mode():
        gradients_of_attention(dtype, tokens)


def gradients_of_attention(dtype, tokens):
    given = heads_of(tokens, dtype=dtype)
    mask = array("mask", *given[0].shape)

    def loss(attend, *heads):
        return (attend(*heads).astype(jnp.float32) * mask).sum()

    found = jax.grad(partial(loss, operations.attention), (0, 1, 2))(*given)
    expected = jax.grad(partial(loss, reference.attention), (0, 1, 2))(*wide(given))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert error(wide(ours), theirs) < 2 * ROUNDING[dtype]
    tangents = wide(given)
    ours, theirs = (
        jax.jvp(partial(loss, way), wide(given), tangents)[1] for way in (operations.attention, reference.attention)
    )
    assert abs(ours - theirs) < 1e-4 * abs(theirs)


@pytest.mark.parametrize(
    ("heads", "width", "dtype"), [(1, 64, "bfloat16"), (3, 64, "bfloat16"), (2, 48, "float32"), (2, 64, "float16")]
)
def test_other_heads_take_the_plain_formula(heads, width, dtype):
    assert operations.choose("attention", *heads_of(5, heads, width, dtype)) is reference.attention


# --- layer normalisation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("tokens", [1, 17, 300])
def test_layer_norm(dtype, tokens):
    given = array("tokens", 2, tokens, 128), array("scale", 128), array("bias", 128)
    options = {"epsilon": 1e-6, "dtype": jnp.dtype(dtype)}
    assert operations.choose("layer_norm", *given, **options) is tpu.layer_norm
    found = operations.layer_norm(*given, 1e-6, dtype)
    assert found.dtype == dtype
    assert error(wide(found), reference.layer_norm(*given, epsilon=1e-6, dtype=jnp.float32)) < ROUNDING[dtype]
    first, second = operations.layer_norms((given[0], 2 * given[0]), *given[1:], 1e-6, dtype)
    np.testing.assert_array_equal(first, found)
    assert second.shape == found.shape
    gradient = jax.grad(lambda x: (operations.layer_norm(x, *given[1:], 1e-6, "float32") ** 3).sum())(given[0])
    plain = partial(reference.layer_norm, epsilon=1e-6, dtype=jnp.float32)
    assert error(gradient, jax.grad(lambda x: (plain(x, *given[1:]) ** 3).sum())(given[0])) < 1e-5


def test_other_widths_take_the_plain_formula():
    given = array("tokens", 2, 5, 96), array("scale", 96), array("bias", 96)
    assert operations.choose("layer_norm", *given, epsilon=1e-6, dtype="float32") is reference.layer_norm


# --- the neck ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size_in", "size", "channels"), [
    ((5, 7), (9, 14), 64), ((5, 7), (9, 13), 64), ((4, 6), (8, 12), 32), ((3, 3), (5, 4), 48), ((5, 7), (5, 7), 64),
])  # fmt: skip
def test_resize(size_in, size, channels):
    features = array("features", 2, *size_in, channels)
    assert operations.choose("resize", features, size) is tpu.resize
    found = operations.resize(features, size)
    rows, columns = (linear_matrix(n_in, n_out, np.float64) for n_in, n_out in zip(size_in, size, strict=True))
    assert error(found, np.einsum("oh,pw,bhwc->bopc", rows, columns, features)) < 1e-6


def test_project_patches():
    tokens, weights = array("tokens", 2, 10, 8), (array("kernel", 8, 5), array("bias", 5))
    found = operations.project_patches(tokens, weights, jnp.float32)
    assert error(found, np.einsum("bnc,cd->bnd", tokens[:, 1:], weights[0]) + weights[1]) < 1e-6


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("features", [64, 128, 48])
def test_upsample_and_convolve(factor, features):
    x = array("features", 2, 5, 7, 24)
    upsampling = array("blocks", factor, factor, 24, 24) / 5, array("bias", 24)
    given = (x, upsampling, array("kernel", 3, 3, 24, features) / 9, jnp.float32)
    assert operations.choose("upsample_and_convolve", *given) is tpu.upsample_and_convolve
    found = operations.upsample_and_convolve(*given)
    assert error(found, reference.upsample_and_convolve(*given)) < ROUNDING["float32"]
    without = (x, (upsampling[0], None), *given[2:])
    assert (
        error(operations.upsample_and_convolve(*without), reference.upsample_and_convolve(*without))
        < ROUNDING["float32"]
    )

    def loss(way, blocks, bias, kernel):
        return (way(x, (blocks, bias), kernel, jnp.float32) ** 2).sum()

    found, expected = (
        jax.grad(partial(loss, way), (0, 1, 2))(*upsampling, given[2])
        for way in (operations.upsample_and_convolve, reference.upsample_and_convolve)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert error(ours, theirs) < 1e-5


@pytest.mark.parametrize(("channels", "width"), [(64, 10), (32, 8), (16, 24)])
def test_residual_unit(channels, width):
    x = array("features", 2, 5, width, channels)
    units = [(array(name, 3, 3, channels, channels) / 9, array(f"{name} bias", channels)) for name in ("one", "two")]
    given = (x, *units, jnp.float32)
    assert operations.choose("residual_unit", *given) is tpu.residual_unit
    assert error(operations.residual_unit(*given), reference.residual_unit(*given)) < ROUNDING["float32"]


@pytest.mark.parametrize(("channels", "width"), [(64, 9), (48, 8), (128, 8)])
def test_other_residual_units_take_the_plain_formula(channels, width):
    weights = (array("one", 3, 3, channels, channels), None)
    given = (array("features", 1, 4, width, channels), weights, weights, jnp.float32)
    assert operations.choose("residual_unit", *given) is reference.residual_unit


# --- resize and convolve -------------------------------------------------------------------------------------------

PROJECTION = (array("projection", 32, 1), jnp.asarray([0.3], jnp.float32))


def convolution(size_in, size, channels, features, projection=None, bias=True):
    weights = (array("kernel", 3, 3, channels, features) / 9, array("bias", features) if bias else None)
    return array("features", 2, *size_in, channels, dtype=jnp.bfloat16), size, weights, jnp.bfloat16, projection


@pytest.mark.parametrize(
    ("size_in", "size", "channels", "features", "projection"),
    [
        ((20, 24), (38, 45), 16, 32, PROJECTION),  # the network's own ratio; not a multiple of eight rows
        ((20, 24), (40, 46), 16, 32, None),
        ((9, 7), (17, 14), 32, 64, None),  # two rows in one product
        ((9, 7), (17, 14), 16, 128, None),  # one row
        ((9, 7), (9, 7), 16, 32, PROJECTION),  # nothing is resized
        ((30, 20), (11, 9), 16, 32, PROJECTION),  # to fewer rows
        ((1, 1), (9, 4), 16, 32, PROJECTION),
        ((2, 40), (70, 75), 16, 32, PROJECTION),  # several steps
    ],
)
def test_resize_and_convolve(size_in, size, channels, features, projection):
    given = convolution(size_in, size, channels, features, projection)
    assert operations.choose("resize_and_convolve", *given) is tpu.resize_and_convolve
    found = operations.resize_and_convolve(*given)
    exact = reference.resize_and_convolve(given[0].astype(jnp.float32), size, given[2], jnp.float32, projection)
    assert found.shape == exact.shape
    assert found.dtype == jnp.float32
    assert error(found, exact) < ROUNDING["bfloat16"]


def test_without_biases():
    given = convolution((9, 7), (17, 14), 16, 32, (PROJECTION[0], None), bias=False)
    exact = reference.resize_and_convolve(given[0].astype(jnp.float32), given[1], given[2], jnp.float32, given[4])
    assert error(operations.resize_and_convolve(*given), exact) < ROUNDING["bfloat16"]


def test_steps_are_the_whole(monkeypatch):
    """Blocks of eight rows read other rows than blocks of sixty-four, and give the same."""
    given = convolution((20, 24), (38, 45), 16, 32, PROJECTION)
    assert tpu._rows(20, 24, (38, 45), 16, 32) == 64
    whole = operations.resize_and_convolve(*given)
    monkeypatch.setattr(tpu, "_rows", lambda *_: 8)
    jax.clear_caches()
    np.testing.assert_allclose(operations.resize_and_convolve(*given), whole, atol=1e-6)


def test_gradients_of_resize_and_convolve():
    given = convolution((9, 7), (17, 14), 16, 32)
    mask = array("mask", 2, 17, 14, 32)

    def loss(way, dtype, features, weights):
        return (way(features, given[1], weights, dtype) * mask).sum()

    found = jax.grad(partial(loss, operations.resize_and_convolve, jnp.bfloat16), (0, 1))(given[0], given[2])
    exact = jax.grad(partial(loss, reference.resize_and_convolve, jnp.float32), (0, 1))(wide(given[0]), given[2])
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert error(wide(ours), theirs) < 2 * ROUNDING["bfloat16"]


@pytest.mark.parametrize("change", [
    {"dtype": jnp.float32}, {"channels": 24}, {"features": 12}, {"projection": (array("two", 32, 2), None)},
])  # fmt: skip
def test_other_convolutions_take_the_plain_formula(change):
    sizes = {"channels": 16, "features": 32, "projection": None} | change
    dtype = sizes.pop("dtype", jnp.bfloat16)
    given = convolution((9, 7), (17, 14), **sizes)
    assert operations.choose("resize_and_convolve", *given[:3], dtype, given[4]) is reference.resize_and_convolve


def test_rows_that_do_not_fit_on_the_chip_take_the_plain_formula():
    given = convolution((9, 7), (17, 14), 16, 32)
    assert tpu.takes_resize_and_convolve(TPU, *given)
    wide_features = jax.ShapeDtypeStruct((1, 2000, 9000, 256), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((3, 3, 256, 128), jnp.float32)
    assert not tpu.takes_resize_and_convolve(TPU, wide_features, (4000, 18000), (kernel, None), jnp.bfloat16)
