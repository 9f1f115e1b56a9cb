"""Converts depth maps to points and normals. numpy computes numpy arrays, and jax computes its own, differentiably."""

from __future__ import annotations

from typing import Any

import numpy as np

from dajax.errors import ImageError
from dajax.geometry.camera import Intrinsics


def unproject(depth: Any, camera: Intrinsics) -> Any:
    """Return the points that the pixels of a depth map show.

    Args:
        depth: [..., height, width], metric or made so: how far ahead of the camera (not along the ray), in any unit.
        camera: of the depth map's size.

    Returns:
        [..., height, width, 3]: (right, down, ahead), in the unit of the depth.

    Raises:
        ImageError: a numpy depth map has values that are not positive and finite. (What is in arrays of jax is not
            looked
            at: they may be traced.)
    """
    xp = _module(depth)
    if xp is np:
        _check_positive(depth)
    height, width = depth.shape[-2:]
    across = (xp.arange(width, dtype=depth.dtype) + 0.5 - camera.cx) / camera.fx
    down = (xp.arange(height, dtype=depth.dtype) + 0.5 - camera.cy) / camera.fy
    right = depth * across.astype(depth.dtype)
    below = depth * down[:, None].astype(depth.dtype)
    return xp.stack([right, below, depth], axis=-1)


def project(points: Any, camera: Intrinsics) -> Any:
    """Return where points are seen: [..., 3] to (column, row) in pixels [..., 2].

    Points beside or behind the camera (depth of zero or less) are seen nowhere: NaN.
    """
    xp = _module(points)
    depth = points[..., 2]
    ahead = depth > 0
    safe = xp.where(ahead, depth, 1)
    column = camera.fx * points[..., 0] / safe + camera.cx
    row = camera.fy * points[..., 1] / safe + camera.cy
    return xp.where(ahead[..., None], xp.stack([column, row], axis=-1), xp.nan)


def normals(points: Any) -> Any:
    """Return unit normals of a grid of points, towards the camera.

    From the differences of a point's neighbours in the grid (at the border, of the point itself): across depth edges
    they belong to no surface. Where neighbours coincide the normal is zero.

    Args:
        points: [..., height, width, 3], as `unproject` gives them; at least 2x2.

    Returns:
        [..., height, width, 3].
    """
    xp = _module(points)
    if min(points.shape[-3:-1]) < 2:
        raise ImageError(f"normals need at least 2x2 points, got {points.shape[-3]}x{points.shape[-2]}")
    across = _difference(points, -2, xp)
    down = _difference(points, -3, xp)
    # (right, down, ahead): this product of the directions right and down points ahead, the normal comes back.
    normal = -xp.cross(across, down)
    squared = (normal * normal).sum(-1, keepdims=True)
    flat = squared > 0
    return xp.where(flat, normal / xp.sqrt(xp.where(flat, squared, 1)), 0)


def depth_edges(depth: Any, *, ratio: float = 1.1) -> Any:
    """Return bool [..., height, width]: pixels with a neighbour (of four) that is so many times as far, or as near.

    A network's depth is a blend there: points and surfaces made of it hang in the air.
    """
    xp = _module(depth)
    edge = xp.zeros(depth.shape, bool)
    for axis in (-1, -2):
        near, far = _shifted(depth, axis, 0, xp), _shifted(depth, axis, 1, xp)
        jump = xp.maximum(near, far) > ratio * xp.minimum(near, far)
        before = [(0, 0)] * depth.ndim
        behind = [(0, 0)] * depth.ndim
        before[axis], behind[axis] = (0, 1), (1, 0)
        edge = edge | xp.pad(jump, before) | xp.pad(jump, behind)
    return edge


def _difference(points: Any, axis: int, xp: Any) -> Any:
    size = points.shape[axis]
    index = np.arange(size)
    ahead, behind = np.minimum(index + 1, size - 1), np.maximum(index - 1, 0)
    return xp.take(points, ahead, axis=axis) - xp.take(points, behind, axis=axis)


def _shifted(depth: Any, axis: int, start: int, xp: Any) -> Any:
    size = depth.shape[axis]
    return xp.take(depth, np.arange(start, size - 1 + start), axis=axis)


def _check_positive(depth: np.ndarray) -> None:
    bad = ~(np.isfinite(depth) & (depth > 0))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ImageError(
            f"depth must be positive and finite to have a place in space; {bad.sum()} of {bad.size} values are not, "
            f"the first being {depth[first]} at {list(first)}. Inverse depth is no depth: see dajax.geometry.scale"
        )


def _module(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        return np
    import jax.numpy as jnp

    return jnp
