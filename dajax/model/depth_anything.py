"""Depth Anything V1 and V2: one module made of encoder, neck and head.

The encoder is DINOv2, a vision transformer; neck and head are those of DPT. V1 is Yang et al. 2024 (arXiv:2401.10891),
V2 is Yang et al. 2024 (arXiv:2406.09414).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from dajax import kernels
from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError, ImageError
from dajax.losses import affine_invariant_loss, silog_loss
from dajax.model.dinov2 import Dinov2
from dajax.model.dpt import Head, Neck


@flax.struct.dataclass
class DepthEstimatorOutput:
    """The output of a model. It is a pytree, so `jit`, `vmap` and `pmap` can return it.

    Attributes:
        predicted_depth: float32 [batch, height, width]. Affine-invariant inverse depth, bigger is nearer (relative
            models), or metres (metric models).
        hidden_states: the tokens [batch, 1 + patches, width] before the first layer and after each layer. None unless
            `output_hidden_states` is set.
        attentions: the softmax weights [batch, heads, 1 + patches, 1 + patches] of each layer. None unless
            `output_attentions` is set.
        loss: a scalar. None without labels.
    """

    # The fields are Any because transformations of jax put shapes, axes or placeholders in the place of arrays.
    predicted_depth: Any
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None
    loss: Any = None


# Depth [batch, height, width], hidden states and attention weights.
Estimate = tuple[Array, tuple[Array, ...], tuple[Array | None, ...]]


class DepthAnything(nn.Module):
    """Depth Anything V1 or V2 as a Linen module.

    `dajax.load` returns trained params. `model.init(key, pixels)["params"]` returns new ones, initialised as
    Transformers initialises them.

    Attributes:
        config: the architecture.
        dtype: the computation dtype of the encoder: float32, bfloat16 or float16 (or float64 if x64 is enabled in jax).
            Norms, softmax, the last layers and the output are at least float32.
        remat: whether the backward pass recomputes each encoder layer. It takes less memory and a third more time.
        kernels: "auto" computes each operation as the platform does it best; "reference" by its plain formula, see
            `dajax.kernels`.
    """

    config: DepthAnythingConfig
    dtype: Any = jnp.float32
    remat: bool = False
    kernels: str = "auto"

    def __call__(
        self,
        pixels: Shaped[Array | np.ndarray, ...],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        labels: Shaped[Array | np.ndarray, ...] | None = None,
        valid: Shaped[Array | np.ndarray, ...] | None = None,
        deterministic: bool = True,
    ) -> DepthEstimatorOutput:
        """Estimate depth.

        Args:
            pixels: float [batch, height, width, 3], normalised as `DepthImageProcessor` does it. Height and width are
                multiples of the patch size, 14.
            output_hidden_states: whether to return the encoder's tokens as well.
            output_attentions: whether to return the encoder's attention weights as well.
            labels: float [batch, height, width], the target depth of a loss. For metric models it is in metres and the
                loss is `dajax.losses.silog_loss`; for relative models it is inverse depth and the loss is
                `dajax.losses.affine_invariant_loss`. Labels that are not finite never count.
            valid: bool [batch, height, width], which labels count; None: those that are positive. With it, a label of 0
                counts in relative models: it is infinitely far, as the sky is. In metric models labels must be positive
                all the same.
            deterministic: whether dropout is off. With False, the config's dropout rates apply (all are 0 in released
                checkpoints), and `model.apply` needs `rngs={"dropout": key}`.

        Raises:
            ImageError: pixels, labels or `valid` have a wrong rank, number of channels, size or dtype.
            ConfigError: `dtype` is not a floating-point dtype; or a size is symbolic, or an option is traced, although
                both must be known when the model is compiled.
        """
        _check_options(output_hidden_states, output_attentions, deterministic)
        config = self.config
        pixels = jnp.asarray(pixels)
        dtype = jnp.dtype(self.dtype)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ConfigError(f"dtype must be a floating-point dtype such as float32 or bfloat16, got {dtype}")
        size = _check_pixels(pixels, config)
        grid = (size[0] // config.patch_size, size[1] // config.patch_size)

        with kernels.target(kernels=None if self.kernels == "auto" else self.kernels):
            depth_bhw, hidden_states, attentions = self._estimate_or_each(
                pixels, grid, deterministic, output_attentions
            )

        return DepthEstimatorOutput(
            predicted_depth=depth_bhw,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
            loss=None if labels is None else _loss(depth_bhw, labels, valid, config),
        )

    def _estimate_or_each(
        self, pixels_bhwc: Array, grid: tuple[int, int], deterministic: bool, return_weights: bool
    ) -> Estimate:
        # A caller that collects intermediate values gets them with the axis of the batch.
        is_pure = deterministic and self.scope is not None and not self.scope.mutable
        if is_pure and kernels.takes_images_apart(pixels_bhwc.shape[0], grid[0] * grid[1]):
            estimate = partial(_estimate, self.clone(parent=None, name=None), return_weights)
            each: Estimate = kernels.each_image(estimate, self.variables["params"], pixels_bhwc)
            return each
        return self._estimate(pixels_bhwc, deterministic, return_weights)

    @nn.compact
    def _estimate(self, pixels_bhwc: Array, deterministic: bool, return_weights: bool) -> Estimate:
        config, dtype, (height, width) = self.config, jnp.dtype(self.dtype), pixels_bhwc.shape[1:3]
        # Convolutions may be computed in a wider dtype than the encoder.
        wider = kernels.convolution_dtype(dtype)
        encoded = Dinov2(config.backbone_config, dtype, wider, self.remat, name="backbone")(
            pixels_bhwc, deterministic, return_weights
        )
        grid = (height // config.patch_size, width // config.patch_size)
        fused = Neck(config, wider, name="neck")(encoded.taps, grid)
        depth_bhw = Head(config, wider, name="head")(fused[config.head_in_index], (height, width))
        return depth_bhw, encoded.hidden_states, encoded.attentions


def _estimate(model: DepthAnything, return_weights: bool, params: Any, pixels_bhwc: Array) -> Estimate:
    estimate: Any = model.apply({"params": params}, pixels_bhwc, True, return_weights, method=DepthAnything._estimate)
    return estimate


def _check_options(output_hidden_states: Any, output_attentions: Any, deterministic: Any) -> None:
    names = ("output_hidden_states", "output_attentions", "deterministic")
    for name, value in zip(names, (output_hidden_states, output_attentions, deterministic), strict=True):
        if isinstance(value, jax.core.Tracer):
            raise ConfigError(
                f"{name} must be known when the model is compiled: write jax.jit(model.apply, static_argnames={names})"
            )
        if not isinstance(value, bool | np.bool_):
            raise ConfigError(f"{name} must be True or False, got {value!r}")


def _check_pixels(pixels: Array, config: DepthAnythingConfig) -> tuple[int, int]:
    if not all(isinstance(size, int) for size in pixels.shape):
        raise ConfigError(
            f"pixels have the symbolic shape {pixels.shape}: the network is made for one size, so export it for each "
            "size, with numbers"
        )
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


def _loss(depth_bhw: Array, labels: Any, valid: Any, config: DepthAnythingConfig) -> Array:
    labels = jnp.asarray(labels)
    for name, array, kind in (("labels", labels, jnp.floating), ("valid", valid, jnp.bool_)):
        if array is None:
            continue
        if array.shape != depth_bhw.shape:
            raise ImageError(f"{name} must have the shape of the prediction, {depth_bhw.shape}, got {array.shape}")
        if not jnp.issubdtype(array.dtype, kind):
            what = "floats, in metres" if config.is_metric else "floats, inverse depth"
            raise ImageError(f"{name} must be {'bool' if name == 'valid' else what}, got {array.dtype}")
    mask = jnp.isfinite(labels)
    if valid is not None:
        mask &= jnp.asarray(valid)
    if valid is None or config.is_metric:
        mask &= labels > 0
    return (silog_loss if config.is_metric else affine_invariant_loss)(depth_bhw, labels, mask)
