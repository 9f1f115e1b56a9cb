"""A pipeline with the interface of Transformers' `pipeline("depth-estimation")`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from dajax.depth_maps.panels import to_gray8
from dajax.errors import ConfigError, ImageError
from dajax.images.image_sources import read_source
from dajax.images.pixels import ValueRange
from dajax.images.read import DecodedImage
from dajax.inference.estimator import DepthEstimator
from dajax.model.depth_anything import DepthAnything

# Arguments of Transformers' `pipeline`, and what to use instead of them.
_ELSEWHERE = {
    "device": 'sharding=… with one of jax.devices(), or mesh="local" for all',
    "device_map": 'mesh="local", or sharding=…',
    "torch_dtype": "dtype=…",
    "image_processor": "processor=…, a dajax.DepthImageProcessor",
    "feature_extractor": "processor=…, a dajax.DepthImageProcessor",
    "num_workers": "nothing: this process reads the images",
    "trust_remote_code": "nothing: dajax never loads code from a checkpoint",
    "model_kwargs": "each of its arguments by name",
    "framework": "nothing: it is always jax",
}


class DepthEstimationPipeline:
    """Estimates depth with the arguments and results of Transformers' depth-estimation pipeline.

    Args:
        model: Anything that `dajax.load` takes, a pair (model, params), or a `DepthEstimator`.
        timeout: the default of `__call__`.
        layout: the default of `__call__`.
        value_range: the default of `__call__`.
        allow_urls: the default of `__call__`.
        allow_truncated: the default of `__call__`.
        options: options of `DepthEstimator`: `dtype`, `style`, `input_size`, `buckets`, `batch_size` and so on.

    Attributes:
        estimator: the estimator that runs the model.

    Raises:
        ConfigError: an option cannot be used, or only Transformers has it.
        WeightsError, HubError: see `dajax.load`.
    """

    task = "depth-estimation"

    def __init__(
        self,
        model: str | os.PathLike[str] | tuple[DepthAnything, Mapping[str, Any]] | DepthEstimator = "small",
        *,
        timeout: float | None = None,
        layout: str | None = None,
        value_range: ValueRange | None = None,
        allow_urls: bool = False,
        allow_truncated: bool = False,
        **options: Any,
    ) -> None:
        for name in options:
            if name in _ELSEWHERE:
                raise ConfigError(f"{name} is an argument of Transformers' pipeline; use instead: {_ELSEWHERE[name]}")
        self._reading = {
            "timeout": timeout,
            "layout": layout,
            "value_range": value_range,
            "allow_urls": allow_urls,
            "allow_truncated": allow_truncated,
        }
        if isinstance(model, DepthEstimator):
            if options:
                raise ConfigError(
                    f"both an estimator and {', '.join(sorted(options))} were given: set options of the estimator when "
                    "you make it"
                )
            self.estimator = model
        else:
            self.estimator = DepthEstimator(model, **options)

    def __call__(
        self,
        inputs: Any = None,
        *,
        images: Any = None,
        batch_size: int | None = None,
        buckets: int | None = None,
        policy: str | None = None,
        timeout: float | None = None,
        layout: str | None = None,
        value_range: ValueRange | None = None,
        allow_urls: bool | None = None,
        allow_truncated: bool | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Any:
        """Estimate the depth of one image or of many.

        Args:
            inputs: one image or many. An image is a path, an http(s) URL, base64 text (also as a data: URL), encoded
                bytes, an open file, a PIL image, or an array. Many images are a list or tuple, a data set (an object
                with `__len__` and `__getitem__`), or an iterable, which may be endless.
            images: Another name of `inputs`.
            batch_size: how many images of one size run together. None is the estimator's batch size.
            buckets: the largest number of sizes to process images at; see `DepthEstimator`. None is the estimator's.
            policy: how images become the size of their bucket. None is the estimator's.
            timeout: the limit of each download in seconds. None is 30.
            layout: the axes of arrays: "HW", "HWC" or "CHW". None accepts HW and HWC.
            value_range: (black, white), the values that become 0 and 255, for arrays and for files of more than 8 bits;
                or "auto", the smallest and the largest value. None is 0 and 1 for floating point, and the whole range
                of uint8 and uint16.
            allow_urls: whether to download URLs among many images. One image may always be a URL.
            allow_truncated: whether to take what there is of a file that breaks off, with a warning.
            parameters: a dict with `timeout`, `layout`, `value_range`, `allow_urls` or `allow_truncated`. It takes
                precedence over the arguments of these names.

        Returns:
            A dict for one image, a list of dicts for a list or tuple, otherwise an iterator of dicts. "predicted_depth"
            is the depth map, float32 [height, width] in the image's size: affine-invariant inverse depth, bigger is
            nearer, or metres. "depth" is the same as an 8-bit PIL image, in which the smallest depth is 0 and the
            largest 255.

        Raises:
            ImageError: an image cannot be read or downloaded.
            ConfigError: an argument cannot be used.
        """
        if (inputs is None) == (images is None):
            found = "neither" if inputs is None else "both"
            raise ImageError(f"expected the image, or several, as inputs=… or as images=…, got {found}")
        inputs = images if inputs is None else inputs
        given = {
            "timeout": timeout,
            "layout": layout,
            "value_range": value_range,
            "allow_urls": allow_urls,
            "allow_truncated": allow_truncated,
        }
        reading = _merged(self._reading, given, parameters or {})
        many = _many(inputs)
        running = {"batch_size": batch_size, "buckets": buckets, "policy": policy}
        if many is None:
            return next(self._stream([inputs], running, reading | {"allow_urls": True}, name=""))
        results = self._stream(many, running, reading, name="inputs")
        return list(results) if isinstance(inputs, list | tuple) else results

    def _stream(
        self, inputs: Iterable[Any], running: dict[str, Any], reading: dict[str, Any], name: str
    ) -> Iterator[dict[str, Any]]:
        for depth in self.estimator.stream(_read(inputs, reading, name), **running):
            yield _result(depth)


def _merged(*options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the last value of each option that is not None."""
    names = options[0]
    merged = {name: value for option in options for name, value in option.items() if value is not None}
    if unknown := sorted(merged.keys() - names.keys()):
        raise ConfigError(f"parameters may have {', '.join(sorted(names))}, got {', '.join(map(repr, unknown))}")
    return merged


def _many(inputs: Any) -> Iterable[Any] | None:
    """Return the images of a list, data set or iterable; None for anything else, which is taken as one image."""
    if isinstance(inputs, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Mapping):
        return None
    if hasattr(inputs, "__array__") or hasattr(inputs, "read"):  # an open file is an iterable of lines
        return None
    if isinstance(inputs, list | tuple | Iterator):
        return inputs
    if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
        # Data sets of torch may not raise the IndexError that would end iter(inputs).
        return (inputs[index] for index in range(len(inputs)))
    return inputs if isinstance(inputs, Iterable) else None


def _read(inputs: Iterable[Any], reading: dict[str, Any], name: str) -> Iterator[DecodedImage]:
    for index, source in enumerate(inputs):
        try:
            pixels = read_source(source, **reading)
        except ImageError as error:
            if not name:
                raise
            raise ImageError(f"{name}[{index}]: {error}") from error
        yield DecodedImage(pixels)


def _result(depth: np.ndarray) -> dict[str, Any]:
    return {"predicted_depth": depth, "depth": to_gray8(depth)}


def pipeline(task: str = "depth-estimation", model: Any = "small", **options: Any) -> DepthEstimationPipeline:
    """Return a pipeline, as the function of this name in Transformers does.

    Args:
        task: "depth-estimation", the only task of dajax.
        model: Anything that `dajax.load` takes, a pair (model, params), or a `DepthEstimator`.
        options: options of `DepthEstimationPipeline` and of `DepthEstimator`.

    Raises:
        ConfigError: the task is another one, or an option cannot be used.
        WeightsError, HubError: see `dajax.load`.
    """
    if task != DepthEstimationPipeline.task:
        raise ConfigError(f"task must be {DepthEstimationPipeline.task!r}, the only task of dajax, got {task!r}")
    return DepthEstimationPipeline(model, **options)
