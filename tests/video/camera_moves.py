"""Videos of a camera that moves through scenes in which nothing else moves, with the depth of every pixel."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dajax.training.data.synthetic import render_scene, sample_scene


class Move(NamedTuple):
    """Arrays with an entry for each frame; geometry is in metres."""

    images: np.ndarray  # uint8 [frames, height, width, 3]
    depth: np.ndarray  # float32 [frames, height, width]
    valid: np.ndarray
    intrinsics: np.ndarray  # [frames, 3, 3]
    places: np.ndarray  # [frames, 3]
    axes: np.ndarray  # [frames, 3, 3]: right, down, ahead

    def seen_before(self, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return row and column of each pixel's point in the previous frame, and a mask of where it shows there."""
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
        # If the point was hidden then, the previous frame shows something else there.
        same = np.abs(self.depth[frame - 1][row, column] - other[..., 2]) < 0.03 * ahead
        return row, column, there & self.valid[frame - 1][row, column] & same


def camera_move(number: int, frames: int = 40, size=(168, 224)) -> Move:
    """From frame to frame the camera moves 2 cm to the right and 1 cm ahead, and turns by 0.23 degrees."""
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


def flicker(move: Move, depths: np.ndarray) -> tuple[float, float]:
    """Return how much inverse depth, known up to one scale and shift, flickers, and its error.

    Returns:
        The mean absolute change of a static point's inverse depth from one frame to the next, beyond its true change,
        and the mean AbsRel of depth, where each frame is aligned on its own.
    """
    true = np.where(move.valid, 1 / np.maximum(move.depth, 1e-6), 0)
    error = _fitted(depths, true, move.valid) - true
    changes = []
    for frame in range(1, len(depths)):
        row, column, there = move.seen_before(frame)
        changes.append(np.abs(error[frame] - error[frame - 1][row, column])[there].mean())
    relative = []
    for one, inverse, depth, valid in zip(depths, true, move.depth, move.valid, strict=True):
        found = 1 / np.maximum(_fitted(one, inverse, valid), 1 / 80)
        relative.append((np.abs(found - depth) / np.maximum(depth, 1e-6))[valid].mean())
    return float(np.mean(changes)), float(np.mean(relative))


def _fitted(depths: np.ndarray, true: np.ndarray, valid: np.ndarray) -> np.ndarray:
    x = depths[valid].astype(np.float64)
    (scale, shift), *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), true[valid].astype(np.float64))
    return scale * depths + shift
