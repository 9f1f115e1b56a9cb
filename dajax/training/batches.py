"""Batches of synthetic scenes. Each is a function of its number alone."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dajax.preprocessing.processor import IMAGENET_MEAN, IMAGENET_STD
from dajax.training.data.degrade import degrade_image
from dajax.training.data.synthetic import Rendered, render_scenes
from dajax.training.train_settings import DataSettings

# The seed of the validation scenes, whatever the seed of the training scenes.
HELD_OUT_SEED = 2**31 - 1


class SceneBatches:
    """Makes the batch of a step from the step's number, counted from 0.

    With `settings.count`, each epoch shows all scenes, and shuffles, mirrors and degrades them anew. They are rendered
    in the first epoch and stay in memory (7 kB for 1000 pixels). With a count of 0, every scene is new.

    Args:
        settings: which scenes, and how many at a time.
        is_metric: True: labels are metres, and pixels without depth are masked. False: labels are inverse depth in
            1/metres, and 0 for the sky.
        rows: the indices of the images of each batch that this process makes; None: all of them.
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
        # The keys are drawn for the whole batch, so that an image does not depend on the process that makes it.
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
        """Return images, uint8 [n, height, width, 3], and depths, float32 [n, height, width]."""
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
    """Return the scenes for validation. No training sees them."""
    return render_scenes(HELD_OUT_SEED, range(settings.validation), (settings.size, settings.size))


@partial(jax.jit, static_argnames=("degraded", "is_metric"))
def _batch(
    images: jax.Array, depths: jax.Array, mirrored: jax.Array, keys: jax.Array, *, degraded: bool, is_metric: bool
) -> dict[str, jax.Array]:
    """Do everything to a batch in one program, so that images go to the device as bytes and become floats there."""
    images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    depths = jnp.where(mirrored[:, None, None], depths[:, :, ::-1], depths)
    if degraded:
        images = jax.vmap(degrade_image)(keys, images)
    return {"pixel_values": normalise(images), **labels(depths, is_metric=is_metric)}


def labels(depth: jax.Array | np.ndarray, *, is_metric: bool) -> dict[str, jax.Array]:
    """Return labels and mask.

    Args:
        depth: float32 [batch, height, width] in metres, 0 where there is no depth.
        is_metric: see `SceneBatches`.
    """
    depth = jnp.asarray(depth)
    valid = depth > 0
    if is_metric:
        return {"labels": depth, "mask": valid}
    # Pixels without depth show the sky, or what is farther than the scenes reach: they count as infinitely far.
    return {"labels": jnp.where(valid, 1 / jnp.where(valid, depth, 1), 0), "mask": jnp.ones_like(valid)}


def normalise(images: jax.Array | np.ndarray) -> jax.Array:
    """Return uint8 images [batch, height, width, 3] as the network's input, float32."""
    mean, std = (jnp.asarray(values, jnp.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / std
