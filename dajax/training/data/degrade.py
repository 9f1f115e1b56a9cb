"""Does to images what cameras and files do: colour cast, blur, noise, compression."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

_BLOCK = 8  # pixels, as in JPEG


def _cosines() -> np.ndarray:
    k, n = np.mgrid[:_BLOCK, :_BLOCK]
    rows = np.cos(np.pi * (n + 0.5) * k / _BLOCK) * np.sqrt(2 / _BLOCK)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def degrade_image(key: Array, image: UInt8[Array, "height width 3"]) -> UInt8[Array, "height width 3"]:
    """Return an image as a worse camera would have taken it. Nothing in it moves, so its depth stays right.

    Args:
        key: a key of `jax.random`; it decides how much of what is done.
        image: the image, RGB.
    """
    cast, blur, noise, sigma, amount, whether = jax.random.split(key, 6)
    values = image.astype(jnp.float32) / 255
    values = values ** jnp.exp(jax.random.uniform(cast, (3,), jnp.float32, minval=-0.15, maxval=0.15))
    values += jax.random.uniform(blur, (), jnp.float32) ** 2 * (_smooth(values) - values)
    deviation = 0.05 * jax.random.uniform(sigma, (), jnp.float32) ** 2
    values += deviation * jax.random.normal(noise, values.shape, jnp.float32)
    step = 0.12 * jax.random.uniform(amount, (), jnp.float32) ** 2
    compressed = jnp.where(jax.random.uniform(whether, (), jnp.float32) < 0.5, _compress(values, step + 1e-3), values)
    return jnp.clip(jnp.round(255 * compressed), 0, 255).astype(jnp.uint8)


def _smooth(values: Array) -> Array:
    for axis in (0, 1):
        padded = jnp.pad(values, [(1, 1) if i == axis else (0, 0) for i in range(3)], mode="edge")
        n = values.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in (0, 2))
        values = 0.25 * before + 0.5 * values + 0.25 * after
    return values


def _compress(values: Array, step: Array) -> Array:
    """Round the cosine coefficients of each block, those of fine detail more coarsely, as JPEG does in RGB."""
    height, width, _ = values.shape
    padded = jnp.pad(values, [(0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0)], mode="edge")
    blocks = padded.reshape(padded.shape[0] // _BLOCK, _BLOCK, -1, _BLOCK, 3)
    cosines, highest = _cosines(), jax.lax.Precision.HIGHEST
    waves = jnp.einsum("ki,aibjc,lj->akblc", cosines, blocks, cosines, precision=highest)
    fineness = 1 + np.add.outer(np.arange(_BLOCK), np.arange(_BLOCK)).astype(np.float32) / 2
    steps = step * fineness[None, :, None, :, None]
    waves = jnp.round(waves / steps) * steps
    blocks = jnp.einsum("ki,akblc,lj->aibjc", cosines, waves, cosines, precision=highest)
    return blocks.reshape(padded.shape)[:height, :width]
