"""Validation on held-out scenes: scores, and images to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from dajax.depth_maps.colormap import colorize
from dajax.depth_maps.encode import encoded_image
from dajax.errors import ImageError, JobError
from dajax.evaluation.metrics import align_inverse_depth, average_metrics, depth_metrics, ordinal_accuracy
from dajax.files import write_atomically
from dajax.model.depth_anything import DepthAnything
from dajax.training.batches import held_out_scenes, normalise
from dajax.training.data.synthetic import MAX_DEPTH, Rendered
from dajax.training.placement import Placement
from dajax.training.train_settings import DataSettings

SHOWN = 8


class Scores(NamedTuple):
    """Means over images. The depth maps of relative models are first aligned by scale and shift in inverse depth.

    Attributes:
        abs_rel: the mean of |p - t| / t.
        delta1: the fraction of pixels within a factor of 1.25.
        ordinal: the fraction of pairs of pixels in the right order, among pairs whose depths differ by more than a
            factor of 1.1.
    """

    abs_rel: float
    delta1: float
    ordinal: float


class Validation:
    """Scores params on held-out scenes, which it renders once, and draws images/.

    With several processes, each one estimates its own images, and all of them get all scores; process 0 draws.

    Args:
        model: the model.
        settings: Says which scenes.
        output: the folder of the run.
        placement: where params and images lie.
    """

    def __init__(self, model: DepthAnything, settings: DataSettings, output: Path, placement: Placement) -> None:
        self._model = model
        self._settings = settings
        self._output = output
        self._placement = placement
        self._taken: Rendered | None = None
        self._predict = jax.jit(self._depth, out_shardings=placement.whole)

    def _depth(self, params: Any, pixels: jax.Array) -> jax.Array:
        output: Any = self._model.apply({"params": params}, pixels)
        depth: jax.Array = output.predicted_depth
        return depth

    def __call__(self, params: Any, step: int) -> dict[str, float]:
        """Return the fields of `Scores` for params after `step` steps, and draw images/`step`.png."""
        if self._taken is None:
            self._taken = held_out_scenes(self._settings)
        images, depths = np.asarray(self._taken.image), np.asarray(self._taken.depth)
        predictions = self._predictions(params, images)
        is_metric = self._model.config.is_metric
        found = scores(predictions, depths, is_metric=is_metric)
        if jax.process_index() > 0:
            return found._asdict()
        folder = self._output / "images"
        folder.mkdir(parents=True, exist_ok=True)
        shown = grid(images[:SHOWN], depths[:SHOWN], predictions[:SHOWN], is_metric=is_metric)
        try:
            write_atomically(folder / f"{step:08}.png", encoded_image(Image.fromarray(shown)), error=ImageError)
        except ImageError as error:
            raise JobError(f"step {step}: {error}; the saved states are whole") from error
        return found._asdict()

    def _predictions(self, params: Any, images: np.ndarray) -> np.ndarray:
        size = self._settings.batch_size
        found = []
        for i in range(0, len(images), size):
            part = images[i : i + size]
            padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
            pixels = self._placement.put_rows(normalise(padded[self._placement.rows]))
            found.append(np.asarray(self._predict(params, pixels))[: len(part)])
        return np.concatenate(found)


def scores(predictions: np.ndarray, depths: np.ndarray, *, is_metric: bool) -> Scores:
    """Return the scores of depth maps.

    Args:
        predictions: the outputs of a model, [n, height, width]: metres, or inverse depth of a relative model.
        depths: True depths [n, height, width] in metres, 0 where there is none.
        is_metric: whether the predictions are metres.
    """
    per_image, ordinal = [], []
    for i, (predicted, depth) in enumerate(zip(predictions, depths, strict=True)):
        valid = depth > 0
        if not valid.any():
            continue
        in_metres = predicted if is_metric else align_inverse_depth(predicted, depth, valid, max_depth=MAX_DEPTH)
        per_image.append(depth_metrics(np.clip(in_metres, 1e-3, MAX_DEPTH), depth, valid))
        nearer = "smaller" if is_metric else "bigger"
        ordinal.append(ordinal_accuracy(predicted, depth, valid, seed=i, nearer=nearer).accuracy)
    mean = average_metrics(per_image).mean
    return Scores(mean.abs_rel, mean.delta1, float(np.nanmean(ordinal)))


def grid(images: np.ndarray, depths: np.ndarray, predictions: np.ndarray, *, is_metric: bool) -> np.ndarray:
    """Return one image [height, width, 3] with a column for each scene: image, truth, prediction. Red is near."""
    columns = []
    for image, depth, predicted in zip(images, depths, predictions, strict=True):
        valid = depth > 0
        truth = np.where(valid, 1 / np.where(valid, depth, 1), np.nan)
        nearness = 1 / np.maximum(predicted, 1e-3) if is_metric else predicted
        columns.append(np.concatenate([image, colorize(truth, "Spectral_r"), colorize(nearness, "Spectral_r")]))
    return np.concatenate(columns, axis=1)
