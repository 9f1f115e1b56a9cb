"""Self-attention."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax.config import Dinov2Config

from .precision import wide


def dot_product_attention(
    query_bnhd: Float[Array, "batch tokens heads width"],
    key_bmhd: Float[Array, "batch tokens heads width"],
    value_bmhd: Float[Array, "batch tokens heads width"],
    dropout: nn.Dropout | None = None,
    deterministic: bool = True,
) -> tuple[Float[Array, "batch tokens heads width"], Float[Array, "batch heads tokens tokens"]]:
    """Return softmax(q k^T / sqrt(width)) v, and the softmax. Scores and softmax are at least float32."""
    scores_bhnm = jnp.einsum("bnhd,bmhd->bhnm", query_bnhd, key_bmhd, preferred_element_type=wide(query_bnhd.dtype))
    weights_bhnm = jax.nn.softmax(scores_bhnm * query_bnhd.shape[-1] ** -0.5, axis=-1).astype(value_bmhd.dtype)
    dropped_bhnm = dropout(weights_bhnm, deterministic=deterministic) if dropout else weights_bhnm
    return jnp.einsum("bhnm,bmhd->bnhd", dropped_bhnm, value_bmhd), weights_bhnm


class Attention(nn.Module):
    """Multi-head self-attention with its four projections."""

    config: Dinov2Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, tokens_bnd: Float[Array, "batch tokens dim"], deterministic: bool
    ) -> tuple[Float[Array, "batch tokens dim"], Float[Array, "batch heads tokens tokens"]]:
        """Return the tokens' update and the attention weights."""
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        heads = config.num_attention_heads
        split = (*tokens_bnd.shape[:2], heads, config.hidden_size // heads)

        def project(name: str) -> Array:
            dense = nn.Dense(config.hidden_size, config.qkv_bias, dtype=self.dtype, kernel_init=init, name=name)
            return dense(tokens_bnd).reshape(split)

        dropout = nn.Dropout(config.attention_probs_dropout_prob) if config.attention_probs_dropout_prob else None
        attended_bnhd, weights_bhnm = dot_product_attention(
            project("query"), project("key"), project("value"), dropout, deterministic
        )
        output = nn.Dense(config.hidden_size, dtype=self.dtype, kernel_init=init, name="output")
        return output(attended_bnhd.reshape(tokens_bnd.shape)), weights_bhnm
