"""Defines a scene (room or open ground, camera, things, materials, lights, air) and draws one from a random key."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dajax.training.data.furniture import ABSENT, PARTS, SHAPES, Tables, tables

THINGS = 18  # so many are drawn for each scene, and some of them are left out
MAX_SOLIDS = 64
SHELL = FLOOR, CEILING, X_LOW, X_HIGH, Z_LOW, Z_HIGH = range(6)  # faces; outdoors only the floor is real
PATTERNS = PLAIN, CHECKER, STRIPES, NOISE, WAVES, BRICKS, DOTS, WINDOWS = range(8)
_PATTERN_CHANCE = np.cumsum([0.2, 0.14, 0.14, 0.14, 0.08, 0.16, 0.07, 0.07]).astype(np.float32)
_FAR = 1e4  # distance in metres of the walls outdoors, where there are none


class Solids(NamedTuple):
    """Unit solids, each with its own rotation and scale, in the order boxes, balls, cans, absent solids."""

    centre: Float[Array, "solids 3"]
    axes: Float[Array, "solids 3 3"]  # each row is an axis of the solid, in the world
    half: Float[Array, "solids 3"]  # half sizes along its own axes, metres
    ends: Int[Array, " 3"]  # the index after the last box, the last ball, the last can


class Materials(NamedTuple):
    """Linear colours, and a pattern measured in metres on the surface."""

    colours: Float[Array, "n 2 3"]
    pattern: Int[Array, " n"]
    period: Float[Array, " n"]
    angle: Float[Array, " n"]
    offset: Float[Array, "n 2"]
    grain: Float[Array, " n"]  # the amount of noise over it, 0 to 1
    gloss: Float[Array, " n"]


class Camera(NamedTuple):
    """A pinhole camera. World: x right, y up, z ahead (left-handed); camera: x right, y down, z ahead."""

    position: Float[Array, " 3"]
    axes: Float[Array, "3 3"]  # rows: right, down, ahead, in the world
    focal: Float[Array, ""]  # focal length, as a multiple of the longer side of the image
    shift: Float[Array, " 2"]  # of the principal point from the middle: x, y, as a fraction of the longer side
    exposure: Float[Array, ""]  # as a multiple of automatic exposure
    contrast: Float[Array, ""]  # 0 to 1


class Lights(NamedTuple):
    """Lamps (w = 1: `place` is a point) and suns (w = 0: the direction towards it)."""

    place: Float[Array, "lights 4"]
    colour: Float[Array, "lights 3"]
    ambient: Float[Array, "2 3"]  # light from below and from above


class Air(NamedTuple):
    """Sky, hills at the horizon, and fog."""

    sky: Float[Array, "2 3"]  # colours at the horizon and overhead
    clouds: Float[Array, ""]  # 0 to 1
    hills: Float[Array, ""]  # their height divided by their distance
    fog: Float[Array, ""]  # 1 / metres
    fog_colour: Float[Array, " 3"]


class Scene(NamedTuple):
    """One scene: a pytree of arrays, whose shapes are the same for all scenes."""

    indoor: Bool[Array, ""]
    low: Float[Array, " 3"]  # corners of the room
    high: Float[Array, " 3"]
    window: Float[Array, " 5"]  # its wall (one of SHELL), its ends along the wall, and its lower and upper edge
    solids: Solids
    materials: Materials  # first those of SHELL, then those of the solids
    camera: Camera
    lights: Lights
    air: Air


class _Draws:
    """Hands out the random numbers of a single call. With a call for each number XLA compiles ten times as long."""

    def __init__(self, key: Array, count: int) -> None:
        self._numbers, self._used = jax.random.uniform(key, (count,), jnp.float32), 0

    def uniform(self, low: float | Array = 0.0, high: float | Array = 1.0, shape: tuple[int, ...] = ()) -> Array:
        start, self._used = self._used, self._used + math.prod(shape)
        assert self._used <= self._numbers.size
        return low + (high - low) * self._numbers[start : self._used].reshape(shape)

    def log_uniform(self, low: float | Array, high: float | Array, shape: tuple[int, ...] = ()) -> Array:
        return jnp.exp(self.uniform(jnp.log(low), jnp.log(high), shape))

    def bell(self) -> Array:
        """Return a number of mean 0 and deviation 1, never beyond 3, so that no camera looks away from everything."""
        return self.uniform(-2.0, 2.0, (3,)).sum() / 2

    def chance(self, probability: float | Array, shape: tuple[int, ...] = ()) -> Array:
        return self.uniform(shape=shape) < probability


@jax.jit  # without jit its hundreds of operations take a quarter of a minute to compile
def sample_scene(key: Array) -> Scene:
    """Draw a scene. It depends on the key alone.

    Args:
        key: a key from `jax.random.key`.
    """
    whole, things, shell = jax.random.split(key, 3)
    draws = _Draws(whole, 96)
    indoor = draws.chance(0.5)
    low, high, window = _room(draws, indoor)
    camera = _camera(draws, indoor, high)
    veiled = draws.chance(0.25)
    air = _air(draws, veiled)
    lights = _lights(draws, indoor, veiled, high, air)
    crowd = draws.uniform(0.5, 1)
    solids, materials = _things(things, indoor, low, high, camera, crowd)
    extent = jnp.where(indoor, 1.0, 3.0)
    surfaces = _materials(_Draws(shell, _MATERIAL_DRAWS * len(SHELL)), len(SHELL), extent)
    materials = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), surfaces, materials)
    return Scene(indoor, low, high, window, solids, materials, camera, lights, air)


def _floor_plan(vector: Array) -> Array:
    return jnp.stack([vector[..., 0], vector[..., 2]], -1)


def _room(draws: _Draws, indoor: Array) -> tuple[Array, Array, Array]:
    x, z = draws.log_uniform(2.5, 10.0, (2,))
    y = draws.uniform(2.2, 3.6)
    low = jnp.where(indoor, jnp.stack([-x / 2, 0 * y, -z / 2]), np.array([-_FAR, 0, -_FAR], np.float32))
    high = jnp.where(indoor, jnp.stack([x / 2, y, z / 2]), _FAR)
    wall = jnp.floor(draws.uniform(X_LOW, Z_HIGH + 1))
    span = jnp.where(wall < Z_LOW, z, x)
    half = span * draws.uniform(0.12, 0.3)
    middle = draws.uniform(half - span / 2, span / 2 - half)
    sill = jnp.where(draws.chance(0.2), 0.0, 0.9)  # some windows are doors
    window = jnp.stack([wall, middle - half, middle + half, sill, jnp.minimum(y - 0.15, 2.1)])
    return low, high, jnp.where(indoor & draws.chance(0.4), window, np.array([X_LOW, 1, -1, 1, -1], np.float32))


def _camera(draws: _Draws, indoor: Array, high: Array) -> Camera:
    # In a room the camera is away from the middle and looks across the room.
    corner = _floor_plan(high)
    spot = draws.uniform(-1, 1, (2,))
    spot = jnp.sign(spot) * jnp.sqrt(jnp.abs(spot)) * (corner - 0.35)
    across = draws.uniform(-0.5, 0.5, (2,)) * corner - 2 * spot
    aloft = draws.chance(0.2)  # a balcony, a mast, a drone
    height = jnp.where(aloft, draws.log_uniform(2.5, 12.0), draws.uniform(0.35, 2.2))
    height = jnp.where(indoor, draws.uniform(0.5, jnp.minimum(high[1], 2.6) - 0.4), height)
    spot = jnp.where(indoor, spot, 0.0)
    outdoor_pitch = jnp.where(aloft, -draws.uniform(4, 32), 6 * draws.bell() - 2)
    pitch = jnp.radians(jnp.where(indoor, 9 * draws.bell() - 9, outdoor_pitch))
    yaw = jnp.where(indoor, jnp.arctan2(across[0], across[1]), 0.0)
    return Camera(
        position=jnp.stack([spot[0], height, spot[1]]),
        axes=look(yaw, pitch, jnp.radians(3 * draws.bell())),
        focal=draws.log_uniform(0.45, jnp.where(indoor, 1.0, 1.4)),
        shift=0.02 * jnp.stack([draws.bell(), draws.bell()]),
        exposure=draws.log_uniform(0.7, 1.5),
        contrast=draws.uniform(),
    )


def look(yaw: Array, pitch: Array, roll: Array) -> Array:
    """Return the rows right, down, ahead of a camera turned right, raised, then rolled clockwise (in radians)."""
    (sy, cy), (sp, cp), (sr, cr) = ((jnp.sin(a), jnp.cos(a)) for a in (yaw, pitch, roll))
    right, down = jnp.stack([cy, 0 * cy, -sy]), jnp.stack([sp * sy, -cp, sp * cy])
    ahead = jnp.stack([cp * sy, sp, cp * cy])
    return jnp.stack([cr * right + sr * down, cr * down - sr * right, ahead])


class _Thing(NamedTuple):
    """One thing of one of the `KINDS`, placed on the floor."""

    fits: Array
    place: Array  # x, z
    yaw: Array
    size: Array  # half width, height, half depth
    shape: Array  # the shapes of its parts
    parts: tuple[Array, Array, Array]  # centre, axes, half, as in Solids
    materials: Materials


def _things(
    key: Array, indoor: Array, low: Array, high: Array, camera: Camera, crowd: Array
) -> tuple[Solids, Materials]:
    things = jax.vmap(lambda k: _thing(k, indoor, low, high, camera, crowd))(jax.random.split(key, THINGS))
    there = things.fits & (_gap(things, _floor_plan(camera.position)) > 0.45)
    # Of two things that clash, the later one is left out.
    gaps = jax.vmap(lambda place: _gap(things, place), out_axes=1)(things.place)
    slim = jnp.minimum(things.size[:, 0], things.size[:, 2])
    clash = gaps < slim[None, :]
    clash |= clash.T
    there &= ~(clash & np.tri(THINGS, k=-1, dtype=bool) & there[None, :]).any(1)
    parts = (things.shape != ABSENT).sum(1)
    there &= jnp.cumsum(jnp.where(there, parts, 0)) <= MAX_SOLIDS
    shape = jnp.where(there[:, None], things.shape, ABSENT).reshape(-1)
    order = jnp.argsort(shape)[:MAX_SOLIDS]
    parts_and_materials = (things.parts, things.materials)
    (centre, axes, half), materials = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[order], parts_and_materials)
    ends = jnp.stack([(shape <= kind).sum() for kind in SHAPES])
    return Solids(centre, axes, half, ends.astype(jnp.int32)), materials


def _gap(things: _Thing, place: Array) -> Array:
    """Return the distance in metres from each thing's rectangle on the floor to a place; it is zero inside."""
    x, z = (place - things.place).T
    s, c = jnp.sin(things.yaw), jnp.cos(things.yaw)
    outside = jnp.abs(jnp.stack([c * x - s * z, s * x + c * z], 1)) - _floor_plan(things.size)
    return jnp.linalg.norm(jnp.maximum(outside, 0), axis=1)


def _thing(key: Array, indoor: Array, low: Array, high: Array, camera: Camera, crowd: Array) -> _Thing:
    draws = _Draws(key, 48 + _MATERIAL_DRAWS * PARTS)
    table = jax.tree.map(jnp.asarray, tables())
    which = jnp.searchsorted(table.chance[indoor.astype(jnp.int32), :-1], draws.uniform())
    kind = jax.tree.map(lambda a: a[which], table._replace(chance=table.small))
    size = _size(draws, kind, indoor, high - low)
    radius = jnp.hypot(size[0], size[2])

    corner = _floor_plan(high) - radius
    place, yaw = corner * draws.uniform(-1, 1, (2,)), draws.uniform(0, 2 * np.pi)
    quarter = np.pi / 2 * jnp.floor(yaw / (np.pi / 2))
    yaw = jnp.where(indoor & draws.chance(0.5), quarter, yaw)
    at_wall, wall_yaw = _wall_place(draws, high, size)
    place, yaw = jnp.where(kind.wall, at_wall, place), jnp.where(kind.wall, wall_yaw, yaw)
    near, far = 0.8 + 1.1 * radius + 0.5 * size[1], jnp.clip(18 * size[1], 10, 68)
    bearing = draws.uniform(-1, 1) * jnp.arctan(0.6 / camera.focal)
    open_place = draws.log_uniform(near, far) * jnp.stack([jnp.sin(bearing), jnp.cos(bearing)])
    place = jnp.where(indoor, place, open_place)

    s, c, zero, one = jnp.sin(yaw), jnp.cos(yaw), jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32)
    frame = jnp.stack([c, zero, -s, zero, one, zero, s, zero, c]).reshape(3, 3)
    # Unlike a matrix product, this has full precision on every device.
    centre = jnp.stack([place[0], zero, place[1]]) + ((kind.centre * size)[:, :, None] * frame).sum(1)
    # The x axis of a lying can is the y axis of the thing, and the reverse.
    swap, half = np.array([1, 0, 2]), kind.half * size
    half = jnp.where(kind.lying[:, None], half[:, swap], half)
    axes = jnp.where(kind.lying[:, None, None], frame[swap], frame)
    shape = jnp.where(kind.optional & ~draws.chance(0.6, (PARTS,)), ABSENT, kind.shape)
    same = draws.chance(jnp.where(kind.optional, 0.0, 0.7), (PARTS,))
    materials = _materials(draws, PARTS, half.max(1))
    # Most parts have the material of the first part.
    materials = jax.tree.map(lambda a: jnp.where(same.reshape(-1, *[1] * (a.ndim - 1)), a[:1], a), materials)
    room = _floor_plan(high - low)
    fits = (2 * radius < room.min()) & draws.chance(crowd)
    return _Thing(fits, place, yaw, size, shape, (centre, axes, half), materials)


def _size(draws: _Draws, kind: Tables, indoor: Array, room: Array) -> Array:
    common = draws.uniform()
    own = jnp.clip(common + draws.uniform(-0.3, 0.3, (3,)), 0, 1)
    size = kind.small + jnp.where(kind.round, common, own) * (kind.large - kind.small)
    size *= jnp.where(indoor, 1.0, kind.outdoor_scale)
    fit = jnp.minimum(1, 0.4 * jnp.minimum(room[0], room[2]) / jnp.hypot(size[0], size[2]))
    height = jnp.minimum(size[1] * jnp.where(kind.round, fit, 1.0), 0.92 * room[1])
    return jnp.stack([size[0] * fit, jnp.where(kind.full & indoor, room[1], height), size[2] * fit])


def _wall_place(draws: _Draws, high: Array, size: Array) -> tuple[Array, Array]:
    """Return a place at a wall of a room, and the yaw with which a thing has its back to the wall."""
    along, gap = draws.uniform(-1, 1), size[2] + 0.01
    x, z = high[0], high[2]
    at_x, at_z = along * (z - size[0]), along * (x - size[0])
    places = jnp.stack([gap - x, at_x, x - gap, at_x, at_z, gap - z, at_z, z - gap]).reshape(4, 2)
    wall = draws.uniform(0, 4).astype(jnp.int32)
    return places[wall], jnp.asarray(np.array([0.5, -0.5, 0, 1], np.float32) * np.float32(np.pi))[wall]


_MATERIAL_DRAWS = 16


def _materials(draws: _Draws, n: int, extent: Array) -> Materials:
    """Draw materials; `extent` is the size in metres of the thing that has them."""
    main, other = _colours(draws, n), _colours(draws, n)
    # Half of the second colours are a darker shade of the first.
    other = jnp.where(draws.chance(0.5, (n, 1)), main * draws.log_uniform(0.25, 0.8, (n, 1)), other)
    return Materials(
        colours=jnp.stack([main, other], 1),
        pattern=jnp.searchsorted(_PATTERN_CHANCE[:-1], draws.uniform(shape=(n,))).astype(jnp.int32),
        period=draws.log_uniform(0.12, 0.8, (n,)) * jnp.maximum(extent, 0.08),
        angle=jnp.where(draws.chance(0.3, (n,)), draws.uniform(0, 2 * np.pi, (n,)), 0.0),
        offset=draws.uniform(0, 64, (n, 2)),
        grain=0.8 * draws.uniform(shape=(n,)) ** 2,
        gloss=jnp.maximum(draws.uniform(-1.5, 0.6, (n,)), 0),
    )


def _colours(draws: _Draws, n: int) -> Array:
    hue, saturation, value = draws.uniform(shape=(3, n, 1))
    pure = jnp.clip(jnp.abs((hue * 6 + np.array([0, 4, 2], np.float32)) % 6 - 3) - 1, 0, 1)
    return (0.03 + 0.8 * value * jnp.sqrt(value)) * (1 - 0.9 * saturation * (1 - pure))


def _air(draws: _Draws, veiled: Array) -> Air:
    warm = np.array([1, 0.85, 0.7], np.float32) ** draws.uniform(-0.7, 1.5)
    zenith = jnp.stack([draws.uniform(0.05, 0.3), draws.uniform(0.2, 0.45), draws.uniform(0.7, 1)])
    grey = draws.uniform(0.5, 0.9) * (0.5 + 0.5 * warm)
    horizon = draws.uniform(0.8, 1.1) * warm
    sky = jnp.where(veiled, 1.1, draws.uniform(0.7, 1.5)) * jnp.stack([horizon, jnp.where(veiled, grey, zenith)])
    fog = jnp.where(draws.chance(0.5), draws.log_uniform(0.003, 0.04), 0.0)
    hills = jnp.maximum(draws.uniform(-0.15, 0.2), 0)
    return Air(sky, draws.uniform(), hills, fog, 0.9 * sky[0])


def _lights(draws: _Draws, indoor: Array, veiled: Array, high: Array, air: Air) -> Lights:
    azimuth, elevation = draws.uniform(0, 2 * np.pi), jnp.radians(draws.uniform(10, 75))
    s, c = jnp.sin(elevation), jnp.cos(elevation)
    sun = jnp.stack([c * jnp.sin(azimuth), s, c * jnp.cos(azimuth), 0 * s])
    sunlight = jnp.stack([jnp.ones((), jnp.float32), 0.75 + 0.2 * s, 0.45 + 0.5 * s])
    sunlight *= jnp.where(veiled, 0.15, draws.uniform(1.5, 4))
    spots = draws.uniform(-0.7, 0.7, (2, 2)) * _floor_plan(high)
    lamps = jnp.stack([spots[:, 0], high[1] - draws.uniform(0.1, 0.5, (2,)), spots[:, 1], jnp.ones(2, jnp.float32)], 1)
    lamplight = draws.uniform(1.5, 5, (2, 1)) * np.array([1, 0.85, 0.65], np.float32) ** draws.uniform(0, 1.2, (2, 1))
    # The second light of a room is another lamp, or the sun through the window.
    by_day = draws.chance(0.6)
    second, its_light = jnp.where(by_day, sun, lamps[1]), jnp.where(by_day, 2 * sunlight, lamplight[1])
    above = jnp.where(indoor, lamplight[0] * draws.uniform(0.06, 0.3), air.sky.mean(0) * jnp.where(veiled, 0.9, 0.5))
    return Lights(
        place=jnp.where(indoor, jnp.stack([lamps[0], second]), sun),
        colour=jnp.where(indoor, jnp.stack([lamplight[0], its_light]), jnp.stack([sunlight, 0 * sunlight])),
        ambient=jnp.stack([0.45 * above * np.array([1, 0.95, 0.9], np.float32), above]),
    )
