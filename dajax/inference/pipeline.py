"""The interface of Transformers' `pipeline("depth-estimation")`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from dajax.depth_maps.write import to_gray8
from dajax.errors import ConfigError, ImageError
from dajax.images.image_sources import read_source
from dajax.images.pixels import ValueRange
from dajax.images.read import DecodedImage
from dajax.inference.estimator import DepthEstimator
from dajax.model.depth_anything import DepthAnything

# Arguments of Transformers' `pipeline`, and what does their work here.
_ELSEWHERE = {
    "device": 'sharding=… with one of jax.devices(), or mesh="local" for all',
    "device_map": 'mesh="local", or sharding=…',
    "torch_dtype": "dtype=…",
    "image_processor": "processor=…, a dajax.DepthImageProcessor",
    "feature_extractor": "processor=…, a dajax.DepthImageProcessor",
    "num_workers": "nothing: images are read in this process",
    "trust_remote_code": "nothing: no code is ever loaded from a checkpoint",
    "model_kwargs": "the arguments themselves",
    "framework": "nothing: it is always jax",
}


class DepthEstimationPipeline:
    """Images in, what Transformers' depth-estimation pipeline returns out.

    Args:
        model: whatever `dajax.load` takes, a pair (model, params), or a `DepthEstimator`.
        timeout, layout, value_range, allow_urls: defaults for calls, see `__call__`.
        options: of `DepthEstimator` (`dtype`, `style`, `input_size`, `batch_size`, …).

    Attributes:
        estimator: what runs the model.

    Raises:
        ConfigError: options that do not fit, or that only Transformers has.
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
        **options: Any,
    ) -> None:
        for name in options:
            if name in _ELSEWHERE:
                raise ConfigError(f"{name} is an argument of Transformers' pipeline; instead of it, {_ELSEWHERE[name]}")
        self._reading = {"timeout": timeout, "layout": layout, "value_range": value_range, "allow_urls": allow_urls}
        if isinstance(model, DepthEstimator):
            if options:
                raise ConfigError(f"{sorted(options)} belong to the estimator that was given: set them there")
            self.estimator = model
        else:
            self.estimator = DepthEstimator(model, **options)

    def __call__(
        self,
        inputs: Any = None,
        *,
        images: Any = None,
        batch_size: int | None = None,
        timeout: float | None = None,
        layout: str | None = None,
        value_range: ValueRange | None = None,
        allow_urls: bool | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Any:
        """Estimate the depth of one image or of many.

        Args:
            inputs: an image, or many. An image is a path, an http(s) URL, base64 text (also as a data: URL), encoded
                bytes, an open file, a PIL image, or an array. Many are a list or tuple, a data set (anything with
                `__len__` and `__getitem__`), or an iterable, which may be endless.
            images: another name of `inputs`.
            batch_size: how many images of one size are run together.
            timeout: seconds for each download of a URL; None: 30.
            layout: axes of arrays: "HW", "HWC" or "CHW"; None accepts HW and HWC.
            value_range: (black, white): the values of arrays and of greyscale files of 16 bits or more that become 0
                and 255. None: 0 and 1 for floating point, the whole range of uint8 and uint16.
            allow_urls: also download URLs that stand among many images.
            parameters: `timeout`, `layout`, `value_range` or `allow_urls` as a dict; what it has comes first.

        Returns:
            For one image a dict, for a list or tuple a list of dicts, else an iterator of dicts:
            "predicted_depth", float32 [height, width] in the image's size (affine-invariant inverse depth, bigger is
            nearer, or metres), and "depth", the same as an 8-bit image from its minimum (0) to its maximum (255).

        Raises:
            ImageError: an image cannot be read or downloaded.
            ConfigError: an argument does not fit.
        """
        if (inputs is None) == (images is None):
            raise ImageError("expected an image or several as inputs=…, or as images=…, one of them")
        inputs = images if inputs is None else inputs
        given = {"timeout": timeout, "layout": layout, "value_range": value_range, "allow_urls": allow_urls}
        reading = _merged(self._reading, given, parameters or {})
        many = _many(inputs)
        if many is None:
            return next(self._stream([inputs], batch_size, reading | {"allow_urls": True}, name=""))
        results = self._stream(many, batch_size, reading, name="inputs")
        return list(results) if isinstance(inputs, list | tuple) else results

    def _stream(
        self, inputs: Iterable[Any], batch_size: int | None, reading: dict[str, Any], name: str
    ) -> Iterator[dict[str, Any]]:
        for depth in self.estimator.stream(_read(inputs, reading, name), batch_size=batch_size):
            yield _result(depth)


def _merged(*options: Mapping[str, Any]) -> dict[str, Any]:
    """Fill what the later options leave out (None) from the earlier ones."""
    names = options[0]
    merged = {name: value for option in options for name, value in option.items() if value is not None}
    if unknown := sorted(merged.keys() - names.keys()):
        raise ConfigError(f"parameters has {unknown}, expected some of {sorted(names)}")
    return merged


def _many(inputs: Any) -> Iterable[Any] | None:
    """Return the images that stand in a list, data set or iterable; None for what is one image (or none at all)."""
    if isinstance(inputs, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Mapping):
        return None
    if hasattr(inputs, "__array__") or hasattr(inputs, "read"):  # an open file is an iterable of lines
        return None
    if isinstance(inputs, list | tuple | Iterator):
        return inputs
    if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
        # Not iter(): torch's data sets need not raise the IndexError that would end it.
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
    """Return a pipeline, as Transformers' function of that name does.

    Args:
        task: "depth-estimation", the only one.
        model: whatever `dajax.load` takes, a pair (model, params), or a `DepthEstimator`.
        options: of `DepthEstimationPipeline` and of `DepthEstimator`.

    Raises:
        ConfigError: another task, or options that do not fit.
        WeightsError, HubError: see `dajax.load`.
    """
    if task != DepthEstimationPipeline.task:
        raise ConfigError(f"task must be {DepthEstimationPipeline.task!r}, the only one dajax has, got {task!r}")
    return DepthEstimationPipeline(model, **options)
