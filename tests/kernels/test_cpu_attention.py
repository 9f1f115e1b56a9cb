"""Attention in parts, as CPUs do it, is attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeded import error, uniform

from dajax.kernels import attention, cpu
from dajax.kernels.reference import attention as plain


def heads_of(tokens, batch=2, heads=3, width=8, dtype=jnp.float32):
    return [jnp.asarray(uniform(f"{name} {tokens}", (batch, tokens, heads, width)), dtype) for name in "qkv"]


# 1: every head in one part. 7: in parts of one query. 100: 17 tokens in three parts, the last one padded. 1200: the
# backward pass takes four of six heads at a time, and then two.
@pytest.mark.parametrize("scores", [2**20, 7, 100, 1200])
@pytest.mark.parametrize("tokens", [1, 17])
def test_parts_are_the_whole(monkeypatch, scores, tokens):
    monkeypatch.setattr(cpu, "_CACHED_SCORES", {4: scores})
    heads = heads_of(tokens)
    found = jax.jit(lambda *heads: attention(*heads))(*heads)
    assert error(found, plain(*heads)) < 2e-6
    found, expected = (
        jax.jit(jax.grad(lambda heads, way=way: (way(*heads) ** 2).sum()))(heads) for way in (attention, plain)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() < 1e-5


def test_scores_that_would_overflow():
    query, key, value = heads_of(9)
    found = attention(query * 1e4, key * 1e4, value)
    assert np.isfinite(found).all()
    assert error(found, plain(query * 1e4, key * 1e4, value)) < 2e-6


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_half_precision_keeps_scores_in_float32(dtype, bound):
    heads = heads_of(17, dtype=dtype)
    found = attention(*heads)
    assert found.dtype == dtype
    assert error(found.astype(jnp.float32), plain(*(x.astype(jnp.float32) for x in heads))) < bound
    # Products up to 10,000: rounded to bfloat16 they would be off by 32.
    query, key, value = (100 * x.astype(jnp.float32) for x in heads)
    rounded = [x.astype(dtype) for x in (query, key, value)]
    exact = plain(*(x.astype(jnp.float32) for x in rounded))
    assert error(attention(*rounded).astype(jnp.float32), exact) < bound
