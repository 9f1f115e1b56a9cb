"""The released weights, from the real Hub, against maps that others have published, where there are any.

Never run where the project was made, which had no connection. For whoever has one:

    python -m pytest -m network tests/network

downloads about 15 GB (4 without Large: add `-k "not large"`).
"""

import warnings

import jax
import numpy as np
import pytest

import dajax
from dajax.checkpoints import ALIASES, ORIGINALS
from dajax.errors import LicenceWarning
from dajax.images.fetch import fetch
from dajax.images.read import read_image

pytestmark = [pytest.mark.network, pytest.mark.filterwarnings("ignore::dajax.errors.LicenceWarning")]

# Two cats on a sofa: what the tests of Transformers use.
IMAGE = "http://images.cocodataset.org/val2017/000000039769.jpg"

# Style -> first three values of the first row of `predicted_depth` at 518x686. Sources: Transformers' tests
# (tests/models/depth_anything) for V1-Small and Metric-Indoor-Small; its conversion scripts for the others. Those of V2
# were taken while Transformers resampled position embeddings as the authors do.
PUBLISHED = {
    "v1-small": ("huggingface", (8.8223, 8.6483, 8.6216)),
    "small-metric-indoor": ("huggingface", (1.3349, 1.2947, 1.2802)),
    "small": ("official", (2.6751, 2.6211, 2.6571)),
    "base": ("official", (4.3576, 4.3723, 4.3908)),
    "large": ("official", (162.2751, 161.8504, 162.8788)),
}


@pytest.fixture(scope="module")
def make_image():
    return read_image(fetch(IMAGE))


def depth_of(name, image, style="huggingface"):
    """The map before it is brought back to the image's size; pixels are Transformers' in any style."""
    model, params = dajax.load(name, style=style)
    pixels = dajax.DepthImageProcessor()(image)["pixel_values"]
    assert pixels.shape == (1, 518, 686, 3)
    depth = jax.jit(lambda x: model.apply({"params": params}, x).predicted_depth)(pixels)
    return np.asarray(depth)[0]


@pytest.mark.parametrize("alias", PUBLISHED)
def test_published_values(alias, image):
    style, expected = PUBLISHED[alias]
    found = depth_of(alias, image, style)[0, :3]
    print(f"{alias}: {found} against {expected}")
    # Published with four decimals, from other machines' float32.
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=3e-4)


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_gives_a_map(alias, image):
    depth = depth_of(alias, image)
    assert np.isfinite(depth).all()
    assert depth.std() > 0.05 * abs(depth.mean())
    config = dajax.DepthAnythingConfig.from_pretrained(alias)
    assert dajax.load(alias, local_files_only=True)[0].config == config
    if config.is_metric:
        assert 0 < depth.min() < depth.max() < config.max_depth


@pytest.mark.parametrize("repository", ORIGINALS)
def test_authors_files_hold_the_same_weights(repository):
    """Their .pth and the Hub's conversion of it: the same model, bit for bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LicenceWarning)
        theirs, ours = dajax.load(repository), dajax.load(ORIGINALS[repository].alias)
    assert theirs[0].config == ours[0].config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), theirs[1], ours[1]))
