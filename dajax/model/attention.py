"""Self-attention."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax import kernels
from dajax.config import Dinov2Config
from dajax.model.layers import Dense


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
            weights_bhnm = kernels.attention_weights(query_bnhd, key_bnhd)
            dropout = nn.Dropout(config.attention_probs_dropout_prob, deterministic=deterministic)
            attended_bnhd = kernels.apply_attention(dropout(weights_bhnm), value_bnhd)
        else:
            attended_bnhd = kernels.attention(query_bnhd, key_bnhd, value_bnhd)
        output = Dense(config.hidden_size, self.dtype, config.initializer_range, name="output")
        return output(attended_bnhd.reshape(tokens_bnd.shape)), weights_bhnm
