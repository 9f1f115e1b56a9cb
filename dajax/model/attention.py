"""Self-attention."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax.config import Dinov2Config

from .layers import Dense
from .loops import map_into
from .platform import has_fused_attention, target_platform
from .precision import product_precision, wide

# How many scores at a time a processor's cache holds, by bytes of a number; measured with 1 MiB of it for each core and
# 32 MiB for all.
_CACHED_SCORES = {2: 2**20, 4: 2**21, 8: 2**20}


def dot_product_attention(
    query_bnhd: Float[Array, "batch tokens heads width"],
    key_bnhd: Float[Array, "batch tokens heads width"],
    value_bnhd: Float[Array, "batch tokens heads width"],
) -> Float[Array, "batch tokens heads width"]:
    """Return softmax(q k^T / sqrt(width)) v. Scores and softmax are at least float32."""
    if target_platform() == "cpu":
        return _attend_in_cache(query_bnhd, key_bnhd, value_bnhd)
    if has_fused_attention(query_bnhd.dtype, query_bnhd.shape[-1]):
        return _fused(query_bnhd, key_bnhd, value_bnhd)
    return apply_attention(attention_weights(query_bnhd, key_bnhd), value_bnhd)


@jax.custom_vjp
def _fused(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> Array:
    return jax.nn.dot_product_attention(query_bnhd, key_bnhd, value_bnhd, implementation="cudnn")


def _fused_forward(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> tuple[Array, Any]:
    return jax.vjp(_fused_even, query_bnhd, key_bnhd, value_bnhd)


def _fused_backward(pull_back: Any, cotangent_bnhd: Array) -> tuple[Array, Array, Array]:
    return pull_back(cotangent_bnhd)


_fused.defvjp(_fused_forward, _fused_backward)


def _fused_even(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> Array:
    """Attend to an even number of tokens: jax refuses to differentiate cuDNN's attention to an odd one."""
    batch, tokens = query_bnhd.shape[:2]
    if tokens % 2 == 0:
        return jax.nn.dot_product_attention(query_bnhd, key_bnhd, value_bnhd, implementation="cudnn")
    query, key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query_bnhd, key_bnhd, value_bnhd))
    lengths = jnp.full((batch,), tokens, jnp.int32)
    attended = jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return attended[:, :tokens]


def _attend_in_cache(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> Array:
    """One head at a time, and where its scores are too many for the cache, a part of its queries at a time."""
    batch, tokens, heads, width = query_bnhd.shape
    blocks = max(-(-tokens * tokens // _CACHED_SCORES[query_bnhd.dtype.itemsize]), 1)
    rows = -(-tokens // blocks)

    def one_head(head: tuple[Array, Array, Array]) -> Array:
        query_nd, key_md, value_md = head
        if blocks == 1:
            return _attend(query_nd, key_md, value_md)
        query_knd = jnp.pad(query_nd, ((0, blocks * rows - tokens), (0, 0))).reshape(blocks, rows, width)
        attended_knd = jax.lax.map(lambda part_nd: _attend(part_nd, key_md, value_md), query_knd)
        return attended_knd.reshape(blocks * rows, width)[:tokens]

    def apart(x_bnhd: Array) -> Array:
        return x_bnhd.swapaxes(1, 2).reshape(batch * heads, tokens, width)

    heads_apart = (apart(query_bnhd), apart(key_bnhd), apart(value_bnhd))
    attended = map_into(heads_apart[0], one_head, heads_apart)
    return attended.reshape(batch, heads, tokens, width).swapaxes(1, 2)


def _attend(query_nd: Array, key_md: Array, value_md: Array) -> Array:
    dtype, precision = value_md.dtype, product_precision(value_md.dtype)
    scores_nm = jnp.einsum(
        "nd,md->nm", query_nd, key_md, precision=precision, preferred_element_type=wide(dtype)
    )  # fmt: skip
    scale = query_nd.shape[-1] ** -0.5
    unnormalised_nm = _once(jnp.exp((scores_nm - scores_nm.max(-1, keepdims=True)) * scale).astype(dtype))
    mixed_nd = jnp.einsum(
        "nm,md->nd", unnormalised_nm, value_md, precision=precision, preferred_element_type=scores_nm.dtype
    )
    # The sum divides [tokens, width] numbers here, not [tokens, tokens].
    return (mixed_nd / unnormalised_nm.sum(-1, dtype=scores_nm.dtype, keepdims=True)).astype(dtype)


@jax.custom_jvp
def _once(x: Array) -> Array:
    """Keep XLA from computing `x` once for each place that reads it."""
    return jax.lax.optimization_barrier(x)


@_once.defjvp
def _once_derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # Without the barrier: with it, the backward pass would keep what is on both of its sides.
    return primals[0], tangents[0]


def attention_weights(
    query_bnhd: Float[Array, "batch tokens heads width"], key_bnhd: Float[Array, "batch tokens heads width"]
) -> Float[Array, "batch heads tokens tokens"]:
    """Return softmax(q k^T / sqrt(width)), computed in at least float32."""
    scores_bhnm = jnp.einsum(
        "bnhd,bmhd->bhnm",
        query_bnhd,
        key_bnhd,
        precision=product_precision(query_bnhd.dtype),
        preferred_element_type=wide(query_bnhd.dtype),
    )
    return jax.nn.softmax(scores_bhnm * query_bnhd.shape[-1] ** -0.5, axis=-1).astype(query_bnhd.dtype)


def apply_attention(
    weights_bhnm: Float[Array, "batch heads tokens tokens"], value_bmhd: Float[Array, "batch tokens heads width"]
) -> Float[Array, "batch tokens heads width"]:
    """Return the values mixed by the weights."""
    return jnp.einsum(
        "bhnm,bmhd->bnhd", weights_bhnm, value_bmhd, precision=product_precision(value_bmhd.dtype)
    )  # fmt: skip


class Attention(nn.Module):
    """Multi-head self-attention with its four projections."""

    config: Dinov2Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, tokens_bnd: Float[Array, "batch tokens dim"], deterministic: bool, return_weights: bool
    ) -> tuple[Float[Array, "batch tokens dim"], Float[Array, "batch heads tokens tokens"] | None]:
        """Return the tokens' update, and the attention weights if asked for."""
        config = self.config
        heads = config.num_attention_heads
        split = (*tokens_bnd.shape[:2], heads, config.hidden_size // heads)

        def project(name: str) -> Array:
            dense = Dense(config.hidden_size, self.dtype, config.initializer_range, config.qkv_bias, name=name)
            return dense(tokens_bnd).astype(self.dtype).reshape(split)

        query_bnhd, key_bnhd, value_bnhd = project("query"), project("key"), project("value")
        weights_bhnm = None
        if return_weights or (config.attention_probs_dropout_prob and not deterministic):
            weights_bhnm = attention_weights(query_bnhd, key_bnhd)
            dropout = nn.Dropout(config.attention_probs_dropout_prob, deterministic=deterministic)
            attended_bnhd = apply_attention(dropout(weights_bhnm), value_bnhd)
        else:
            attended_bnhd = dot_product_attention(query_bnhd, key_bnhd, value_bnhd)
        output = Dense(config.hidden_size, self.dtype, config.initializer_range, name="output")
        return output(attended_bnhd.reshape(tokens_bnd.shape)), weights_bhnm
