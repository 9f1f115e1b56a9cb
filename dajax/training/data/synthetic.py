"""Synthetic scenes with exact depth: rooms and open ground, ray cast in closed form, drawn from a seed.

Depth Anything V2 learnt its fine detail from synthetic images, because their labels have no noise. The labels here have
none either, and the images need no download. They teach perspective, texture gradients, contact with the ground,
occlusion, shading and shadows. `sample_scene`, `render_scene` and `render_scene_batch` are pure functions for `jit` and
`vmap`; `render_scenes` returns numpy arrays.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, UInt8

from dajax.errors import ConfigError
from dajax.kernels import current_target
from dajax.training.data.ray_casting import camera_rays, cast, intrinsics
from dajax.training.data.scene import Camera, Scene, sample_scene
from dajax.training.data.shading import radiance

MAX_DEPTH = 80.0  # metres; as in Depth Anything V2's outdoor metric models
# The number of scenes that an accelerator renders at once; one scene alone would leave most of it idle.
_AT_ONCE = 64


class Rendered(NamedTuple):
    """Images of scenes with their depth; `*batch` is empty for a single image.

    The middle of pixel [row, column] is at (column + 0.5, row + 0.5), and what it shows is at
    depth * ((column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy, 1) from the camera: right, down, ahead, in metres.
    """

    image: UInt8[Array, "*batch height width 3"]
    depth: Float32[Array, "*batch height width"]  # metres along the optical axis; 0 where it is not valid
    valid: Bool[Array, "*batch height width"]  # False for the sky and for what is beyond MAX_DEPTH
    intrinsics: Float32[Array, "*batch 3 3"]  # [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], in pixels


def render_scene(scene: Scene, size: tuple[int, int] = (168, 168), samples: int = 2) -> Rendered:
    """Render one scene.

    Args:
        scene: the scene, from `sample_scene` or made by hand.
        size: Height and width in pixels; static under `jit`.
        samples: the colour of a pixel is the mean of `samples` x `samples` rays; static under `jit`. Its depth is that
            of the ray through its middle.
    """
    depth, valid = _depth(scene, size)
    fx, fy, cx, cy = intrinsics(scene.camera, size)
    steps = (np.arange(samples, dtype=np.float32) + 0.5) / samples
    offsets = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)

    def colours(total: Array, offset: Array) -> tuple[Array, None]:
        # All samples at once would not fit in the cache.
        rays = camera_rays(scene.camera, size, (offset[0], offset[1]))
        return total + _white_limited(radiance(scene, rays, 1 / fx)), None

    total, _ = jax.lax.scan(colours, jnp.zeros((3, *size), jnp.float32), jnp.asarray(offsets))
    image = _develop(total / len(offsets), scene.camera)
    zero, one = jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32)
    matrix = jnp.stack([fx, zero, cx, zero, fy, cy, zero, zero, one]).reshape(3, 3)
    return Rendered(image, depth, valid, matrix)


def render_scene_batch(key: Array, indices: Array, size: tuple[int, int] = (168, 168), samples: int = 2) -> Rendered:
    """Draw and render scenes. Each depends on the key and its own index alone, not on the batch.

    Args:
        key: a key from `jax.random.key`.
        indices: int [batch].
        size: Height and width in pixels; static under `jit`.
        samples: see `render_scene`.
    """
    return jax.lax.map(lambda index: _scene(key, index, size, samples), indices)


def render_scenes(seed: int, numbers: Sequence[int], size: tuple[int, int] = (168, 168), samples: int = 2) -> Rendered:
    """Render scenes to numpy arrays, on all cores of a CPU, or many at once on an accelerator.

    Each scene depends on seed and number alone: on one kind of device it is bit-equal, whatever the other numbers are.

    Args:
        seed: the seed of all scenes.
        numbers: the numbers of the scenes, such as `range(100)`.
        size: Height and width in pixels.
        samples: see `render_scene`.

    Raises:
        ConfigError: there are no numbers, or one is out of range.
    """
    if not numbers or not all(0 <= number < 2**31 for number in numbers):
        raise ConfigError(f"scenes have numbers from 0 to 2**31 - 1, and one at least is needed: got {numbers}")
    key = jax.random.key(seed)

    if current_target().platform != "cpu":
        return _many(key, np.asarray(numbers, np.int32), size, samples)

    def one(number: int) -> Rendered:
        return jax.device_get(_scene(key, np.int32(number), size, samples))

    first = one(numbers[0])  # this one compiles; otherwise each thread would
    # XLA runs the loops of a scene on one core.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rendered = [first, *pool.map(one, numbers[1:])]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *rendered)


def _many(key: Array, numbers: np.ndarray, size: tuple[int, int], samples: int) -> Rendered:
    """Render on an accelerator, always the same number at once: another program would round differently."""
    rest = -len(numbers) % _AT_ONCE
    parts = np.split(np.pad(numbers, (0, rest), mode="edge"), (len(numbers) + rest) // _AT_ONCE)
    rendered = [jax.device_get(_scenes_at_once(key, part, size, samples)) for part in parts]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(numbers)], *rendered)


@partial(jax.jit, static_argnames=("size", "samples"))
def _scenes_at_once(key: Array, indices: Array, size: tuple[int, int], samples: int) -> Rendered:
    return jax.vmap(lambda index: render_scene(sample_scene(jax.random.fold_in(key, index)), size, samples))(indices)


@partial(jax.jit, static_argnames=("size", "samples"))
def _scene(key: Array, index: Array, size: tuple[int, int], samples: int) -> Rendered:
    return render_scene(sample_scene(jax.random.fold_in(key, index)), size, samples)


def _depth(scene: Scene, size: tuple[int, int]) -> tuple[Array, Array]:
    x, y, z = scene.camera.position
    hit = cast(scene, (x, y, z), camera_rays(scene.camera, size, (0.5, 0.5)))
    valid = ~hit.sky & (hit.t <= MAX_DEPTH)
    return jnp.where(valid, hit.t, 0.0), valid


def _white_limited(linear: Array) -> Array:
    # One sample that looks into the sun must not outshine the other samples of its pixel.
    return jnp.minimum(linear, 4.0)


def _develop(linear: Array, camera: Camera) -> Array:
    """Return linear RGB [3, height, width] as uint8 [height, width, 3], as a camera with automatic exposure does."""
    grey = jnp.maximum(linear.mean(0), 1e-3)
    linear = linear * (0.26 * camera.exposure / jnp.exp(jnp.log(grey).mean()))
    coded = jnp.clip(1 - jnp.exp(-1.2 * linear), 0, 1) ** (1 / 2.2)
    coded += camera.contrast * (coded * coded * (3 - 2 * coded) - coded)
    # The range is exceeded a little, so that black and white occur.
    return jnp.moveaxis(jnp.clip(jnp.round(275 * coded - 12), 0, 255), 0, -1).astype(jnp.uint8)
