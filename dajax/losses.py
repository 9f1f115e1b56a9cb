"""Losses on depth maps: pure, masked, with finite gradients under any mask."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def silog_loss(
    prediction: Float[Array, "batch height width"],
    target: Float[Array, "batch height width"],
    mask: Bool[Array, "batch height width"],
    *,
    variance_focus: float = 0.5,
) -> Float[Array, ""]:
    """Return the scale-invariant logarithmic error, sqrt(mean(g^2) - variance_focus * mean(g)^2).

    g = log target - log prediction, pooled over all valid pixels of the batch; both in metres. Eigen et al. 2014
    (arXiv:1406.2283), equation 4, with the root and the weight 0.5 of Depth Anything V2's metric fine-tuning. Zero
    where the mask is empty.
    """
    tiny = jnp.finfo(prediction.dtype).tiny
    # The inner `where` keeps log(0) out of the masked pixels: its gradient would be NaN even if its value is not used.
    log_target = jnp.log(jnp.maximum(jnp.where(mask, target, 1).astype(prediction.dtype), tiny))
    log_prediction = jnp.log(jnp.maximum(jnp.where(mask, prediction, 1), tiny))
    g = jnp.where(mask, log_target - log_prediction, 0)
    count = jnp.maximum(mask.sum(), 1).astype(g.dtype)
    mean = g.sum() / count
    squared = jnp.square(g).sum() / count - variance_focus * jnp.square(mean)
    return _safe_sqrt(squared)


def affine_invariant_loss(
    prediction: Float[Array, "batch height width"],
    target: Float[Array, "batch height width"],
    mask: Bool[Array, "batch height width"],
) -> Float[Array, ""]:
    """Return the mean absolute difference after each map lost its own shift (median) and scale (mean deviation).

    Both are inverse depth. MiDaS, Ranftl et al. 2020 (arXiv:1907.01341), equations 5 and 6, which Depth Anything trains
    with. The mean is over the valid pixels of the batch, and zero where there are none.
    """
    error = jnp.abs(_normalise(prediction, mask) - _normalise(target.astype(prediction.dtype), mask))
    count = jnp.maximum(mask.sum(), 1).astype(prediction.dtype)
    return jnp.where(mask, error, 0).sum() / count


def _normalise(depth: Array, mask: Array) -> Array:
    depth = jnp.where(mask, depth, 0)
    count = mask.sum((1, 2), keepdims=True)
    # The lower median, as torch.median gives it: invalid pixels are sorted behind all others.
    ordered = jnp.sort(jnp.where(mask, depth, jnp.inf).reshape(depth.shape[0], -1), axis=-1)
    middle = jnp.maximum(count.reshape(-1, 1) - 1, 0) // 2
    shift = jnp.take_along_axis(ordered, middle, axis=-1).reshape(count.shape)
    shift = jnp.where(count > 0, shift, 0)
    centred = jnp.where(mask, depth - shift, 0)
    scale = jnp.abs(centred).sum((1, 2), keepdims=True) / jnp.maximum(count, 1).astype(depth.dtype)
    return centred / jnp.maximum(scale, 1e-6)


def _safe_sqrt(x: Array) -> Array:
    # The root's slope at zero is infinite; rounding may also put a zero variance slightly below it.
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)
