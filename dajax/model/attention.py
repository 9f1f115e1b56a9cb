"""Self-attention."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax.config import Dinov2Config

from .platform import target_platform
from .precision import wide


def dot_product_attention(
    query_bnhd: Float[Array, "batch tokens heads width"],
    key_bnhd: Float[Array, "batch tokens heads width"],
    value_bnhd: Float[Array, "batch tokens heads width"],
) -> Float[Array, "batch tokens heads width"]:
    """Return softmax(q k^T / sqrt(width)) v. Scores and softmax are at least float32."""
    if target_platform() != "cpu":
        return apply_attention(attention_weights(query_bnhd, key_bnhd), value_bnhd)

    # A processor's cache holds the scores of one head, not those of all: one at a time is four times as fast.
    def one_head(head: tuple[Array, Array, Array]) -> Array:
        query_nd, key_md, value_md = head
        scores_nm = jnp.einsum("nd,md->nm", query_nd, key_md, preferred_element_type=wide(query_nd.dtype))
        scores_nm = scores_nm * query_nd.shape[-1] ** -0.5
        unnormalised_nm = jnp.exp(scores_nm - scores_nm.max(-1, keepdims=True))
        mixed_nd = jnp.einsum(
            "nm,md->nd", unnormalised_nm.astype(value_md.dtype), value_md, preferred_element_type=scores_nm.dtype
        )
        # The sum divides [tokens, width] numbers here, not [tokens, tokens].
        return (mixed_nd / unnormalised_nm.sum(-1, keepdims=True)).astype(value_md.dtype)

    def apart(x_bnhd: Array) -> Array:
        return x_bnhd.swapaxes(1, 2).reshape(batch * heads, tokens, width)

    batch, tokens, heads, width = query_bnhd.shape
    attended = jax.lax.map(one_head, (apart(query_bnhd), apart(key_bnhd), apart(value_bnhd)))
    return attended.reshape(batch, heads, tokens, width).swapaxes(1, 2)


def attention_weights(
    query_bnhd: Float[Array, "batch tokens heads width"], key_bnhd: Float[Array, "batch tokens heads width"]
) -> Float[Array, "batch heads tokens tokens"]:
    """Return softmax(q k^T / sqrt(width)), computed in at least float32."""
    scores_bhnm = jnp.einsum("bnhd,bmhd->bhnm", query_bnhd, key_bnhd, preferred_element_type=wide(query_bnhd.dtype))
    return jax.nn.softmax(scores_bhnm * query_bnhd.shape[-1] ** -0.5, axis=-1).astype(query_bnhd.dtype)


def apply_attention(
    weights_bhnm: Float[Array, "batch heads tokens tokens"], value_bmhd: Float[Array, "batch tokens heads width"]
) -> Float[Array, "batch tokens heads width"]:
    """Return the values mixed by the weights."""
    return jnp.einsum("bhnm,bmhd->bnhd", weights_bhnm, value_bmhd)


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
        init = nn.initializers.normal(config.initializer_range)
        heads = config.num_attention_heads
        split = (*tokens_bnd.shape[:2], heads, config.hidden_size // heads)

        def project(name: str) -> Array:
            dense = nn.Dense(config.hidden_size, config.qkv_bias, dtype=self.dtype, kernel_init=init, name=name)
            return dense(tokens_bnd).reshape(split)

        query_bnhd, key_bnhd, value_bnhd = project("query"), project("key"), project("value")
        weights_bhnm = None
        if return_weights or (config.attention_probs_dropout_prob and not deterministic):
            weights_bhnm = attention_weights(query_bnhd, key_bnhd)
            dropout = nn.Dropout(config.attention_probs_dropout_prob, deterministic=deterministic)
            attended_bnhd = apply_attention(dropout(weights_bhnm), value_bnhd)
        else:
            attended_bnhd = dot_product_attention(query_bnhd, key_bnhd, value_bnhd)
        output = nn.Dense(config.hidden_size, dtype=self.dtype, kernel_init=init, name="output")
        return output(attended_bnhd.reshape(tokens_bnd.shape)), weights_bhnm
