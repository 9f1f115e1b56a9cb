"""Losses on depth maps: pure functions with a mask, whose gradients are finite under any mask.

Prediction, target and mask are [batch, height, width]. Pixels whose mask is False have no influence on a loss, even if
they are NaN. Pixels whose mask is True have to be finite: a NaN among them makes the loss NaN. Depth of less than 32
bits is cast to float32 first. Arrays of another type or shape are an `ImageError`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dajax.errors import ConfigError, ImageError

__all__ = [
    "affine_invariant_loss",
    "aligned_l1_loss",
    "aligned_log_loss",
    "depth_anything_loss",
    "feature_alignment_loss",
    "gradient_matching_loss",
    "least_squares_affine_invariant_loss",
    "scale_and_shift",
    "silog_loss",
]


def silog_loss(
    prediction: Float[Array, "batch height width"],
    target: Float[Array, "batch height width"],
    mask: Bool[Array, "batch height width"],
    *,
    variance_focus: float = 0.5,
) -> Float[Array, ""]:
    """Return the scale-invariant logarithmic error, sqrt(mean(g^2) - variance_focus * mean(g)^2).

    Here g = log target - log prediction, and the means are over all valid pixels of the batch. The formula is equation
    4 of Eigen et al. 2014 (arXiv:1406.2283), with the root and the weight 0.5 of Depth Anything V2's metric
    fine-tuning. The loss is zero if no pixel is valid.

    Args:
        prediction: the predicted depth in metres.
        target: the true depth in metres.
        mask: which pixels are valid.
        variance_focus: the weight of the squared mean: 0 counts errors of scale fully, 1 not at all.
    """
    _check(prediction, target, mask)
    prediction, target = _wide(prediction, target)
    tiny = jnp.finfo(prediction.dtype).tiny
    # The inner `where` keeps log(0) out of masked pixels, because its gradient would be NaN even if unused.
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
    """Return the mean absolute difference of two normalised depth maps.

    Each depth map is normalised on its own: its median is subtracted, then it is divided by its mean absolute
    deviation from the median. The formulas are equations 5 and 6 of MiDaS, Ranftl et al. 2020 (arXiv:1907.01341), with
    which Depth Anything is trained. The mean is over the valid pixels of the batch, and the loss is zero if there are
    none.

    Args:
        prediction: the predicted inverse depth.
        target: the true inverse depth.
        mask: which pixels are valid.
        trim: the fraction of each image's valid pixels to leave out: those with the largest differences, their number
            rounded down. The mean is over the remaining pixels (that of MiDaS, equation 7, is over all); the
            normalisation uses all valid pixels. Depth Anything V2 (arXiv:2406.09414), section 5.2, uses 0.1 for
            pseudo-labels and 0 for exact labels.

    Raises:
        ConfigError: `trim` is not in [0, 1).
    """
    if not _is_number(trim) or not 0 <= trim < 1:
        raise ConfigError(f"trim is the fraction of pixels to leave out, at least 0 and less than 1; got {trim!r}")
    _check(prediction, target, mask)
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

    The formulas are equations 1 to 4 of MiDaS, Ranftl et al. 2020 (arXiv:1907.01341), with the square as the penalty.
    The loss has the square of the target's unit, so targets of different scenes should be brought to a common scale
    first (MiDaS uses [0, 1]). The mean is over the valid pixels of the batch, and the loss is zero if there are none.

    Args:
        prediction: the predicted inverse depth.
        target: the true inverse depth.
        mask: which pixels are valid.
    """
    fit = _least_squares(prediction, target, mask)
    return _mean(jnp.square(fit.residual), mask) / 2


def aligned_l1_loss(
    prediction: Float[Array, "batch height width"],
    target: Float[Array, "batch height width"],
    mask: Bool[Array, "batch height width"],
) -> Float[Array, ""]:
    """Return the mean absolute difference after each prediction was fitted to its target.

    Scale and shift are those of least squares, which evaluation uses too: equations 1 to 4 of MiDaS, Ranftl et al. 2020
    (arXiv:1907.01341), but with the absolute value as the penalty. The difference is divided by the standard deviation
    of each target, so that all scenes have one scale. A prediction in which near and far are exchanged is not reversed:
    its scale is at least a tenth of the ratio of the two deviations. The mean is over the valid pixels of the batch,
    and the loss is zero if there are none.

    Args:
        prediction: the predicted inverse depth.
        target: the true inverse depth.
        mask: which pixels are valid.
    """
    _check(prediction, target, mask)
    prediction, target = _wide(prediction, target)
    prediction, target = _standardise(prediction, mask), _standardise(target, mask)
    count = jnp.maximum(mask.sum((1, 2), keepdims=True), 1).astype(prediction.dtype)
    # Both have mean zero and deviation one, so their correlation is the scale of least squares.
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

    Scale and shift are those of least squares over the pixels with a finite distance. As in `aligned_l1_loss`, no
    prediction is reversed. Then `softening` is added to both, and the difference of their logarithms is taken. This is
    a relative error, as the metrics AbsRel and delta1 are, whereas `aligned_l1_loss` depends on near pixels almost
    alone. Depth beyond 1 / softening counts less and less. Below zero, the tangent at zero replaces the logarithm of
    the fitted prediction. Where the target is infinitely far, every fitted value of zero or less is right, and a
    positive value counts in standard deviations of the target. The mean is over the valid pixels of the batch, and the
    loss is zero if there are none. This loss is dajax's own, for training from randomly initialised params.

    Args:
        prediction: the predicted inverse depth.
        target: the true inverse depth in 1/m; 0 where it is infinitely far (the sky).
        mask: which pixels are valid.
        softening: the inverse depth, in 1/m, that is added before the logarithm is taken.

    Raises:
        ConfigError: `softening` is not positive.
    """
    if not _is_number(softening) or not softening > 0:
        raise ConfigError(f"softening must be a positive number, got {softening!r}")
    _check(prediction, target, mask)
    prediction, target = _wide(prediction, target)
    near = mask & ~(target <= 0)  # written so that NaN counts as near, and shows in the loss
    count = jnp.maximum(near.sum((1, 2), keepdims=True), 1).astype(prediction.dtype)
    standard = _standardise(prediction, near, mask)
    centred, mean = _centre(target, near, jnp)
    deviation = _safe_sqrt(jnp.square(centred).sum((1, 2), keepdims=True) / count)
    # `standard` has mean zero and deviation one, so its covariance with the target is the scale of least squares.
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
    """Return the sum over scales of the mean absolute slope of the difference. It rewards edges in the right places.

    The difference is between two depth maps that are normalised as in `affine_invariant_loss`. A slope is the step from
    a pixel to its right or lower neighbour, and counts if both are valid. Scale k uses every 2^k-th row and column,
    without smoothing. At each scale the steps of both directions are summed over the batch and divided by the number of
    valid pixels at that scale (not by the number of steps, nor by the number of all pixels). The formulas are in
    section 4.2 of MegaDepth, Li and Snavely 2018 (arXiv:1804.00607), and in equation 11 of MiDaS, Ranftl et al. 2020
    (arXiv:1907.01341). The loss is zero if no pixel is valid.

    Args:
        prediction: the predicted inverse depth.
        target: the true inverse depth.
        mask: which pixels are valid.
        scales: the number of scales.

    Raises:
        ConfigError: `scales` is less than 1.
    """
    if isinstance(scales, bool) or not isinstance(scales, int) or scales < 1:
        raise ConfigError(f"scales must be a whole number of at least 1, got {scales!r}")
    _check(prediction, target, mask)
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
    """Return `affine_invariant_loss + gradient_weight * gradient_matching_loss`, the loss of V2's relative models.

    The weights 1 and 2 are those of Depth Anything V2 (arXiv:2406.09414), section 7.1.

    Args:
        prediction: the predicted inverse depth.
        target: the true inverse depth.
        mask: which pixels are valid.
        trim: the fraction of pixels to leave out of the first term; see `affine_invariant_loss`.
        gradient_weight: the weight of the second term.
        scales: the number of scales of the second term; see `gradient_matching_loss`.

    Raises:
        ConfigError: `trim` is not in [0, 1), or `scales` is less than 1.
    """
    level = affine_invariant_loss(prediction, target, mask, trim=trim)
    return level + gradient_weight * gradient_matching_loss(prediction, target, mask, scales=scales)


def feature_alignment_loss(
    features: Float[Array, "*tokens width"], frozen: Float[Array, "*tokens width"], *, tolerance: float = 0.85
) -> Float[Array, ""]:
    """Return the mean of 1 - cosine between features and those of a frozen encoder.

    Tokens whose cosine is above `tolerance` do not count, because parts of one object may differ in depth but not in
    the features of a semantic encoder. The loss is that of Depth Anything V1 (arXiv:2401.10891), section 3.3. The mean
    is over the tokens that count, and the loss is zero if there are none. A vector of zeros has the cosine 0 with every
    other vector.

    Args:
        features: the tokens of the encoder that is trained.
        frozen: the tokens of the frozen encoder. No gradient flows to them.
        tolerance: the largest cosine of tokens that count.
    """
    features, frozen = _wide(features, frozen)
    cosine = (_unit(features) * _unit(jax.lax.stop_gradient(frozen))).sum(-1)
    return _mean(1 - cosine, ~(cosine > tolerance))  # written so that NaN counts


def scale_and_shift(
    prediction: Float[Array | np.ndarray, "batch height width"],
    target: Float[Array | np.ndarray, "batch height width"],
    mask: Bool[Array | np.ndarray, "batch height width"],
) -> tuple[Float[Array | np.ndarray, " batch"], Float[Array | np.ndarray, " batch"]]:
    """Return the scale and shift for each image with which scale * prediction + shift is nearest to the target.

    The fit is that of least squares: equation 4 of MiDaS, Ranftl et al. 2020 (arXiv:1907.01341), but computed from
    centred depth, because the determinant of the uncentred sums loses all digits if depth varies little about a large
    mean. Arrays of numpy are computed by numpy in their own dtype (evaluation passes float64), arrays of jax by jax,
    differentiably.

    A constant prediction, or one with fewer than two valid pixels, gets scale 0 and the target's mean as shift, which
    is a least-squares solution as well. Without a valid pixel both are 0. The scale may be negative.

    Args:
        prediction: the predicted inverse depth.
        target: the true inverse depth.
        mask: which pixels are valid.

    Returns:
        scale, shift: one number of each for each image, [batch]; the shift has the target's unit.
    """
    fit = _least_squares(prediction, target, mask)
    return fit.scale[:, 0, 0], fit.shift[:, 0, 0]


class _Fit(NamedTuple):
    # [batch, 1, 1], [batch, 1, 1] and [batch, height, width]; the residual is zero where the mask is False.
    scale: Any
    shift: Any
    residual: Any


def _least_squares(prediction: Any, target: Any, mask: Any) -> _Fit:
    _check(prediction, target, mask)
    xp = np if all(isinstance(array, np.ndarray) for array in (prediction, target, mask)) else jnp
    prediction, target = _wide(prediction, target)
    # The squares of smaller numbers would leave the dtype's range.
    small = float(jnp.finfo(prediction.dtype).tiny) ** 0.5
    highest = xp.where(mask, prediction, -xp.inf).max((1, 2), keepdims=True)
    lowest = xp.where(mask, prediction, xp.inf).min((1, 2), keepdims=True)
    varies = highest > lowest + small
    prediction, prediction_mean = _centre(prediction, mask, xp)
    target, target_mean = _centre(target, mask, xp)
    prediction_size, target_size = _size(prediction, small, xp), _size(target, small, xp)
    # From here on the largest value of both is one, so that no sum of squares overflows or underflows.
    prediction, target = prediction / prediction_size, target / target_size
    variance = xp.where(varies, xp.square(prediction).sum((1, 2), keepdims=True), 1)
    slope = xp.where(varies, (prediction * target).sum((1, 2), keepdims=True) / variance, 0)
    scale = slope * (target_size / prediction_size)
    return _Fit(scale, target_mean - scale * prediction_mean, (slope * prediction - target) * target_size)


def _centre(values: Any, mask: Any, xp: Any) -> tuple[Any, Any]:
    values = xp.where(mask, values, 0)
    count = xp.maximum(mask.sum((1, 2), keepdims=True), 1).astype(values.dtype)
    mean = values.sum((1, 2), keepdims=True) / count
    # Rounding may move the mean by more than the values vary. A second round subtracts the rest of it.
    rest = xp.where(mask, values - mean, 0)
    left = rest.sum((1, 2), keepdims=True) / count
    return xp.where(mask, rest - left, 0), mean + left


def _standardise(values: Array, mask: Array, kept: Array | None = None) -> Array:
    """Return the values with mean zero and deviation one where the mask is True; constant values become zero.

    Where `kept` is True beyond the mask, values are shifted and scaled like the others.
    """
    small = float(jnp.finfo(values.dtype).tiny) ** 0.5
    centred, mean = _centre(values, mask, jnp)
    if kept is not None:
        centred = jnp.where(mask, centred, jnp.where(kept, values, mean) - mean)
    values = centred / _size(centred, small, jnp)
    count = jnp.maximum(mask.sum((1, 2), keepdims=True), 1).astype(values.dtype)
    variance = jnp.where(mask, jnp.square(values), 0).sum((1, 2), keepdims=True) / count
    constant = variance <= small  # False for NaN
    return jnp.where(constant, 0, values / jnp.sqrt(jnp.where(constant, 1, variance)))


def _size(values: Any, small: float, xp: Any) -> Any:
    size = xp.abs(values).max((1, 2), keepdims=True)
    size = xp.where(size > small, size, 1)
    # Callers divide by the size and cancel it later, so it needs no gradient.
    return size if xp is np else jax.lax.stop_gradient(size)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _check(prediction: Any, target: Any, mask: Any) -> None:
    """Refuse arrays of the wrong type or shape: with whole numbers or numbers as a mask, jax would compute something.

    Raises:
        ImageError: prediction and target are not floating-point, the mask is not bool, or their shapes differ.
    """
    for name, array, kind in (
        ("prediction", prediction, jnp.floating), ("target", target, jnp.floating), ("mask", mask, jnp.bool_),
    ):  # fmt: skip
        dtype = getattr(array, "dtype", None)
        if dtype is None:
            raise ImageError(f"{name} must be an array, got {type(array).__name__}")
        if not jnp.issubdtype(dtype, kind):
            wanted = "bool: which pixels are valid" if name == "mask" else "floating-point depth"
            raise ImageError(f"{name} must be {wanted}, got {dtype}")
        if array.shape != prediction.shape or array.ndim != 3:
            raise ImageError(f"{name} must be [batch, height, width] as the prediction is, got {list(array.shape)}")


def _wide(*arrays: Any) -> tuple[Any, ...]:
    """Return all arrays in the first array's dtype, but at least float32."""
    dtype = arrays[0].dtype if jnp.finfo(arrays[0].dtype).bits >= 32 else np.dtype(np.float32)
    return tuple(array.astype(dtype) for array in arrays)


def _mean(values: Array, mask: Array) -> Array:
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1).astype(values.dtype)


def _normalise(depth: Array, mask: Array) -> Array:
    depth = jnp.where(mask, depth, 0)
    count = mask.sum((1, 2), keepdims=True)
    # The lower median, as torch.median computes it. Sorting puts invalid pixels behind all others.
    ordered = jnp.sort(jnp.where(mask, depth, jnp.inf).reshape(depth.shape[0], -1), axis=-1)
    middle = jnp.maximum(count.reshape(-1, 1) - 1, 0) // 2
    shift = jnp.take_along_axis(ordered, middle, axis=-1).reshape(count.shape)
    shift = jnp.where(count > 0, shift, 0)
    centred = jnp.where(mask, depth - shift, 0)
    scale = jnp.abs(centred).sum((1, 2), keepdims=True) / jnp.maximum(count, 1).astype(depth.dtype)
    return centred / jnp.maximum(scale, 1e-6)


def _smallest(error: Array, mask: Array, trim: float) -> tuple[Array, Array]:
    """Return each image's errors in ascending order, [batch, height * width], and which of them count."""
    ordered = jnp.sort(jnp.where(mask, error, jnp.inf).reshape(error.shape[0], -1), axis=-1)
    count = mask.sum((1, 2))
    # 1e-3 makes 0.1 of 10 pixels one pixel, whichever way 0.1 is rounded.
    left_out = jnp.floor(trim * count.astype(error.dtype) + 1e-3).astype(jnp.int32)
    return ordered, jnp.arange(ordered.shape[1]) < (count - left_out)[:, None]


def _mean_slope(difference: Array, mask: Array) -> Array:
    across = jnp.where(mask[:, :, 1:] & mask[:, :, :-1], jnp.abs(jnp.diff(difference, axis=2)), 0)
    down = jnp.where(mask[:, 1:] & mask[:, :-1], jnp.abs(jnp.diff(difference, axis=1)), 0)
    return (across.sum() + down.sum()) / jnp.maximum(mask.sum(), 1).astype(difference.dtype)


def _unit(vectors: Array) -> Array:
    # They are divided by their largest entry first, so that no square overflows. Its gradient cancels out.
    size = jax.lax.stop_gradient(jnp.abs(vectors).max(-1, keepdims=True))
    vectors = vectors / jnp.where(size > float(jnp.finfo(vectors.dtype).tiny) ** 0.5, size, 1)
    length = _safe_sqrt(jnp.square(vectors).sum(-1, keepdims=True))
    return vectors / jnp.where(length > 0, length, 1)


def _soft_log(x: Array, softening: float) -> Array:
    """Return log(x + softening); below zero, the tangent at zero."""
    positive = x > 0
    return jnp.log(jnp.where(positive, x, 0) + softening) + jnp.where(positive, 0, x) / softening


def _safe_sqrt(x: Array) -> Array:
    # The slope of the root at zero is infinite, and rounding may make a variance of zero negative. NaN stays NaN.
    zero = x <= 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))
