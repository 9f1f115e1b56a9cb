"""Where not to trust a depth map: by the mirrored image, whose depth should be the mirrored depth."""

from __future__ import annotations

from typing import Any

import numpy as np

from dajax.geometry.scale import robust_line, thinned
from dajax.images.read import DecodedImage, read_image
from dajax.inference.estimator import DepthEstimator


def flip_disagreement(estimator: DepthEstimator, image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the depth of an image, and how much that of its mirror image differs.

    The network is not symmetric, so its errors are not either: that both agree is no proof, but where they disagree one
    is wrong. It costs a second pass. (`dajax.geometry.points.depth_edges` marks the other places not to be trusted: the
    blend between near and far at an edge.)

    Args:
        estimator: what estimates.
        image: anything it takes.

    Returns:
        depth: float32 [height, width], what the estimator alone returns.
        disagreement: float32 [height, width], 0 and more. Metric models: the difference as a share of the depth.
            Relative ones: the difference after the best scale and shift, as a share of the map's spread, its 5th to its
            95th percentile.

    Raises:
        ImageError: the image cannot be read.
    """
    pixels = read_image(image)
    mirrored = np.ascontiguousarray(pixels[:, ::-1])
    depth, other = estimator([DecodedImage(pixels), DecodedImage(mirrored)])
    other = other[:, ::-1]
    if estimator.model.config.is_metric:
        size = np.maximum((depth + other) / 2, 1e-6)
    else:
        scale, shift = robust_line(thinned(other), thinned(depth))
        other = np.asarray(scale * other + shift, np.float32)
        low, high = np.percentile(depth, (5, 95))
        size = np.maximum(high - low, 1e-6 * max(float(np.abs(depth).max()), 1e-30))
    return depth, np.asarray(np.abs(depth - other) / size, np.float32)
