"""Scenes of a few coloured squares, for tests of training to which it does not matter what images show.

The program that renders real scenes takes longer to compile than all others of a training together.
"""

import numpy as np

from dajax.training.data.synthetic import Rendered

CELLS = 3


def plain_scenes(seed, numbers, size, samples=2):
    """Stand in for `dajax.training.render_scenes`: each scene depends on seed and number alone."""
    scenes = [_scene(seed, number, size) for number in numbers]
    return Rendered(*(np.stack(arrays) for arrays in zip(*scenes, strict=True)))


def _scene(seed, number, size):
    rng = np.random.default_rng([seed, number])
    rows, columns = (np.arange(side) * CELLS // side for side in size)
    image = rng.integers(0, 256, (CELLS, CELLS, 3), np.uint8)[rows][:, columns]
    depth = rng.uniform(-1, 10, (CELLS, CELLS)).astype(np.float32)[rows][:, columns]
    # Without a slope all pixels of a square would have the same depth.
    depth = np.where(depth > 0, depth * np.linspace(1, 1.3, size[1], dtype=np.float32), 0).astype(np.float32)
    return image, depth, depth > 0, np.eye(3, dtype=np.float32)
