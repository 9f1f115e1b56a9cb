"""Computes the colour along each ray: patterns on surfaces, lamps and suns with hard shadows, fog and sky."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dajax.training.data.furniture import BALL, CAN
from dajax.training.data.ray_casting import Hit, Vector, cast, each_solid, leave_shell, turn
from dajax.training.data.scene import BRICKS, CHECKER, DOTS, NOISE, SHELL, STRIPES, WAVES, WINDOWS, Scene

_SHELL_NORMALS = np.array([[0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]], np.float32)


def radiance(scene: Scene, direction: Vector, pixel: Array) -> Array:
    """Return the linear RGB of camera rays, [3, height, width].

    Args:
        scene: the scene.
        direction: the directions of the rays, with length 1 along the optical axis.
        pixel: the width of a pixel at distance 1, in metres.
    """
    position = scene.camera.position
    origin: Vector = tuple(jnp.broadcast_to(p, direction[0].shape) for p in position)
    hit = cast(scene, (position[0], position[1], position[2]), direction)
    length = jnp.sqrt(_dot(direction, direction))
    view: Vector = tuple(d / length for d in direction)
    distance = jnp.where(hit.sky, 1.0, hit.t * length)
    point: Vector = tuple(o + distance * v for o, v in zip(origin, view, strict=True))
    surface = _surface(scene, hit, point, view, pixel * distance)
    light = _light(scene, hit, surface, point, view)
    clear = jnp.exp(-scene.air.fog * distance)
    sky = _sky(scene, view)
    shaded = []
    for channel in range(3):
        fog = scene.air.fog_colour[channel]
        shaded.append(jnp.where(hit.sky, sky[channel], fog + clear * (light[channel] - fog)))
    return jnp.stack(shaded)


class _Surface(NamedTuple):
    normal: Vector
    colour: Vector
    gloss: Array


def _dot(a: Vector, b: Vector) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _table(scene: Scene) -> Array:
    """Return all that shading needs to know about surfaces, [columns, surfaces]: a pixel needs one gather."""
    solids, materials = scene.solids, scene.materials
    n, m = solids.centre.shape[0], len(SHELL)
    shape = jnp.searchsorted(solids.ends, jnp.arange(n, dtype=jnp.int32), side="right").astype(jnp.float32)
    c, s = jnp.cos(materials.angle), jnp.sin(materials.angle)
    columns = [
        jnp.concatenate([jnp.zeros((m, 3), jnp.float32), solids.centre]),
        jnp.concatenate(
            [jnp.broadcast_to(jnp.eye(3, dtype=jnp.float32).reshape(9), (m, 9)), solids.axes.reshape(n, 9)]
        ),
        jnp.concatenate([jnp.ones((m, 3), jnp.float32), solids.half]),
        jnp.concatenate([jnp.asarray(_SHELL_NORMALS), jnp.zeros((n, 3), jnp.float32)]),
        jnp.concatenate([jnp.zeros(m, jnp.float32), shape])[:, None],
        materials.colours.reshape(m + n, 6),
        jnp.stack([c / materials.period, s / materials.period, 1 / materials.period], 1),
        materials.offset,
        jnp.stack([materials.pattern.astype(jnp.float32), materials.grain, materials.gloss], 1),
    ]
    return jnp.concatenate(columns, 1).T


def _surface(scene: Scene, hit: Hit, point: Vector, view: Vector, footprint: Array) -> _Surface:
    got = iter(jnp.take(_table(scene), hit.surface, axis=1, mode="clip"))
    centre = next(got), next(got), next(got)
    axes = [(next(got), next(got), next(got)) for _ in range(3)]
    half = next(got), next(got), next(got)
    face = next(got), next(got), next(got)
    shape = next(got)
    first, second = (next(got), next(got), next(got)), (next(got), next(got), next(got))
    cosine, sine, frequency = next(got), next(got), next(got)
    offset = next(got), next(got)
    pattern, grain, gloss = got

    away = tuple(p - c for p, c in zip(point, centre, strict=True))
    x, y, z = (_dot(axis, away) for axis in axes)
    u, v, w = x / half[0], y / half[1], z / half[2]
    au, av, aw = jnp.abs(u), jnp.abs(v), jnp.abs(w)
    ball, can = shape == BALL, shape == CAN
    cap = can & (av >= jnp.sqrt(u * u + w * w))
    side = can & ~cap
    most = jnp.maximum(jnp.maximum(au, av), aw)
    box = [jnp.where(a == most, jnp.sign(b), 0.0) for a, b in ((au, u), (av, v), (aw, w))]
    smooth = u / half[0], v / half[1], w / half[2]
    nx = jnp.where(ball | side, smooth[0], jnp.where(cap, 0.0, box[0]))
    ny = jnp.where(ball, smooth[1], jnp.where(side, 0.0, jnp.where(cap, jnp.sign(v), box[1])))
    nz = jnp.where(ball | side, smooth[2], jnp.where(cap, 0.0, box[2]))
    shell = hit.surface < len(SHELL)
    nx, ny, nz = (jnp.where(shell, f, n) for f, n in zip(face, (nx, ny, nz), strict=True))
    size = jnp.sqrt(nx * nx + ny * ny + nz * nz)
    nx, ny, nz = nx / size, ny / size, nz / size
    normal = tuple(axes[0][i] * nx + axes[1][i] * ny + axes[2][i] * nz for i in range(3))
    facing = jnp.abs(_dot(normal, view))

    # Coordinates on the surface in metres: around round sides, and along two axes elsewhere.
    upright = jnp.abs(ny) > jnp.maximum(jnp.abs(nx), jnp.abs(nz))
    around = jnp.arctan2(x, z) * (half[0] + half[2]) / 2
    right = jnp.where(ball | side, around, jnp.where(upright | (jnp.abs(nz) > jnp.abs(nx)), x, z))
    up = jnp.where(upright & ~ball, z, y)
    s = cosine * right + sine * up + offset[0]
    t = cosine * up - sine * right + offset[1]
    blur = footprint / jnp.sqrt(jnp.maximum(facing, 0.05))
    noise = _fractal_noise(s, t, blur * frequency)
    fine = _fractal_noise(s * 7.3, t * 7.3, blur * frequency * 7.3)
    amount = _pattern(pattern, s, t, noise)
    # A pattern finer than a pixel fades to its mean, or it would flicker.
    amount = 0.5 + (amount - 0.5) * jnp.clip(1.6 - 2.0 * blur * frequency, 0, 1)
    rough = 1 + grain * (0.6 * noise + 0.9 * fine - 0.75)
    colour = tuple((a + amount * (b - a)) * rough for a, b in zip(first, second, strict=True))
    return _Surface(normal, colour, gloss)


def _pattern(pattern: Array, s: Array, t: Array, noise: Array) -> Array:
    """Return the fraction of the second colour at (s, t), which are in periods of the pattern."""
    cell_s, cell_t = jnp.floor(s), jnp.floor(t)
    in_s, in_t = s - cell_s, t - cell_t
    row = jnp.floor(2 * t)
    shifted = s + 0.5 * (row - 2 * jnp.floor(row / 2))
    mortar = (shifted - jnp.floor(shifted) < 0.06) | (2 * t - row < 0.12)
    tint = 0.6 * _random(jnp.floor(shifted), row)
    dot = jnp.square(in_s - 0.5) + jnp.square(in_t - 0.5) < 0.09
    pane = (jnp.abs(in_s - 0.5) < 0.28) & (jnp.abs(in_t - 0.5) < 0.32)
    checker = cell_s + cell_t
    amount = jnp.zeros_like(s)
    for which, value in (
        (CHECKER, checker - 2 * jnp.floor(checker / 2)),
        (STRIPES, (in_s < 0.5).astype(s.dtype)),
        (NOISE, jnp.clip(3 * noise - 1, 0, 1)),
        (WAVES, jnp.abs(2 * (t / 4 - jnp.floor(t / 4)) - 1)),
        (BRICKS, jnp.where(mortar, 1.0, tint)),
        (DOTS, dot.astype(s.dtype)),
        (WINDOWS, pane.astype(s.dtype)),
    ):
        amount = jnp.where(pattern == which, value, amount)
    return amount


def _random(s: Array, t: Array) -> Array:
    """Return a number in [0, 1) for each pair of whole numbers (s, t)."""
    bits = s.astype(jnp.int32).astype(jnp.uint32) * np.uint32(374761393)
    bits += t.astype(jnp.int32).astype(jnp.uint32) * np.uint32(668265263)
    bits = (bits ^ (bits >> 13)) * np.uint32(1274126177)
    bits = (bits ^ (bits >> 15)) * np.uint32(2246822519)
    return (bits >> 8).astype(jnp.int32).astype(jnp.float32) / 2**24


def _fractal_noise(s: Array, t: Array, blur: Array) -> Array:
    """Return two octaves of value noise in [0, 1], without details finer than `blur`."""
    total = 0.5 + jnp.zeros_like(s)
    for frequency, amplitude in ((1.0, 0.65), (2.7, 0.35)):
        total += amplitude * (_noise(s * frequency, t * frequency) - 0.5) * jnp.clip(1.6 - 2 * blur * frequency, 0, 1)
    return total


def _noise(s: Array, t: Array) -> Array:
    low_s, low_t = jnp.floor(s), jnp.floor(t)
    a, b = s - low_s, t - low_t
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    near = _random(low_s, low_t) * (1 - a) + _random(low_s + 1, low_t) * a
    far = _random(low_s, low_t + 1) * (1 - a) + _random(low_s + 1, low_t + 1) * a
    return near * (1 - b) + far * b


def _light(scene: Scene, hit: Hit, surface: _Surface, point: Vector, view: Vector) -> Vector:
    """Return the light that leaves the surface towards the camera."""
    normal, lights = surface.normal, scene.lights
    # The start is above the surface by more than rounding, so that the surface does not shade itself.
    lift = 1e-3 + 2e-4 * hit.t
    start: Vector = tuple(p + lift * n for p, n in zip(point, normal, strict=True))
    near = _openness(scene, hit, point)
    up = 0.5 + 0.5 * normal[1]
    below, above = lights.ambient
    total = tuple(c * near * (below[i] + up * (above[i] - below[i])) for i, c in enumerate(surface.colour))

    def add(i: Array, total: Vector) -> Vector:
        lamp = lights.place[i]
        to_light: Vector = tuple(lamp[j] - lamp[3] * start[j] for j in range(3))
        squared = _dot(to_light, to_light)
        scale = 1 / jnp.sqrt(squared)
        cosine = _dot(normal, to_light) * scale
        clear = (cosine > 0) & ~_shaded(scene, start, to_light, lamp[3])
        power = jnp.where(clear, 1.0, 0.0) / (1 + lamp[3] * (0.25 * squared - 0.5 * jnp.minimum(squared, 1.0)))
        halfway: Vector = tuple(scale * a - b for a, b in zip(to_light, view, strict=True))
        shine = jnp.square(_dot(normal, halfway)) / jnp.maximum(_dot(halfway, halfway), 1e-6)
        for _ in range(5):
            shine = jnp.square(shine)
        gloss = surface.gloss * shine
        return tuple(total[j] + lights.colour[i, j] * power * (surface.colour[j] * cosine + gloss) for j in range(3))

    lit = (lights.colour.max(1) > 0).sum()
    return jax.lax.fori_loop(0, lit, add, total)


def _shaded(scene: Scene, start: Vector, to_light: Vector, lamp: Array) -> Array:
    """Return whether anything is between a place and a light. `lamp` is 1 for lamps (at t = 1) and 0 for suns."""
    reach = jnp.where(lamp > 0, 1.0, jnp.inf)
    toward: Vector = tuple(jnp.broadcast_to(d, start[0].shape) for d in to_light)

    def visit(i: Array, near: Array, far: Array, dark: Array) -> Array:
        return dark | ((near <= far) & (near > 0) & (near < reach))

    _, _, open_sky = leave_shell(scene, start, toward)
    behind_wall = (lamp == 0) & scene.indoor & ~open_sky
    return each_solid(scene.solids, start, toward, visit, behind_wall)


def _openness(scene: Scene, hit: Hit, point: Vector) -> Array:
    """Return the fraction of the ambient light that arrives: less beside other solids and in the corners of a room."""
    solids = scene.solids

    def visit(i: Array, openness: Array) -> Array:
        half = solids.half[i]
        local = turn(solids.axes[i], tuple(p - c for p, c in zip(point, solids.centre[i], strict=True)))
        gaps = tuple(jnp.maximum(jnp.abs(x) - half[j], 0) for j, x in enumerate(local))
        reach = 0.5 * jnp.sort(half)[1] + 0.01
        gap = jnp.sqrt(_dot(gaps, gaps)) / reach
        darker = 0.55 / (1 + 4 * gap * gap)
        return openness * (1 - jnp.where(hit.surface == i + len(SHELL), 0.0, darker))

    openness = jax.lax.fori_loop(0, solids.ends[CAN], visit, jnp.ones_like(hit.t))
    for low, high, p in zip(scene.low, scene.high, point, strict=True):
        gap = jnp.minimum(p - low, high - p)
        # A face has no gap to itself, which darkens all of it equally.
        openness *= 1 - 0.3 / (1 + 12 * gap * gap)
    return openness


def _sky(scene: Scene, view: Vector) -> Vector:
    horizon, zenith = scene.air.sky
    up = jnp.clip(view[1], 0, 1)
    amount = jnp.sqrt(up)
    plane = 1 / jnp.maximum(view[1], 0.03)
    puffs = _fractal_noise(view[0] * plane * 0.7 + 50, view[2] * plane * 0.7 + 50, 0.0 * up)
    cloud = jnp.clip(3 * puffs - 2.2 + scene.air.clouds, 0, 1) * jnp.clip(6 * up, 0, 1) * 0.8
    lamp = scene.lights.place[1]
    sun = scene.lights.place[0, :3]
    sun = jnp.where(scene.indoor, lamp[:3] * (1 - lamp[3]), sun)
    near = jnp.maximum(view[0] * sun[0] + view[1] * sun[1] + view[2] * sun[2], 0)
    glow = near**8
    disc = jnp.where(near > 0.9994, 6.0, 0.0) + 0.4 * glow * glow
    bright = scene.lights.colour[0] / jnp.maximum(scene.lights.colour[0].max(), 1e-3)
    colour = []
    azimuth = jnp.arctan2(view[0], view[2])
    ridge = scene.air.hills * (0.3 + _fractal_noise(3 * azimuth + 9, 0 * azimuth, 0 * azimuth))
    hill = (scene.air.hills > 0) & (view[1] < ridge)
    for i in range(3):
        clear = horizon[i] + amount * (zenith[i] - horizon[i])
        open_sky = clear + cloud * (1.1 * horizon[i] - clear) + disc * bright[i] * (1 - cloud)
        colour.append(jnp.where(hill, (0.35 + 0.1 * i) * horizon[i], open_sky))
    return tuple(colour)
