"""Depth Anything V1 and V2: encoder, neck and head in one module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError, ImageError
from dajax.losses import affine_invariant_loss, silog_loss
from dajax.model.dinov2 import Dinov2
from dajax.model.head import Head
from dajax.model.neck import Neck
from dajax.model.platform import convolution_dtype, target_platform


@flax.struct.dataclass
class DepthEstimatorOutput:
    """What a model gives: a pytree, so it may cross `jit`, `vmap` and `pmap`.

    Attributes:
        predicted_depth: float32 [batch, height, width]; affine-invariant inverse depth, bigger is nearer (relative
            models), or metres (metric models).
        hidden_states: tokens [batch, 1 + patches, width] before the first layer and after each; None unless asked for.
        attentions: softmax weights [batch, heads, 1 + patches, 1 + patches] of each layer; None unless asked for.
        loss: scalar; None without labels.
    """

    # Any: transformations put shapes, axes and placeholders where arrays stand.
    predicted_depth: Any
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None
    loss: Any = None


# Depth, hidden states, attention weights.
Estimate = tuple[Array, tuple[Array, ...], tuple[Array | None, ...]]

# Patches of an image from which on it goes through a CPU alone.
_TOKENS_FOR_A_CPU = 512


class DepthAnything(nn.Module):
    """Depth Anything V1 or V2 as a Linen module.

    `model.init(key, pixels)["params"]` is freshly initialised as Transformers does it; `dajax.load` gives trained ones.

    Attributes:
        config: what is built.
        dtype: what the trunk computes in: float32, bfloat16 or float16 (float64 where jax has x64 switched on). Norms,
            softmax and the last layers are at least float32, and so is the output.
        remat: recompute each encoder layer in the backward pass: less memory, a third more time.
    """

    config: DepthAnythingConfig
    dtype: Any = jnp.float32
    remat: bool = False

    def __call__(
        self,
        pixels: Shaped[Array | np.ndarray, ...],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        labels: Shaped[Array | np.ndarray, ...] | None = None,
        deterministic: bool = True,
    ) -> DepthEstimatorOutput:
        """Estimate depth.

        Args:
            pixels: float [batch, height, width, 3], normalised (`DepthImageProcessor`); height and width are multiples
                of the patch size, 14.
            output_hidden_states: also return the encoder's tokens.
            output_attentions: also return the encoder's attention weights.
            labels: float [batch, height, width], target depth, for a loss: metres (metric models; scale-invariant
                logarithmic loss) or inverse depth (relative models; scale-and-shift-invariant loss). Pixels that are
                not finite or <= 0 are left out.
            deterministic: False applies the config's dropout rates (all 0 in released checkpoints), with
                `rngs={"dropout": key}`.

        Raises:
            ImageError: pixels or labels have the wrong rank, channels, size or type.
            ConfigError: `dtype` is not a floating-point type.
        """
        config = self.config
        pixels = jnp.asarray(pixels)
        dtype = jnp.dtype(self.dtype)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ConfigError(f"dtype must be a floating-point type such as float32 or bfloat16, got {dtype}")
        size = _check_pixels(pixels, config)
        grid = (size[0] // config.patch_size, size[1] // config.patch_size)

        if deterministic and self._one_by_one(pixels.shape[0], grid):
            estimate = partial(_estimate, self.clone(parent=None, name=None), output_attentions)
            depth_bhw, hidden_states, attentions = _one_by_one(estimate, self.variables["params"], pixels)
        else:
            depth_bhw, hidden_states, attentions = self._estimate(pixels, deterministic, output_attentions)

        return DepthEstimatorOutput(
            predicted_depth=depth_bhw,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
            loss=None if labels is None else _loss(depth_bhw, jnp.asarray(labels), config),
        )

    @nn.compact
    def _estimate(self, pixels_bhwc: Array, deterministic: bool, return_weights: bool) -> Estimate:
        config, dtype, (height, width) = self.config, jnp.dtype(self.dtype), pixels_bhwc.shape[1:3]
        # Convolutions may be in more than the trunk.
        wider = convolution_dtype(dtype)
        encoded = Dinov2(config.backbone_config, dtype, wider, self.remat, name="backbone")(
            pixels_bhwc, deterministic, return_weights
        )
        grid = (height // config.patch_size, width // config.patch_size)
        fused = Neck(config, wider, name="neck")(encoded.taps, grid)
        depth_bhw = Head(config, wider, name="head")(fused[config.head_in_index], (height, width))
        return depth_bhw, encoded.hidden_states, encoded.attentions

    def _one_by_one(self, batch: int, grid: tuple[int, int]) -> bool:
        """Return whether the images of a batch are to be taken in turn: where one is enough to keep the cores busy.

        On a CPU the activations of one image stay in the cache. Not where the caller collects what is inside: the
        collected arrays would have another axis.
        """
        enough = batch > 1 and grid[0] * grid[1] >= _TOKENS_FOR_A_CPU and target_platform() == "cpu"
        return enough and self.scope is not None and not self.scope.mutable


def _estimate(model: DepthAnything, return_weights: bool, params: Any, pixels_bhwc: Array) -> Estimate:
    estimate: Any = model.apply({"params": params}, pixels_bhwc, True, return_weights, method=DepthAnything._estimate)
    return estimate


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _one_by_one(estimate: Callable[[Any, Array], Estimate], params: Any, pixels_bhwc: Array) -> Estimate:
    def alone(pixels_hwc: Array) -> Estimate:
        return estimate(params, pixels_hwc[None])

    return jax.tree.map(lambda x: x[:, 0], jax.lax.map(alone, pixels_bhwc))


@_one_by_one.defjvp
def _derivative(
    estimate: Callable[[Any, Array], Estimate], primals: tuple[Any, Array], tangents: tuple[Any, Array]
) -> tuple[Estimate, Estimate]:
    # The gradient with respect to the params would be added up image by image.
    return jax.jvp(estimate, primals, tangents)


def _check_pixels(pixels: Array, config: DepthAnythingConfig) -> tuple[int, int]:
    channels, patch = config.backbone_config.num_channels, config.patch_size
    expected = f"float [batch, height, width, {channels}], with height and width multiples of {patch}"
    hint = "dajax.DepthImageProcessor makes images fit"
    if pixels.ndim != 4 or pixels.shape[-1] != channels:
        raise ImageError(f"pixels must be {expected}, got shape {pixels.shape}; {hint}")
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise ImageError(f"pixels must be normalised floats, got {pixels.dtype}; {hint}")
    height, width = pixels.shape[1:3]
    if height == 0 or width == 0 or height % patch or width % patch:
        raise ImageError(f"pixels must be {expected}, got {height}x{width}; {hint}")
    return height, width


def _loss(depth_bhw: Array, labels: Array, config: DepthAnythingConfig) -> Array:
    if labels.shape != depth_bhw.shape:
        raise ImageError(f"labels must have the shape of the prediction, {depth_bhw.shape}, got {labels.shape}")
    mask = jnp.isfinite(labels) & (labels > 0)
    return (silog_loss if config.is_metric else affine_invariant_loss)(depth_bhw, labels, mask)
