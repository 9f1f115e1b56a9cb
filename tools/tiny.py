"""Makes the figures in the model card of `tiny`, the table and the image: python tools/tiny.py [path of the image].

`python tools/tiny.py --mean` makes tools/tiny_mean.png, the mean inverse depth of 1,024 training scenes, which the card
and the tests compare with. The command needs scikit-image, for a real image whose depth is known.
"""

import re
import sys
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

import dajax
from dajax.depth_maps.colormap import colorize
from dajax.evaluation.metrics import align_inverse_depth, average_metrics, depth_metrics, ordinal_accuracy
from dajax.training.batches import HELD_OUT_SEED
from dajax.training.data.synthetic import MAX_DEPTH, render_scenes

ROOT = Path(__file__).parents[1]
CARD = ROOT / "dajax" / "assets" / "tiny" / "README.md"
SIZE = (168, 168)
# Training validates on the first held-out scenes; nothing has seen these ones.
FIRST, COUNT = 1000, 500
AVERAGED = 1024
MEAN = Path(__file__).with_name("tiny_mean.png")
SHOWN = 6
SCENES_HEAD = "| 500 held-out scenes | AbsRel | delta1 | ordinal accuracy |\n|---|---|---|---|\n"
IMAGE_HEAD = "| Motorcycle | AbsRel | delta1 | ordinal accuracy |\n|---|---|---|---|\n"


def unseen_scenes(count=COUNT):
    """Render scenes that were used neither for training nor for validation nor for any choice."""
    return render_scenes(HELD_OUT_SEED, range(FIRST, FIRST + count), SIZE)


def motorcycle():
    """Return an image [height, width, 3] and its depth in metres [height, width], 0 where the depth is not known.

    Depth comes from disparity and the calibration in scikit-image's docstring: the focal length is 994.978 px, the
    cameras are 193.001 mm apart, and their principal points 31.086 px.
    """
    image, _, disparity = skimage.data.stereo_motorcycle()
    known = np.isfinite(disparity)
    return image, np.where(known, 994.978 * 0.193001 / (np.where(known, disparity, 0) + 31.086), 0)


def scores(predictions, depths):
    """Return the means over images of AbsRel, delta1 and ordinal accuracy.

    Each prediction is inverse depth and is aligned to its own truth.
    """
    found, order = [], []
    for i, (inverse, depth) in enumerate(zip(predictions, depths, strict=True)):
        metres = align_inverse_depth(inverse, depth, depth > 0, max_depth=MAX_DEPTH)
        found.append(depth_metrics(np.clip(metres, 1e-3, MAX_DEPTH), depth, depth > 0))
        order.append(ordinal_accuracy(inverse, depth, depth > 0, seed=i).accuracy)
    mean = average_metrics(found).mean
    return mean.abs_rel, mean.delta1, float(np.mean(order))


def best_constant(depths):
    """Return the means of AbsRel and delta1 if each image gets the constant with the least AbsRel for it."""
    found = []
    for depth in depths:
        values = np.sort(depth[depth > 0].astype(np.float64))
        # sum |c - t| / t is least at the median of the t weighted by 1 / t
        weights = np.cumsum(1 / values)
        constant = values[np.searchsorted(weights, weights[-1] / 2)]
        found.append(depth_metrics(np.full(depth.shape, constant), depth, depth > 0))
    mean = average_metrics(found).mean
    return mean.abs_rel, mean.delta1, None


def computed_mean():
    """Return the mean inverse depth of each pixel over 1,024 training scenes; it takes minutes to render them."""
    depth = render_scenes(0, range(AVERAGED), SIZE).depth
    return np.where(depth > 0, 1 / np.where(depth > 0, depth, 1), 0).mean(0)


def stored_mean():
    """Return what `computed_mean` returned when MEAN was made, in steps of 1/65535."""
    with Image.open(MEAN) as image:
        return np.asarray(image, np.float64) / 65535


def ramp(shape):
    """Return inverse depth that grows from the top to the bottom."""
    return np.broadcast_to(np.arange(shape[0], dtype=np.float64)[:, None], shape)


def mirrored_scores(estimator, image, depth):
    """Return the scores for the mirrored image: they show how far the figures of a single image are chance."""
    return scores([estimator(np.ascontiguousarray(image[:, ::-1]))], [depth[:, ::-1]])


def row(name, found):
    return f"| {name} | " + " | ".join("" if value is None else f"{value:.3f}" for value in found) + " |\n"


def beside(image, depth, inverse):
    truth = np.where(depth > 0, 1 / np.where(depth > 0, depth, 1), np.nan)
    return [image, colorize(truth, "Spectral_r"), colorize(inverse, "Spectral_r")]


def main(path):
    estimator = dajax.DepthEstimator("tiny")
    taken = unseen_scenes()
    predictions = np.stack(estimator(list(taken.image), batch_size=20))
    rows = {
        "`tiny`": scores(predictions, taken.depth),
        "the best constant of each image": best_constant(taken.depth),
        "mean inverse depth of each pixel": scores(np.broadcast_to(stored_mean(), predictions.shape), taken.depth),
    }
    image, depth = motorcycle()
    found = estimator(image)
    image_rows = {
        "`tiny`": scores([found], [depth]),
        "`tiny`, image mirrored": mirrored_scores(estimator, image, depth),
        "the best constant": best_constant([depth]),
        "vertical ramp": scores([ramp(depth.shape)], [depth]),
    }
    page = CARD.read_text()
    for head, table in ((SCENES_HEAD, rows), (IMAGE_HEAD, image_rows)):
        text = head + "".join(row(*entry) for entry in table.items())
        assert head in page, head
        page = re.sub(re.escape(head) + r"(\|.*\n)*", lambda _, text=text: text, page)
        print(text)
    CARD.write_text(page)

    columns = [np.concatenate(beside(*one)) for one in zip(taken.image, taken.depth, predictions, strict=True)][:SHOWN]
    upper = np.concatenate(beside(image, depth, found), axis=1)
    lower = Image.fromarray(np.concatenate(columns, axis=1))
    lower = lower.resize((upper.shape[1], round(lower.height * upper.shape[1] / lower.width)), Image.Resampling.LANCZOS)
    whole = Image.fromarray(np.concatenate([upper, np.asarray(lower)]))
    whole.resize((1200, round(whole.height * 1200 / whole.width)), Image.Resampling.LANCZOS).save(path, quality=85)


if __name__ == "__main__":
    if sys.argv[1:] == ["--mean"]:
        mean = computed_mean()
        assert mean.max() < 1
        Image.fromarray(np.rint(65535 * mean).astype(np.uint16)).save(MEAN, optimize=True)
        sys.exit()
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "tiny.jpg")
