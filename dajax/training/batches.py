"""Batches of synthetic scenes: each a function of its number alone."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dajax.preprocessing.processor import IMAGENET_MEAN, IMAGENET_STD
from dajax.training.data.degrade import degrade_image
from dajax.training.data.synthetic import Rendered, render_scenes
from dajax.training.train_settings import DataSettings

# Scenes that are validated on, whatever the seed of those that are trained on.
HELD_OUT_SEED = 2**31 - 1


class SceneBatches:
    """From the number of a step to its batch.

    With `count` scenes, each epoch shows all of them, shuffled, mirrored and degraded anew; they are rendered in the
    first epoch and stay in memory (7 kB for 1000 pixels). Without, every scene is new.

    Args:
        settings: which scenes, and how many at a time.
        is_metric: labels are metres, where there is depth; otherwise inverse depth, and 0 for the sky.
        rows: which images of each batch to make, where several processes share it; None: all.
    """

    def __init__(self, settings: DataSettings, *, is_metric: bool, rows: np.ndarray | None = None) -> None:
        self._settings = settings
        self._is_metric = is_metric
        self._rows = np.arange(settings.batch_size) if rows is None else rows
        self._rendered: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._order: tuple[int, np.ndarray] | None = None

    def __call__(self, number: int) -> dict[str, jax.Array]:
        """Return pixel_values [batch, height, width, 3], labels and mask [batch, height, width]."""
        settings = self._settings
        batch_size = settings.batch_size
        images, depths = self._scenes([self._number(number * batch_size + int(i)) for i in self._rows])
        rng = np.random.default_rng([settings.seed, number])
        mirrored = rng.random(batch_size) < 0.5 if settings.flip else np.zeros(batch_size, bool)
        # Drawn for the whole batch: an image is the same, whichever process makes it.
        keys = jax.random.split(jax.random.key(int(rng.integers(2**31)) if settings.degrade else 0), batch_size)
        return _batch(
            images,
            depths,
            mirrored[self._rows],
            keys[self._rows],
            degraded=settings.degrade,
            is_metric=self._is_metric,
        )

    def _number(self, position: int) -> int:
        count = self._settings.count
        if not count:
            return position
        epoch, place = divmod(position, count)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([self._settings.seed, 1, epoch]).permutation(count)
            self._order = (epoch, order)
        return int(self._order[1][place])

    def _scenes(self, numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return images and depths."""
        if not self._settings.count:
            taken = self._render(numbers)
            return np.asarray(taken.image), np.asarray(taken.depth)
        new = [number for number in dict.fromkeys(numbers) if number not in self._rendered]
        if new:
            taken = self._render(new)
            pairs = zip(np.asarray(taken.image), np.asarray(taken.depth), strict=True)
            self._rendered |= dict(zip(new, pairs, strict=True))
        images, depths = zip(*(self._rendered[number] for number in numbers), strict=True)
        return np.stack(images), np.stack(depths)

    def _render(self, numbers: list[int]) -> Rendered:
        return render_scenes(self._settings.seed, numbers, (self._settings.size, self._settings.size))


def held_out_scenes(settings: DataSettings) -> Rendered:
    """Return the scenes to validate on."""
    return render_scenes(HELD_OUT_SEED, range(settings.validation), (settings.size, settings.size))


@partial(jax.jit, static_argnames=("degraded", "is_metric"))
def _batch(
    images: jax.Array, depths: jax.Array, mirrored: jax.Array, keys: jax.Array, *, degraded: bool, is_metric: bool
) -> dict[str, jax.Array]:
    """All that is done to each batch, in one program: bytes go to a device, and floats come into being there."""
    images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    depths = jnp.where(mirrored[:, None, None], depths[:, :, ::-1], depths)
    if degraded:
        images = jax.vmap(degrade_image)(keys, images)
    return {"pixel_values": normalise(images), **labels(depths, is_metric=is_metric)}


def labels(depth: jax.Array | np.ndarray, *, is_metric: bool) -> dict[str, jax.Array]:
    """Return labels and mask for depths in metres, 0 where there is none."""
    depth = jnp.asarray(depth)
    valid = depth > 0
    if is_metric:
        return {"labels": depth, "mask": valid}
    # What has no depth is the sky, or farther than the scenes reach: infinitely far.
    return {"labels": jnp.where(valid, 1 / jnp.where(valid, depth, 1), 0), "mask": jnp.ones_like(valid)}


def normalise(images: jax.Array | np.ndarray) -> jax.Array:
    """Return uint8 images [batch, height, width, 3] as the network takes them."""
    mean, std = (jnp.asarray(values, jnp.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / std
