"""The encoder: DINOv2, a vision transformer with LayerScale (Oquab et al. 2023, arXiv:2304.07193)."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dajax import kernels
from dajax.config import Dinov2Config
from dajax.model.attention import Attention
from dajax.model.layers import Dense, gelu, parameter
from dajax.resample import cubic_matrix


class PatchEmbeddings(nn.Module):
    """One linear layer that is applied to every patch.

    It is a convolution whose stride equals its kernel, so it is computed as a matrix product.
    """

    config: Dinov2Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels_bhwc: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows cols dim"]:
        """Return one token for each patch, in at least float32."""
        config, p = self.config, self.config.patch_size
        shape = (p, p, config.num_channels, config.hidden_size)
        kernel = parameter(self, "kernel", nn.initializers.normal(config.initializer_range), shape)
        bias = parameter(self, "bias", nn.initializers.zeros, (config.hidden_size,))
        batch, height, width, channels = pixels_bhwc.shape
        patches = pixels_bhwc.reshape(batch, height // p, p, width // p, p, channels)
        tokens_bhwd = kernels.product("bhywxc,yxcd->bhwd", patches, kernel, self.dtype)
        return tokens_bhwd + bias.astype(tokens_bhwd.dtype)


class Embeddings(nn.Module):
    """Patch tokens and a class token, with position embeddings that are resampled to the image's grid."""

    config: Dinov2Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels_bhwc: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens dim"]:
        """Return the class token followed by the patch tokens, row by row, in at least float32."""
        config = self.config
        grid, width = config.grid_size, config.hidden_size
        init = nn.initializers.normal(config.initializer_range)
        cls_token = parameter(self, "cls_token", init, (1, 1, width))
        positions = parameter(self, "position_embeddings", init, (1, 1 + grid * grid, width))
        if config.use_mask_token:  # only DINOv2's pre-training uses it, but every checkpoint has it
            parameter(self, "mask_token", nn.initializers.zeros, (1, width))

        patches_bhwd = PatchEmbeddings(config, self.dtype, name="patch_embeddings")(pixels_bhwc)
        batch, rows, cols, _ = patches_bhwd.shape
        dtype = patches_bhwd.dtype
        tokens_bnd = jnp.concatenate(
            [
                jnp.broadcast_to(cls_token.astype(dtype), (batch, 1, width)),
                patches_bhwd.reshape(batch, rows * cols, width),
            ],
            1,
        )
        return tokens_bnd + resample_positions(positions, config, rows, cols).astype(dtype)


def resample_positions(
    positions: Float[Array, "1 tokens dim"], config: Dinov2Config, rows: int, cols: int
) -> Float[Array, "1 tokens_out dim"]:
    """Resample position embeddings from their square training grid to `rows` x `cols` patches.

    The filter is bicubic (a = -0.75, no antialiasing) and computed in float32. On the training grid the embeddings are
    returned unchanged.

    Args:
        positions: the embedding of the class token followed by those of the training grid, row by row.
        config: the encoder's config. Its `interpolate_offset` is the +0.1 of the authors' code, which moves every
            sampling point a little.
        rows: the number of patches from top to bottom.
        cols: the number of patches from left to right.
    """
    grid, offset = config.grid_size, config.interpolate_offset
    if (rows, cols) == (grid, grid):
        return positions
    class_position, patch_positions = positions[:, :1], positions[:, 1:]
    over_rows, over_cols = (
        jnp.asarray(cubic_matrix(grid, n, scale=grid / (n + offset)), jnp.float32) for n in (rows, cols)
    )
    resampled = jnp.einsum(
        "Hh,Ww,hwd->HWd",
        over_rows,
        over_cols,
        patch_positions.astype(jnp.float32).reshape(grid, grid, -1),
        precision=jax.lax.Precision.HIGHEST,
    )
    # The result stays in at least float32, even if the params are in half precision: the sum with the tokens is wide.
    dtype = kernels.wide(positions.dtype)
    return jnp.concatenate([class_position.astype(dtype), resampled.reshape(1, rows * cols, -1).astype(dtype)], 1)


class LayerNorm(nn.Module):
    """Layer normalisation over the width (Ba et al. 2016, arXiv:1607.06450), computed in at least float32."""

    config: Dinov2Config
    dtype: jnp.dtype

    def __call__(self, tokens_bnd: Float[Array, "... tokens dim"]) -> Float[Array, "... tokens dim"]:
        """Return the normalised tokens in `dtype`."""
        return kernels.layer_norm(tokens_bnd, *self._scale_and_bias(tokens_bnd), self.config.layer_norm_eps, self.dtype)

    def each(self, taps: tuple[Float[Array, "batch tokens dim"], ...]) -> tuple[Array, ...]:
        """Return the normalised tokens of each tap in `dtype`."""
        return kernels.layer_norms(taps, *self._scale_and_bias(taps[0]), self.config.layer_norm_eps, self.dtype)

    @nn.compact
    def _scale_and_bias(self, tokens_bnd: Array) -> tuple[Array, Array]:
        shape = tokens_bnd.shape[-1:]
        scale = parameter(self, "scale", nn.initializers.ones, shape)
        return scale, parameter(self, "bias", nn.initializers.zeros, shape)


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    config: Dinov2Config

    @nn.compact
    def __call__(self, tokens_bnd: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        """Return the scaled branch."""
        init = nn.initializers.constant(self.config.layerscale_value)
        return tokens_bnd * parameter(self, "lambda1", init, tokens_bnd.shape[-1:]).astype(tokens_bnd.dtype)


class MLP(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    config: Dinov2Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens_bnd: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        """Return what the layer adds to the tokens."""
        config, stddev = self.config, self.config.initializer_range
        hidden_bnm = gelu(Dense(config.mlp_width, self.dtype, stddev, name="fc1")(tokens_bnd))
        return Dense(config.hidden_size, self.dtype, stddev, name="fc2")(hidden_bnm)


class SwiGLU(nn.Module):
    """A gated MLP (Shazeer 2020, arXiv:2002.05202). Gate and up projection are one matrix, as in the checkpoints."""

    config: Dinov2Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens_bnd: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        """Return what the layer adds to the tokens."""
        config, stddev = self.config, self.config.initializer_range
        both = Dense(2 * config.mlp_width, self.dtype, stddev, name="weights_in")(tokens_bnd)
        gate_bnm, up_bnm = jnp.split(both, 2, axis=-1)
        return Dense(config.hidden_size, self.dtype, stddev, name="weights_out")(nn.silu(gate_bnm) * up_bnm)


class Layer(nn.Module):
    """A pre-norm transformer layer.

    The tokens stay in at least float32, whatever `dtype` is, because rounding errors add up from layer to layer.
    """

    config: Dinov2Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, tokens_bnd: Float[Array, "batch tokens dim"], deterministic: bool, return_weights: bool
    ) -> tuple[Float[Array, "batch tokens dim"], Float[Array, "batch heads tokens tokens"] | None]:
        """Return the tokens; and the attention weights, or None if they are not computed."""
        config, dtype = self.config, self.dtype
        drop_path = nn.Dropout(config.drop_path_rate, broadcast_dims=(1, 2), deterministic=deterministic)

        normed_bnd = LayerNorm(config, dtype, name="norm1")(tokens_bnd)
        update_bnd, weights_bhnm = Attention(config, dtype, name="attention")(normed_bnd, deterministic, return_weights)
        tokens_bnd = tokens_bnd + drop_path(LayerScale(config, name="layer_scale1")(update_bnd))

        normed_bnd = LayerNorm(config, dtype, name="norm2")(tokens_bnd)
        update_bnd = (SwiGLU if config.use_swiglu_ffn else MLP)(config, dtype, name="mlp")(normed_bnd)
        tokens_bnd = tokens_bnd + drop_path(LayerScale(config, name="layer_scale2")(update_bnd))
        return tokens_bnd, weights_bhnm


class EncoderOutput(NamedTuple):
    """The output of the encoder.

    Attributes:
        taps: the normalised tokens after the layers `out_indices`, class token included. The neck reads them.
        hidden_states: the tokens before the first layer and after each layer, not normalised.
        attentions: the softmax weights of each layer, or None for layers that did not compute them.
    """

    taps: tuple[Array, ...]
    hidden_states: tuple[Array, ...]
    attentions: tuple[Array | None, ...]


class Dinov2(nn.Module):
    """The encoder.

    Attributes:
        config: the encoder's config.
        dtype: the computation dtype of matrix products.
        tap_dtype: the dtype of the taps.
        remat: whether the backward pass recomputes each layer instead of keeping its activations.
    """

    config: Dinov2Config
    dtype: jnp.dtype
    tap_dtype: jnp.dtype
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        pixels_bhwc: Float[Array, "batch height width channels"],
        deterministic: bool = True,
        return_weights: bool = False,
    ) -> EncoderOutput:
        """Return taps, hidden states and, if `return_weights` is set, attention weights."""
        config = self.config
        # All layers are alike. Under nn.jit only the first is traced, and the others call it.
        layer = (nn.remat if self.remat else nn.jit)(Layer, static_argnums=(2, 3))
        tokens_bnd = Embeddings(config, self.dtype, name="embeddings")(pixels_bhwc)
        tokens_bnd = nn.Dropout(config.hidden_dropout_prob, deterministic=deterministic)(tokens_bnd)
        hidden_states, attentions = [tokens_bnd], []
        for i in range(config.num_hidden_layers):
            tokens_bnd, weights_bhnm = layer(config, self.dtype, name=f"layer_{i}")(
                tokens_bnd, deterministic, return_weights
            )
            hidden_states.append(tokens_bnd)
            attentions.append(weights_bhnm)
        taps = tuple(hidden_states[i] for i in config.out_indices)
        # A model that taps no layer, or that does not normalise the taps, still has the norm's params.
        norm = LayerNorm(config, self.tap_dtype, name="layernorm")
        if config.apply_layernorm and taps:
            taps = norm.each(taps)
        elif self.is_initializing():
            norm(tokens_bnd)
        return EncoderOutput(taps, tuple(hidden_states), tuple(attentions))
