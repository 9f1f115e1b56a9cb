"""Where not to trust a depth map: where the depth of the mirrored image is not the mirrored depth."""

from __future__ import annotations

from typing import Any

import numpy as np

from dajax.geometry.scale import robust_line, thinned
from dajax.images.read import DecodedImage, read_image
from dajax.inference.estimator import DepthEstimator


def flip_disagreement(estimator: DepthEstimator, image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the depth of an image, and how much the depth of its mirror image differs from it.

    The network is not symmetric, and neither are its errors. Where both disagree, at least one is wrong; where they
    agree, both may still be wrong. The second pass doubles the time. (`dajax.geometry.depth_edges` marks other places
    not to trust: the mixture of near and far at edges.)

    Args:
        estimator: the estimator.
        image: any image that the estimator takes.

    Returns:
        A pair. The depth map that the estimator alone returns, float32 [height, width]; and the disagreement, float32
        [height, width], 0 or more. For metric models the disagreement is the difference divided by the depth. For
        relative models it is the difference after the best scale and shift, divided by the distance between the 5th
        and the 95th percentile of the depth map.

    Raises:
        ImageError: the image cannot be read.
    """
    pixels = read_image(image)
    mirrored = np.ascontiguousarray(pixels[:, ::-1])
    depth, other = estimator([DecodedImage(pixels), DecodedImage(mirrored)])
    return depth, disagreement(depth, other[:, ::-1], is_metric=estimator.model.config.is_metric)


def disagreement(depth: np.ndarray, other: np.ndarray, *, is_metric: bool) -> np.ndarray:
    """Return how much two depth maps of one image differ, as `flip_disagreement` says it.

    Args:
        depth: float32 [height, width].
        other: the depth of the mirror image, mirrored back, float32 [height, width].
        is_metric: whether the values are metres.

    Returns:
        float32 [height, width], 0 or more.
    """
    if is_metric:
        size = np.maximum((depth + other) / 2, 1e-6)
    else:
        scale, shift = robust_line(thinned(other), thinned(depth))
        other = np.asarray(scale * other + shift, np.float32)
        low, high = np.percentile(depth, (5, 95))
        size = np.maximum(high - low, 1e-6 * max(float(np.abs(depth).max()), 1e-30))
    return np.asarray(np.abs(depth - other) / size, np.float32)
