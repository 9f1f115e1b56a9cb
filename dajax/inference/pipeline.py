"""The interface of Transformers' `pipeline("depth-estimation")`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from dajax.errors import ConfigError
from dajax.images.write import to_gray8
from dajax.model.depth_anything import DepthAnything

from .estimator import DepthEstimator


class DepthEstimationPipeline:
    """Pictures in, what Transformers' depth-estimation pipeline returns out.

    Args:
        model: whatever `dajax.load` takes, a pair (model, params), or a `DepthEstimator`.
        options: of `DepthEstimator` (`dtype`, `style`, `input_size`, `batch_size`, …).

    Attributes:
        estimator: what runs the model.
    """

    task = "depth-estimation"

    def __init__(
        self,
        model: str | os.PathLike[str] | tuple[DepthAnything, Mapping[str, Any]] | DepthEstimator = "small",
        **options: Any,
    ) -> None:
        if isinstance(model, DepthEstimator):
            if options:
                raise ConfigError(f"{sorted(options)} belong to the estimator that was given: set them there")
            self.estimator = model
        else:
            self.estimator = DepthEstimator(model, **options)

    def __call__(self, inputs: Any, *, batch_size: int | None = None) -> Any:
        """Estimate the depth of one picture or of many.

        Args:
            inputs: a picture (path, PIL image, or uint8 or float array [height, width, 3]), a list of them, or an
                iterator over them.
            batch_size: how many pictures of one size are run together.

        Returns:
            For one picture a dict, for a list a list of dicts, for an iterator an iterator of dicts:
            "predicted_depth", float32 [height, width] in the picture's size (affine-invariant inverse depth, bigger is
            nearer, or metres), and "depth", the same as an 8-bit picture from its minimum (0) to its maximum (255).

        Raises:
            ImageError: a picture cannot be read.
        """
        if isinstance(inputs, list | tuple):
            return list(self._stream(inputs, batch_size))
        if isinstance(inputs, Iterator) and not hasattr(inputs, "read"):  # an open file is one picture
            return self._stream(inputs, batch_size)
        return next(self._stream([inputs], batch_size))

    def _stream(self, inputs: Iterable[Any], batch_size: int | None) -> Iterator[dict[str, Any]]:
        for depth in self.estimator.stream(inputs, batch_size=batch_size):
            yield _result(depth)


def _result(depth: np.ndarray) -> dict[str, Any]:
    return {"predicted_depth": depth, "depth": to_gray8(depth)}


def pipeline(task: str = "depth-estimation", model: Any = "small", **options: Any) -> DepthEstimationPipeline:
    """Return a pipeline, as Transformers' function of that name does.

    Args:
        task: "depth-estimation", the only one.
        model: whatever `dajax.load` takes, a pair (model, params), or a `DepthEstimator`.
        options: of `DepthEstimator`.

    Raises:
        ConfigError: another task, or options that do not fit.
        WeightsError, HubError: see `dajax.load`.
    """
    if task != DepthEstimationPipeline.task:
        raise ConfigError(f"task must be {DepthEstimationPipeline.task!r}, the only one dajax has, got {task!r}")
    return DepthEstimationPipeline(model, **options)
