"""Self-attention."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax.config import Dinov2Config
from dajax.model.layers import Dense
from dajax.model.platform import has_fused_attention, target_platform
from dajax.model.precision import product_precision, wide

# How many attention scores are computed at a time on a CPU, so that they stay in its cache, by the bytes of one number.
# Measured on a processor with 1 MiB of cache for each core and 32 MiB for all.
_CACHED_SCORES = {2: 2**20, 4: 2**21, 8: 2**20}


def dot_product_attention(
    query_bnhd: Float[Array, "batch tokens heads width"],
    key_bnhd: Float[Array, "batch tokens heads width"],
    value_bnhd: Float[Array, "batch tokens heads width"],
) -> Float[Array, "batch tokens heads width"]:
    """Return softmax(q k^T / sqrt(width)) v (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    Scores and softmax are computed in at least float32.
    """
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
    """Pad the tokens to an even number, because jax does not differentiate cuDNN's attention over an odd number."""
    batch, tokens = query_bnhd.shape[:2]
    if tokens % 2 == 0:
        return jax.nn.dot_product_attention(query_bnhd, key_bnhd, value_bnhd, implementation="cudnn")
    query, key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query_bnhd, key_bnhd, value_bnhd))
    lengths = jnp.full((batch,), tokens, jnp.int32)
    attended = jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return attended[:, :tokens]


@jax.custom_jvp
def _attend_in_cache(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> Array:
    """Compute one head at a time; if its scores do not fit into the cache, a part of its queries at a time."""
    batch, tokens, heads, width = query_bnhd.shape
    if batch == 0:
        return query_bnhd
    blocks = max(-(-tokens * tokens // _CACHED_SCORES[query_bnhd.dtype.itemsize]), 1)
    rows = -(-tokens // blocks)

    def of_head(x_bnhd: Array, i: Array, start: Array | int = 0, size: int = tokens) -> Array:
        return jax.lax.dynamic_slice(x_bnhd, (i // heads, start, i % heads, 0), (1, size, 1, width))[0, :, 0]

    def one_part(attended_bnhd: Array, number: Array) -> tuple[Array, None]:
        # The last part of a head ends at its last query, so it may repeat some queries of the part before.
        i, start = number // blocks, jnp.minimum(number % blocks * rows, tokens - rows)
        part_nd = _attend(of_head(query_bnhd, i, start, rows), of_head(key_bnhd, i), of_head(value_bnhd, i))
        place = (i // heads, start, i % heads, 0)
        return jax.lax.dynamic_update_slice(attended_bnhd, part_nd[None, :, None], place), None

    # The loop starts from the queries and overwrites all of them. `jax.lax.map` would start from zeros; XLA makes the
    # zeros of all layers before anything else, and they would occupy memory from the beginning.
    return jax.lax.scan(one_part, query_bnhd, jnp.arange(batch * heads * blocks))[0]


@_attend_in_cache.defjvp
def _attend_in_cache_derivative(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    return jax.jvp(_attend_by_heads, primals, tangents)


def _attend_by_heads(query_bnhd: Array, key_bnhd: Array, value_bnhd: Array) -> Array:
    """Compute as many heads at a time as fit into the cache, in a loop whose gradient is a loop as well."""
    batch, tokens, heads, width = query_bnhd.shape
    apart = (x.swapaxes(1, 2).reshape(batch * heads, tokens, width) for x in (query_bnhd, key_bnhd, value_bnhd))
    at_a_time = max(_CACHED_SCORES[query_bnhd.dtype.itemsize] // (tokens * tokens), 1)
    attended = jax.lax.map(
        lambda head: _attend(head[0], head[1], head[2], kept=True), tuple(apart), batch_size=at_a_time
    )
    return attended.reshape(batch, heads, tokens, width).swapaxes(1, 2)


def _attend(query_nd: Array, key_md: Array, value_md: Array, kept: bool = False) -> Array:
    dtype, precision = value_md.dtype, product_precision(value_md.dtype)
    scores_nm = jnp.einsum(
        "nd,md->nm", query_nd, key_md, precision=precision, preferred_element_type=wide(dtype)
    )  # fmt: skip
    scale = query_nd.shape[-1] ** -0.5
    unnormalised_nm = jnp.exp((scores_nm - scores_nm.max(-1, keepdims=True)) * scale).astype(dtype)
    if not kept:
        # The barrier keeps XLA from computing the exponentials twice, for the product and for the sum. If a backward
        # pass needs them, there is no barrier: it would store them twice, before and after the barrier.
        unnormalised_nm = jax.lax.optimization_barrier(unnormalised_nm)
    mixed_nd = jnp.einsum(
        "nm,md->nd", unnormalised_nm, value_md, precision=precision, preferred_element_type=scores_nm.dtype
    )
    # Dividing after the product takes tokens * width divisions instead of tokens * tokens.
    return (mixed_nd / unnormalised_nm.sum(-1, dtype=scores_nm.dtype, keepdims=True)).astype(dtype)


def attention_weights(
    query_bnhd: Float[Array, "batch tokens heads width"], key_bnhd: Float[Array, "batch tokens heads width"]
) -> Float[Array, "batch heads tokens tokens"]:
    """Return softmax(q k^T / sqrt(width)), computed in at least float32, in the dtype of the queries."""
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
    """Return each token's weighted sum of the values."""
    return jnp.einsum(
        "bhnm,bmhd->bnhd", weights_bhnm, value_bmhd, precision=product_precision(value_bmhd.dtype)
    )  # fmt: skip


class Attention(nn.Module):
    """Multi-head self-attention with its four projections.

    Attributes:
        config: the encoder's config.
        dtype: the computation dtype of the projections and of the products with queries, keys and values.
    """

    config: Dinov2Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, tokens_bnd: Float[Array, "batch tokens dim"], deterministic: bool, return_weights: bool
    ) -> tuple[Float[Array, "batch tokens dim"], Float[Array, "batch heads tokens tokens"] | None]:
        """Return what the layer adds to the tokens; and the attention weights, or None if they are not computed."""
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
