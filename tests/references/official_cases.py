"""What the stored references of style "official" are references of."""

import numpy as np
from seeded import make_image

# A metric model: its sigmoid leaves a number everywhere, where a relative one's ReLU makes most of such a map zero.
NAME = "tiny-metric"
# Images (height, width). The first two become smaller with Transformers' size rule.
SIZES = [(300, 400), (360, 640), (375, 1242), (720, 1280)]
# Prime to patches of 14: the pixels that are stored fall on every place within a patch.
STEP = 13


def stark(height, width):
    """An image with edges between black and white: there a cubic filter leaves [0, 1], and nothing cuts that off."""
    return np.clip(2 * make_image(height, width).astype(int) - 128, 0, 255).astype(np.uint8)


def thinned(depth):
    """Cut a map to what is stored."""
    return depth[::STEP, ::STEP]
