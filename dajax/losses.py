"""Losses on depth maps: pure, masked, with finite gradients under any mask.

Maps are [batch, height, width]. What stands where the mask is False has no influence, NaN included; what stands where
it is True has to be finite: NaN there gives NaN. Maps of less than 32 bits are widened to float32 first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dajax.errors import ConfigError


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
    prediction, target = _wide(prediction, target)
    tiny = jnp.finfo(prediction.dtype).tiny
    # The inner `where` keeps log(0) out of the masked pixels: its gradient would be NaN even if its value is not used.
    log_target = jnp.log(jnp.maximum(jnp.where(mask, target, 1), tiny))
    log_prediction = jnp.log(jnp.maximum(jnp.where(mask, prediction, 1), tiny))
    g = jnp.where(mask, log_target - log_prediction, 0)
    mean = _mean(g, mask)
    return _safe_sqrt(_mean(jnp.square(g), mask) - variance_focus * jnp.square(mean))


def affine_invariant_loss(
    prediction: Float[Array, "batch height width"],
    target: Float[Array, "batch height width"],
    mask: Bool[Array, "batch height width"],
    *,
    trim: float = 0.0,
) -> Float[Array, ""]:
    """Return the mean absolute difference after each map lost its own shift (median) and scale (mean deviation).

    Both are inverse depth. MiDaS, Ranftl et al. 2020 (arXiv:1907.01341), equations 5 and 6, which Depth Anything trains
    with. The mean is over the valid pixels of the batch, and zero where there are none.

    `trim` is the share of each image's valid pixels, rounded down, that is left out: those with the largest
    differences. The mean is over the others (that of MiDaS, equation 7, is over all). The normalisation is that of all
    valid pixels. Depth Anything V2 (arXiv:2406.09414), section 5.2, has 0.1 for pseudo-labels and 0 for exact ones.

    Raises:
        ConfigError: `trim` is not in [0, 1).
    """
    if not 0 <= trim < 1:
        raise ConfigError(f"trim is the share of pixels to leave out, at least 0 and less than 1; got {trim}")
    prediction, target = _wide(prediction, target)
    error = jnp.abs(_normalise(prediction, mask) - _normalise(target, mask))
    if trim:
        error, mask = _smallest(error, mask, trim)
    return _mean(error, mask)


def least_squares_affine_invariant_loss(
    prediction: Float[Array, "batch height width"],
    target: Float[Array, "batch height width"],
    mask: Bool[Array, "batch height width"],
) -> Float[Array, ""]:
    """Return half the mean squared difference after each prediction was fitted to its target by `scale_and_shift`.

    Both are inverse depth; the loss is in the target's unit, squared: targets of different scenes want a common scale
    first (MiDaS: [0, 1]). MiDaS, Ranftl et al. 2020 (arXiv:1907.01341), equations 1 to 4, with the square as the
    penalty. The mean is over the valid pixels of the batch, and zero where there are none.
    """
    fit = _least_squares(prediction, target, mask)
    return _mean(jnp.square(fit.residual), mask) / 2


def aligned_l1_loss(
    prediction: Float[Array, "batch height width"],
    target: Float[Array, "batch height width"],
    mask: Bool[Array, "batch height width"],
) -> Float[Array, ""]:
    """Return the mean absolute difference after each prediction was fitted to its target, in the target's deviations.

    Both are inverse depth. Scale and shift are those of least squares, as evaluation has them: MiDaS, Ranftl et al.
    2020 (arXiv:1907.01341), equations 1 to 4, with the absolute value as the penalty and each target divided by its own
    standard deviation, which gives all scenes one scale. A prediction that is the wrong way round is not turned: its
    scale is at least a tenth of the ratio of the deviations. The mean is over the valid pixels of the batch, and zero
    where there are none.
    """
    prediction, target = _wide(prediction, target)
    prediction, target = _standardise(prediction, mask), _standardise(target, mask)
    count = jnp.maximum(mask.sum((1, 2), keepdims=True), 1).astype(prediction.dtype)
    # Of two maps of mean zero and deviation one, the correlation is the scale of least squares.
    correlation = (prediction * target).sum((1, 2), keepdims=True) / count
    return _mean(jnp.abs(jnp.maximum(correlation, 0.1) * prediction - target), mask)


def aligned_log_loss(
    prediction: Float[Array, "batch height width"],
    target: Float[Array, "batch height width"],
    mask: Bool[Array, "batch height width"],
    *,
    softening: float = 0.02,
) -> Float[Array, ""]:
    """Return the mean absolute difference of logarithms after each prediction was fitted to its target.

    Both are inverse depth, the target's in 1/m, 0 where it is infinitely far (the sky). Scale and shift are those of
    least squares over the pixels with a distance, as evaluation has them, and as in `aligned_l1_loss` no prediction is
    turned. Then both get `softening` (in 1/m) added, and the difference of their logarithms is taken: a relative error,
    as AbsRel and delta1 are, where `aligned_l1_loss` nearly only sees what is near. Depth beyond 1 / softening counts
    less and less; fitted values below zero go on as the logarithm's tangent at zero. Where the target is infinitely
    far, anything from zero downwards is right, and what is above counts in the target's deviations. The mean is over
    the valid pixels of the batch, and zero where there are none. dajax's own, for training from nothing.

    Raises:
        ConfigError: `softening` is not positive.
    """
    if not softening > 0:
        raise ConfigError(f"softening must be positive, got {softening}")
    prediction, target = _wide(prediction, target)
    near = mask & ~(target <= 0)  # NaN is not hidden
    count = jnp.maximum(near.sum((1, 2), keepdims=True), 1).astype(prediction.dtype)
    standard = _standardise(prediction, near, mask)
    centred, mean = _centre(target, near, jnp)
    deviation = _safe_sqrt(jnp.square(centred).sum((1, 2), keepdims=True) / count)
    # Of a map of mean zero and deviation one, the covariance is the scale of least squares.
    scale = (jnp.where(near, standard, 0) * centred).sum((1, 2), keepdims=True) / count
    fitted = jnp.maximum(scale, 0.1 * deviation) * standard + mean
    error = _soft_log(jnp.where(near, fitted, 0), softening) - _soft_log(jnp.where(near, target, 0), softening)
    too_near = jnp.maximum(fitted, 0) / jnp.where(deviation > 0, deviation, 1)
    return _mean(jnp.where(near, jnp.abs(error), too_near), mask)


def gradient_matching_loss(
    prediction: Float[Array, "batch height width"],
    target: Float[Array, "batch height width"],
    mask: Bool[Array, "batch height width"],
    *,
    scales: int = 4,
) -> Float[Array, ""]:
    """Return the sum over scales of the mean absolute slope of the difference: edges have to be where the target's are.

    Both are inverse depth. The difference is between maps that lost their own shift and scale as in
    `affine_invariant_loss`. A slope is the step from a pixel to its right or lower neighbour, counted where both are
    valid. Scale k takes every 2^k-th row and column, with no smoothing. At each scale the steps of both directions are
    summed over the batch and divided by the number of valid pixels at that scale (not by the number of steps, nor by
    the pixels of the full map). MegaDepth, Li and Snavely 2018 (arXiv:1804.00607), section 4.2, and MiDaS, Ranftl et
    al. 2020 (arXiv:1907.01341), equation 11. Zero where the mask is empty.

    Raises:
        ConfigError: `scales` is less than 1.
    """
    if scales < 1:
        raise ConfigError(f"scales must be at least 1, got {scales}")
    prediction, target = _wide(prediction, target)
    difference = _normalise(prediction, mask) - _normalise(target, mask)
    steps = [2**k for k in range(scales)]
    return jnp.stack([_mean_slope(difference[:, ::step, ::step], mask[:, ::step, ::step]) for step in steps]).sum()


def depth_anything_loss(
    prediction: Float[Array, "batch height width"],
    target: Float[Array, "batch height width"],
    mask: Bool[Array, "batch height width"],
    *,
    trim: float = 0.0,
    gradient_weight: float = 2.0,
    scales: int = 4,
) -> Float[Array, ""]:
    """Return `affine_invariant_loss + gradient_weight * gradient_matching_loss`, what V2's relative models train with.

    Both are inverse depth. Depth Anything V2 (arXiv:2406.09414), section 7.1: the weights are 1 and 2. `trim` (0.1 for
    pseudo-labels) leaves pixels out of the first term only.

    Raises:
        ConfigError: `trim` is not in [0, 1), or `scales` is less than 1.
    """
    level = affine_invariant_loss(prediction, target, mask, trim=trim)
    return level + gradient_weight * gradient_matching_loss(prediction, target, mask, scales=scales)


def feature_alignment_loss(
    features: Float[Array, "*tokens width"], frozen: Float[Array, "*tokens width"], *, tolerance: float = 0.85
) -> Float[Array, ""]:
    """Return the mean of 1 - cosine between features and those of a frozen encoder, over tokens that are not yet near.

    Tokens whose cosine is above `tolerance` are left out: depth may tell parts of one object apart that a semantic
    encoder does not. Depth Anything V1 (arXiv:2401.10891), section 3.3. The mean is over the tokens that are counted,
    and zero where there are none. No gradient flows to `frozen`. A vector of zeros has the cosine 0 with any other.
    """
    features, frozen = _wide(features, frozen)
    cosine = (_unit(features) * _unit(jax.lax.stop_gradient(frozen))).sum(-1)
    return _mean(1 - cosine, ~(cosine > tolerance))  # NaN is counted


def scale_and_shift(
    prediction: Float[Array | np.ndarray, "batch height width"],
    target: Float[Array | np.ndarray, "batch height width"],
    mask: Bool[Array | np.ndarray, "batch height width"],
) -> tuple[Float[Array | np.ndarray, " batch"], Float[Array | np.ndarray, " batch"]]:
    """Return scale and shift for each image, so that scale * prediction + shift is nearest to target: least squares.

    MiDaS, Ranftl et al. 2020 (arXiv:1907.01341), equation 4, from centred maps: the determinant of the uncentred sums
    loses all digits where a map varies little about a large mean. numpy arrays are computed by numpy in their own type,
    which is how evaluation has float64; arrays of jax by jax, differentiably.

    A prediction that says nothing about shape (constant, or fewer than two valid pixels) gets scale 0 and the target's
    mean as shift, which is a least-squares solution as well; without a valid pixel both are 0. The scale may be
    negative.
    """
    fit = _least_squares(prediction, target, mask)
    return fit.scale[:, 0, 0], fit.shift[:, 0, 0]


class _Fit(NamedTuple):
    # [batch, 1, 1], [batch, 1, 1] and [batch, height, width]; the residual is zero where the mask is False.
    scale: Any
    shift: Any
    residual: Any


def _least_squares(prediction: Any, target: Any, mask: Any) -> _Fit:
    xp = np if all(isinstance(array, np.ndarray) for array in (prediction, target, mask)) else jnp
    prediction, target = _wide(prediction, target)
    # Squares of anything smaller leave the type's range.
    small = float(jnp.finfo(prediction.dtype).tiny) ** 0.5
    highest = xp.where(mask, prediction, -xp.inf).max((1, 2), keepdims=True)
    lowest = xp.where(mask, prediction, xp.inf).min((1, 2), keepdims=True)
    varies = highest > lowest + small
    prediction, prediction_mean = _centre(prediction, mask, xp)
    target, target_mean = _centre(target, mask, xp)
    prediction_size, target_size = _size(prediction, small, xp), _size(target, small, xp)
    # Both are of size one from here on: no sum of squares overflows or underflows.
    prediction, target = prediction / prediction_size, target / target_size
    variance = xp.where(varies, xp.square(prediction).sum((1, 2), keepdims=True), 1)
    slope = xp.where(varies, (prediction * target).sum((1, 2), keepdims=True) / variance, 0)
    scale = slope * (target_size / prediction_size)
    return _Fit(scale, target_mean - scale * prediction_mean, (slope * prediction - target) * target_size)


def _centre(values: Any, mask: Any, xp: Any) -> tuple[Any, Any]:
    values = xp.where(mask, values, 0)
    count = xp.maximum(mask.sum((1, 2), keepdims=True), 1).astype(values.dtype)
    mean = values.sum((1, 2), keepdims=True) / count
    # The mean is rounded, by more than a map may vary about it: what is left of it goes in a second round.
    rest = xp.where(mask, values - mean, 0)
    left = rest.sum((1, 2), keepdims=True) / count
    return xp.where(mask, rest - left, 0), mean + left


def _standardise(values: Array, mask: Array, kept: Array | None = None) -> Array:
    """Return the maps with mean zero and deviation one where mask is True; constant maps are zero.

    What is kept beyond the mask is shifted and scaled with the rest.
    """
    small = float(jnp.finfo(values.dtype).tiny) ** 0.5
    centred, mean = _centre(values, mask, jnp)
    if kept is not None:
        centred = jnp.where(mask, centred, jnp.where(kept, values, mean) - mean)
    values = centred / _size(centred, small, jnp)
    count = jnp.maximum(mask.sum((1, 2), keepdims=True), 1).astype(values.dtype)
    variance = jnp.where(mask, jnp.square(values), 0).sum((1, 2), keepdims=True) / count
    constant = variance <= small  # NaN is not
    return jnp.where(constant, 0, values / jnp.sqrt(jnp.where(constant, 1, variance)))


def _size(values: Any, small: float, xp: Any) -> Any:
    size = xp.abs(values).max((1, 2), keepdims=True)
    size = xp.where(size > small, size, 1)
    # It cancels out, so it has no gradient of its own.
    return size if xp is np else jax.lax.stop_gradient(size)


def _wide(*arrays: Any) -> tuple[Any, ...]:
    """Return all arrays in the first one's type, at least float32."""
    dtype = arrays[0].dtype if jnp.finfo(arrays[0].dtype).bits >= 32 else np.dtype(np.float32)
    return tuple(array.astype(dtype) for array in arrays)


def _mean(values: Array, mask: Array) -> Array:
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1).astype(values.dtype)


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


def _smallest(error: Array, mask: Array, trim: float) -> tuple[Array, Array]:
    """Return each image's errors in order [batch, height * width], and which of them are left."""
    ordered = jnp.sort(jnp.where(mask, error, jnp.inf).reshape(error.shape[0], -1), axis=-1)
    count = mask.sum((1, 2))
    # The hair on top: 0.1 of 10 pixels is one pixel, whichever way 0.1 is rounded.
    left_out = jnp.floor(trim * count.astype(error.dtype) + 1e-3).astype(jnp.int32)
    return ordered, jnp.arange(ordered.shape[1]) < (count - left_out)[:, None]


def _mean_slope(difference: Array, mask: Array) -> Array:
    across = jnp.where(mask[:, :, 1:] & mask[:, :, :-1], jnp.abs(jnp.diff(difference, axis=2)), 0)
    down = jnp.where(mask[:, 1:] & mask[:, :-1], jnp.abs(jnp.diff(difference, axis=1)), 0)
    return (across.sum() + down.sum()) / jnp.maximum(mask.sum(), 1).astype(difference.dtype)


def _unit(vectors: Array) -> Array:
    # Divided by their largest entry first, whose gradient cancels out: no square overflows.
    size = jax.lax.stop_gradient(jnp.abs(vectors).max(-1, keepdims=True))
    vectors = vectors / jnp.where(size > float(jnp.finfo(vectors.dtype).tiny) ** 0.5, size, 1)
    length = _safe_sqrt(jnp.square(vectors).sum(-1, keepdims=True))
    return vectors / jnp.where(length > 0, length, 1)


def _soft_log(x: Array, softening: float) -> Array:
    """log(x + softening), and below zero its tangent there."""
    positive = x > 0
    return jnp.log(jnp.where(positive, x, 0) + softening) + jnp.where(positive, 0, x) / softening


def _safe_sqrt(x: Array) -> Array:
    # The root's slope at zero is infinite; rounding may also put a zero variance slightly below it. NaN stays NaN.
    zero = x <= 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))
