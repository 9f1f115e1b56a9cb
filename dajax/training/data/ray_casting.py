"""Computes where rays meet a scene, in closed form.

A loop goes from solid to solid, so that the rays of an image stay in the cache. Vectors are tuples of three arrays, one
for each axis: XLA then fuses all arithmetic of a solid into one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dajax.training.data.furniture import BALL, BOX, CAN
from dajax.training.data.scene import CEILING, FLOOR, SHELL, X_LOW, Z_LOW, Camera, Scene, Solids

Vector = tuple[Array, ...]  # of three
_Carry = TypeVar("_Carry")

_TINY = 1e-9


class Hit(NamedTuple):
    """What each ray meets first."""

    t: Array  # the ray meets it at origin + t * direction
    surface: Array  # int32: a face of SHELL, or len(SHELL) + the number of the solid
    sky: Array  # bool: the ray meets nothing


def camera_rays(camera: Camera, size: tuple[int, int], offset: tuple[float | Array, float | Array]) -> Vector:
    """Return the directions, in the world, of the rays through (column + offset[0], row + offset[1]).

    Their length along the optical axis is 1, so that t is the depth along that axis. The middle of a pixel is at offset
    (0.5, 0.5).
    """
    fx, fy, cx, cy = intrinsics(camera, size)
    height, width = size
    x = (jnp.arange(width, dtype=jnp.float32) + offset[0] - cx) / fx
    y = (jnp.arange(height, dtype=jnp.float32) + offset[1] - cy) / fy
    x, y = jnp.broadcast_to(x, size), jnp.broadcast_to(y[:, None], size)
    right, down, ahead = camera.axes
    return tuple(right[i] * x + down[i] * y + ahead[i] for i in range(3))


def intrinsics(camera: Camera, size: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
    """Return fx, fy, cx, cy in pixels for an image of `size` (height, width), whose top left corner is (0, 0)."""
    height, width = size
    longer = float(max(size))
    focal = camera.focal * longer
    return focal, focal, width / 2 + longer * camera.shift[0], height / 2 + longer * camera.shift[1]


def cast(scene: Scene, origin: Vector, direction: Vector) -> Hit:
    """Return what each ray meets first. Solids are visible from outside only."""
    t, face, sky = leave_shell(scene, origin, direction)

    def visit(i: Array, near: Array, far: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        t, surface = best
        closer = (near <= far) & (near > 1e-4) & (near < t)
        return jnp.where(closer, near, t), jnp.where(closer, i + len(SHELL), surface)

    # Nothing stands outside of a window, so that no solid is behind its sky.
    t, surface = each_solid(scene.solids, origin, direction, visit, (t, face))
    return Hit(t, surface, sky & (surface < len(SHELL)))


def each_solid(
    solids: Solids,
    origin: Vector,
    direction: Vector,
    visit: Callable[[Array, Array, Array, _Carry], _Carry],
    carry: _Carry,
) -> _Carry:
    """Call `visit(number, near, far, carry)` for each solid. A ray is inside it for near <= t <= far."""
    start: Array | int = 0
    for shape, interval in ((BOX, _box), (BALL, _ball), (CAN, _can)):

        def body(i: Array, carry: _Carry, interval: Callable[..., tuple[Array, Array]] = interval) -> _Carry:
            unit_origin, unit_direction = to_unit(solids, i, origin, direction)
            return visit(i, *interval(unit_origin, unit_direction), carry)

        carry = jax.lax.fori_loop(start, solids.ends[shape], body, carry)
        start = solids.ends[shape]
    return carry


def to_unit(solids: Solids, i: Array, origin: Vector, direction: Vector) -> tuple[Vector, Vector]:
    """Return a ray in the coordinates in which a solid is the unit solid. t does not change."""
    scaled = solids.axes[i] / solids.half[i][:, None]
    moved = tuple(o - c for o, c in zip(origin, solids.centre[i], strict=True))
    return turn(scaled, moved), turn(scaled, direction)


def turn(matrix: Array, vector: Vector) -> Vector:
    """Multiply a matrix [3, 3] and a vector of arrays."""
    x, y, z = vector
    return tuple(matrix[i, 0] * x + matrix[i, 1] * y + matrix[i, 2] * z for i in range(3))


def _slab(o: Array, d: Array) -> tuple[Array, Array]:
    inverse = 1 / jnp.where(jnp.abs(d) < _TINY, _TINY, d)
    middle, half = -o * inverse, jnp.abs(inverse)
    return middle - half, middle + half


def _round(o: tuple[Array, ...], d: tuple[Array, ...]) -> tuple[Array, Array]:
    """Return the interval within distance 1 of the centre (of the axis, for two coordinates); it may be empty."""
    a = jnp.maximum(sum(x * x for x in d), _TINY * _TINY)
    middle = -sum(x * y for x, y in zip(o, d, strict=True)) / a
    # This starts from the point nearest to the centre: b^2 - a c would lose small distant things in rounding.
    room = 1 - sum(jnp.square(x + middle * y) for x, y in zip(o, d, strict=True))
    half = jnp.sqrt(jnp.maximum(room, 0) / a)
    return jnp.where(room < 0, jnp.inf, middle - half), jnp.where(room < 0, -jnp.inf, middle + half)


def _both(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    return jnp.maximum(a[0], b[0]), jnp.minimum(a[1], b[1])


def _box(o: Vector, d: Vector) -> tuple[Array, Array]:
    x, y, z = (_slab(*axis) for axis in zip(o, d, strict=True))
    return _both(_both(x, y), z)


def _ball(o: Vector, d: Vector) -> tuple[Array, Array]:
    return _round(o, d)


def _can(o: Vector, d: Vector) -> tuple[Array, Array]:
    return _both(_round((o[0], o[2]), (d[0], d[2])), _slab(o[1], d[1]))


def leave_shell(scene: Scene, origin: Vector, direction: Vector) -> tuple[Array, Array, Array]:
    """Return where rays from inside leave the room: t, the face of SHELL, and whether the sky is there."""
    ways = []
    for low, high, o, d in zip(scene.low, scene.high, origin, direction, strict=True):
        d = jnp.where(jnp.abs(d) < _TINY, _TINY, d)
        ways.append((jnp.where(d > 0, high, low) - o) / d)
    x, y, z = ways
    t = jnp.minimum(jnp.minimum(x, y), z)
    up = (direction[1] > 0).astype(jnp.int32) * (CEILING - FLOOR) + FLOOR
    across = (direction[0] > 0).astype(jnp.int32) + X_LOW
    ahead = (direction[2] > 0).astype(jnp.int32) + Z_LOW
    face = jnp.where(t == y, up, jnp.where(t == x, across, ahead))
    wall, left, right, sill, top = scene.window
    along = jnp.where(t == x, origin[2] + t * direction[2], origin[0] + t * direction[0])
    height = origin[1] + t * direction[1]
    bar = jnp.minimum(jnp.abs(along - (left + right) / 2), jnp.abs(height - 1.45)) < 0.025
    opening = (face == wall.astype(jnp.int32)) & (along > left) & (along < right) & (height > sill) & (height < top)
    return t, face, jnp.where(scene.indoor, opening & ~bar, face != FLOOR)
