"""The operations on NVIDIA's GPUs: cuDNN's attention in half precision, which never stores the scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dajax.kernels import reference
from dajax.kernels.primitive import Kernel, kernel_function
from dajax.kernels.targets import Target

# The limits of cuDNN in https://docs.jax.dev/en/latest/_autosummary/jax.nn.dot_product_attention.html
_CAPABILITY = (8, 0)
_WIDTH = 128


def takes_attention(target: Target, query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> bool:
    """Return whether cuDNN takes it: half precision, heads of at most 128 channels, GPUs since Ampere."""
    width = query_bnhd.shape[-1]
    is_half = query_bnhd.dtype.itemsize == 2
    return is_half and width % 8 == 0 and width <= _WIDTH and target.capability >= _CAPABILITY


def _compute(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> Array:
    return jax.nn.dot_product_attention(query_bnhd, key_bnhd, value_bnhd, implementation="cudnn")


def _compute_even(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> Array:
    """Pad the tokens to an even number, because jax does not differentiate cuDNN's attention over an odd number."""
    batch, tokens = query_bnhd.shape[:2]
    if tokens % 2 == 0:
        return _compute(query_bnhd, key_bnhd, value_bnhd)
    query, key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query_bnhd, key_bnhd, value_bnhd))
    lengths = jnp.full((batch,), tokens, jnp.int32)
    attended = jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return attended[:, :tokens]


def _pull_back(heads: tuple[Array, ...], cotangent_bnhd: Array) -> tuple[Array, ...]:
    return jax.vjp(_compute_even, *heads)[1](cotangent_bnhd)


# jax tells XLA how to divide cuDNN's attention over devices.
attention = kernel_function(Kernel(_compute, reference.attention, 3, _pull_back, can_be_divided=True))
