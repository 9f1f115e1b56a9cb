"""Videos of a camera that moves through scenes in which nothing else does, with the depth of every pixel."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dajax.training.data.synthetic import render_scene, sample_scene


class Move(NamedTuple):
    """`*_by_frame`; geometry is in metres."""

    images: np.ndarray  # uint8 [frames, height, width, 3]
    depth: np.ndarray  # float32 [frames, height, width]
    valid: np.ndarray
    intrinsics: np.ndarray  # [frames, 3, 3]
    places: np.ndarray  # [frames, 3]
    axes: np.ndarray  # [frames, 3, 3]: right, down, ahead

    def seen_before(self, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return row and column at which the frame before shows each pixel's point, and where it does."""
        depth, matrix = self.depth[frame].astype(np.float64), self.intrinsics[frame]
        height, width = depth.shape
        x = (np.arange(width) + 0.5 - matrix[0, 2]) / matrix[0, 0]
        y = (np.arange(height) + 0.5 - matrix[1, 2]) / matrix[1, 1]
        seen = np.stack([depth * x, depth * y[:, None], depth], -1) @ self.axes[frame] + self.places[frame]
        other = (seen - self.places[frame - 1]) @ self.axes[frame - 1].T
        matrix = self.intrinsics[frame - 1]
        ahead = np.maximum(other[..., 2], 1e-6)
        column = np.floor(matrix[0, 0] * other[..., 0] / ahead + matrix[0, 2]).astype(int)
        row = np.floor(matrix[1, 1] * other[..., 1] / ahead + matrix[1, 2]).astype(int)
        there = self.valid[frame] & (column >= 0) & (row >= 0) & (column < width) & (row < height)
        row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
        # What was hidden then shows something else there.
        same = np.abs(self.depth[frame - 1][row, column] - other[..., 2]) < 0.03 * ahead
        return row, column, there & self.valid[frame - 1][row, column] & same


def camera_move(number: int, frames: int = 40, size=(168, 224)) -> Move:
    """Two centimetres to the right and one ahead, and 0.23 degrees around, from frame to frame."""
    taken = [_frame(jax.random.key(number), float(frame - frames / 2), size) for frame in range(frames)]
    rendered, places, axes = (jax.device_get(part) for part in zip(*taken, strict=True))
    images, depth, valid, intrinsics = (np.stack(part) for part in zip(*rendered, strict=True))
    return Move(images, depth, valid, intrinsics, np.stack(places), np.stack(axes))


@partial(jax.jit, static_argnames="size")
def _frame(key, time, size):
    scene = sample_scene(key)
    camera = scene.camera
    angle = 0.004 * time
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = camera.axes @ jnp.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]).T
    place = camera.position + time * (0.02 * camera.axes[0] + 0.01 * camera.axes[2])
    moved = camera._replace(position=place, axes=turned)
    return render_scene(scene._replace(camera=moved), size), place, turned


def flicker(move: Move, maps: np.ndarray) -> tuple[float, float]:
    """Return how maps of inverse depth (up to one scale and shift) flicker, and their error, one frame at a time.

    Returns:
        Mean absolute change, from a frame to the next, of a static point's inverse depth beyond what is true of it.
        Mean AbsRel of depth, each map aligned on its own.
    """
    true = np.where(move.valid, 1 / np.maximum(move.depth, 1e-6), 0)
    error = _fitted(maps, true, move.valid) - true
    changes = []
    for frame in range(1, len(maps)):
        row, column, there = move.seen_before(frame)
        changes.append(np.abs(error[frame] - error[frame - 1][row, column])[there].mean())
    relative = []
    for one, inverse, depth, valid in zip(maps, true, move.depth, move.valid, strict=True):
        found = 1 / np.maximum(_fitted(one, inverse, valid), 1 / 80)
        relative.append((np.abs(found - depth) / np.maximum(depth, 1e-6))[valid].mean())
    return float(np.mean(changes)), float(np.mean(relative))


def _fitted(maps: np.ndarray, true: np.ndarray, valid: np.ndarray) -> np.ndarray:
    x = maps[valid].astype(np.float64)
    (scale, shift), *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), true[valid].astype(np.float64))
    return scale * maps + shift
