"""Many images of many sizes to depth maps, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import path_aware_map
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dajax.errors import ConfigError
from dajax.images.read import read_image
from dajax.inference.parallel import data_parallel_size, distribute, place_params, replicated, resolve_mesh, running_on
from dajax.inference.scheduler import BatchScheduler, Rows
from dajax.inference.tiles import tiled_depth
from dajax.model.depth_anything import DepthAnything
from dajax.model.precision import parameter_dtype
from dajax.preprocessing.buckets import Buckets, ProcessedImage
from dajax.preprocessing.processor import DepthImageProcessor
from dajax.weights.loading import load

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")


class DepthEstimator:
    """Images in, depth maps in their own sizes out.

    Compiles once for each processed size and batch size. Images of one size are batched; results keep the order
    of the inputs.

    Args:
        model: whatever `dajax.load` takes (alias, Hub id, path), or a pair (model, params).
        dtype: what to compute in; None: float32. The encoder's matrices are kept in this type and the rest of the
            params in float32, or as in the file if None.
        style: "huggingface" (numbers of Transformers) or "official" (of the authors' code); None: that of the given
            pair or processor, else "huggingface".
        input_size: about how many pixels a side is scaled to, one number or (height, width); sides become multiples of
            14. None: what the checkpoint's processor says, 518.
        batch_size: how many images of one size are run together, on all devices; each gets the same number, so that
            it is best a multiple of theirs. None: one for each device.
        mesh: the devices. None: the default one, or where the params of a pair are; "local": all of this process; or a
            `jax.sharding.Mesh`. Batches are cut over its axes named "data" and "batch", or over all if there is none.
        parallel: "jit": params are whole on every device, or stay as the caller has sharded them
            (`dajax.inference.parallel.param_shardings`); or "pmap": `jax.pmap`, params whole.
        processor: instead of the checkpoint's own.
        load_options: `revision`, `token`, `cache_dir`, `local_files_only`, `config`, `sharding` for `dajax.load`.

    Attributes:
        model, params, processor: what it runs; params have been placed on the devices.
        mesh: the devices, or None.
        batch_size: how many images are run together.
        on_new_shape: called with the shape of pixels before the first ones of that shape are run, which is when a
            program is compiled for it. Set it to tell users why they wait.

    Raises:
        ConfigError: options that cannot be used, or that contradict each other.
        WeightsError, ConfigError, HubError: see `dajax.load`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | tuple[DepthAnything, Mapping[str, Any]] = "small",
        *,
        dtype: Any = None,
        style: str | None = None,
        input_size: int | tuple[int, int] | None = None,
        batch_size: int | None = None,
        mesh: Mesh | str | None = None,
        parallel: str = "jit",
        processor: DepthImageProcessor | None = None,
        **load_options: Any,
    ) -> None:
        self.mesh = resolve_mesh(mesh, parallel)
        self.batch_size = data_parallel_size(self.mesh) if batch_size is None else _check_batch_size(batch_size)
        if processor is not None and input_size is not None:
            raise ConfigError("input_size belongs to the processor that was given: set it there")
        if isinstance(model, tuple):
            if load_options:
                raise ConfigError(f"{sorted(load_options)} only go with a name to load, not with (model, params)")
            self.model, params = _adapt(*model, dtype=dtype, style=style)
            style = self.model.config.style
            if processor is None:
                processor = DepthImageProcessor(style, 518 if input_size is None else input_size)
            _check_style(processor, style)
        else:
            # The processor first: what is wrong with it shows before a gigabyte is read.
            if processor is None:
                hub_options = {name: load_options[name] for name in _HUB_OPTIONS if name in load_options}
                processor = DepthImageProcessor.from_pretrained(
                    model, style=style, input_size=input_size, **hub_options
                )
            style = style or processor.style
            _check_style(processor, style)
            if self.mesh is not None and load_options.get("sharding") is None:
                load_options["sharding"] = replicated(self.mesh)
            if dtype is not None:
                load_options["param_dtype"] = partial(parameter_dtype, dtype=dtype)
            self.model, params = load(model, dtype=dtype, style=style, **load_options)
        self.processor = processor
        self.params = place_params(params, self.mesh, parallel)
        leaf = jax.tree.leaves(self.params)[0]
        self._devices = list(leaf.devices() if self.mesh is None else self.mesh.devices.flat)
        self.on_new_shape: Callable[[tuple[int, ...]], None] = lambda shape: None
        self._shapes: set[tuple[int, ...]] = set()
        self._apply = distribute(self._depth, self.mesh, parallel, self.params)

    def _depth(self, params: Mapping[str, Any], pixels: Array) -> Array:
        output: Any = self.model.apply({"params": params}, pixels)
        return output.predicted_depth

    @property
    def device(self) -> str:
        """How many devices of what kind the params are on."""
        kind = str(self._devices[0].device_kind)
        return kind if len(self._devices) == 1 else f"{len(self._devices)} x {kind}"

    @property
    def dtype(self) -> str:
        """What the model computes in."""
        return str(jnp.dtype(self.model.dtype))

    def __call__(
        self, images: Any, *, batch_size: int | None = None, tiles: int | tuple[int, int] | None = None
    ) -> Any:
        """Return the depth map of one image, or the list of those of a list of images.

        Args:
            images: an image (path, PIL image, or uint8 or float array [height, width, 3]) or a list of them, of any
                sizes.
            batch_size: instead of the estimator's; one image is always a batch of its own.
            tiles: estimate large images in overlapping parts, see `dajax.inference.tiles.tiled_depth`.

        Returns:
            float32 [height, width] in the image's size, or a list of them: affine-invariant inverse depth, bigger is
            nearer (relative models), or metres (metric models).

        Raises:
            ImageError: an image cannot be read.
            ConfigError: the model's values are too large for float16.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images, batch_size=batch_size, tiles=tiles))
        return next(self.stream([images], batch_size=batch_size, tiles=tiles))

    def predict(self, pixels: Float[Array | np.ndarray, "batch height width 3"]) -> Float[Array, "batch height width"]:
        """Return the depth of normalised pixels, on the devices, in their own size."""
        if pixels.shape not in self._shapes:
            self._shapes.add(pixels.shape)
            self.on_new_shape(pixels.shape)
        with running_on(self._devices[0]):
            return self._apply(self.params, pixels)

    def stream(
        self,
        images: Iterable[Any],
        *,
        batch_size: int | None = None,
        buckets: int | None = None,
        policy: str = "resize",
        whole_batches: bool = False,
        source_size: bool = True,
        tiles: int | tuple[int, int] | None = None,
        on_smaller_batch: Callable[[int], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the depth map of each image, in order.

        Reads ahead by a few batches at most, so that `images` may be endless. Where a batch does not fit into the
        device's memory, it is halved, and so are all that follow.

        Args:
            images: images as in `__call__`, of any sizes; or `dajax.preprocessing.buckets.ProcessedImage`.
            batch_size: instead of the estimator's.
            buckets: process images at so many sizes at most, which bounds the number of compilations; None: each at
                its own. It costs accuracy for images whose aspect ratio is none of the buckets'.
            policy: "resize" stretches images to their bucket; "pad" keeps aspect ratios and fills up.
            whole_batches: compute a batch that lacks images as a whole one, too. Then an image's map does not
                depend on what else there is, to the bit; else such batches are as small as a power of two allows.
            source_size: maps have their image's size; else that of the network, without what `policy` filled up.
            tiles: estimate each image in overlapping parts, see `dajax.inference.tiles.tiled_depth`; `buckets` and
                `whole_batches` are not for it.
            on_smaller_batch: called with the new batch size when memory was short; None: a warning.

        Yields:
            float32 [height, width].

        Raises:
            ImageError: an image cannot be read.
            ConfigError: the model's values are too large for float16, or buckets or policy cannot be used.
            JobError: not even one image for each device fits into memory.
        """
        if tiles is not None:
            if buckets is not None or not source_size:
                raise ConfigError("tiles give maps in source size, without buckets")
            yield from (tiled_depth(self, image, tiles, batch_size=batch_size) for image in images)
            return
        batch_size = self.batch_size if batch_size is None else _check_batch_size(batch_size)
        sizes = Buckets(self.processor, buckets, policy)
        rows: Rows = "fewest"
        if whole_batches:
            # The order in which a CPU adds up a row of a product depends on the row's place in the batch, and which
            # places differ depends on the processor. A program of one image on each device has only one place.
            rows = "single" if self._devices[0].platform == "cpu" else "whole"
        scheduler = BatchScheduler(
            self.predict,
            partial(self._finish, source_size=source_size),
            batch_size=batch_size,
            devices=data_parallel_size(self.mesh),
            rows=rows,
            device=self.device,
            on_smaller_batch=on_smaller_batch,
        )
        for image in images:
            scheduler.add(image if isinstance(image, ProcessedImage) else sizes.process(read_image(image)))
            yield from scheduler.results()
        scheduler.flush()
        yield from scheduler.results()

    def _finish(self, image: ProcessedImage, depth: np.ndarray, *, source_size: bool) -> np.ndarray:
        """Return the depth map of an image, without what fills up its bucket; see `stream`."""
        height, width = image.content
        depth = depth[:height, :width]
        if self.dtype == "float16" and not np.isfinite(depth).all():
            raise ConfigError(
                "in float16 this model has values beyond the largest, 65504, and its depth is not finite: use "
                "bfloat16, which reaches as far as float32"
            )
        if not source_size:
            return depth.copy()
        return self.processor.post_process_depth_estimation(depth[None], [image.source_size])[0]["predicted_depth"]


def _check_style(processor: DepthImageProcessor, style: str) -> None:
    """One style for pixels, position embeddings and the resize back; a mixture is nobody's numbers."""
    if processor.style != style:
        raise ConfigError(f"the processor has style {processor.style!r} and the model {style!r}: give both the same")


def _check_batch_size(batch_size: Any) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    return batch_size


def _adapt(
    model: DepthAnything, params: Mapping[str, Any], *, dtype: Any, style: str | None
) -> tuple[DepthAnything, Mapping[str, Any]]:
    if style is not None:
        model = model.clone(config=model.config.with_style(style))
    if dtype is not None:
        try:
            dtype = jnp.dtype(dtype)
        except TypeError as error:
            raise ConfigError(f"dtype must be a floating-point type such as float32, got {dtype!r}") from error
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ConfigError(f"dtype must be a floating-point type such as float32, got {dtype}")
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ConfigError(f'dtype {dtype} needs jax.config.update("jax_enable_x64", True)')

        def cast(path: tuple[Any, ...], leaf: Any) -> Any:
            # numpy's are cast where they are: only what is wanted goes to the devices.
            kept = parameter_dtype("/".join(path), dtype)
            return leaf.astype(kept) if isinstance(leaf, jax.Array) else np.asarray(leaf, kept)

        params = path_aware_map(cast, params)
        model = model.clone(dtype=dtype)
    return model, params
