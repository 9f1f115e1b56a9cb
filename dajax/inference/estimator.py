"""The estimator: from images of any sizes to their depth maps, in order."""

from __future__ import annotations

import difflib
import inspect
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import path_aware_map
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dajax import limits
from dajax.errors import ConfigError
from dajax.hub import HubOptions, hub_options_in
from dajax.images.read import read_image
from dajax.inference.parallel import (
    are_whole,
    data_parallel_size,
    distribute,
    place_params,
    replicated,
    resolve_mesh,
    running_on,
)
from dajax.inference.programs import CompiledProgram, timed
from dajax.inference.scheduler import BatchScheduler, Rows, possible_rows
from dajax.inference.tiles import tiled_depth
from dajax.kernels.targets import check_kernels
from dajax.model.depth_anything import DepthAnything
from dajax.model.layers import parameter_dtype
from dajax.preprocessing.buckets import Buckets, ProcessedImage
from dajax.preprocessing.processor import DepthImageProcessor, own_processor
from dajax.progress import ProgressBar
from dajax.weights.loading import load


class DepthEstimator:
    """Estimates the depth of images, and returns depth maps in the images' own sizes.

    An estimator compiles the network once for each combination of processed size and batch size, and keeps up to 128
    of these programs. It runs images of one processed size in batches, and returns results in the order of the images.
    Several threads may use one estimator. Another process has to make its own, because an estimator cannot be pickled.

    Args:
        model: Anything that `dajax.load` takes (an alias, a Hub id or a path), or a pair (model, params).
        dtype: the computation dtype; None is float32. The encoder's matrices are kept in this dtype and all other
            params in float32. With None, params are kept in the dtype of their file.
        style: "huggingface" for the numbers of Transformers, or "official" for those of the authors' code. None takes
            the style of the given pair or processor, otherwise "huggingface".
        input_size: the approximate length in pixels that the sides of images are scaled to, as one number or (height,
            width). Sides become multiples of 14. None takes the length from the checkpoint's processor, 518.
        buckets: the largest number of sizes to process images at, which limits the number of programs. It costs
            accuracy for images whose aspect ratio differs from that of every bucket. None processes each image at its
            own size.
        policy: "resize" stretches images to their bucket. "pad" keeps their aspect ratio and fills the bucket up.
        batch_size: how many images of one size run together, on all devices. Every device gets the same number of
            images, so a multiple of the number of devices is best. None is one image for each device.
        mesh: the devices: a `jax.sharding.Mesh`, or "local" for all devices of this process. None is the default
            device, or the device of the params of a pair. Batches are divided over the mesh's axes named "data" and
            "batch", or over all axes if it has neither.
        parallel: "jit" or "pmap". With "jit", every device has all params, unless the caller has sharded them (see
            `dajax.inference.param_shardings`). With "pmap", `jax.pmap` runs the network and every device has all
            params.
        processor: a processor to use instead of the checkpoint's own.
        kernels: "auto" computes each operation as the platform does it best; "reference" by its plain formula, see
            `dajax.kernels`. None is "auto", or what the model of a pair says.
        load_options: options of `dajax.load`: `revision`, `token`, `cache_dir`, `local_files_only`, `config`, `prefix`,
            `sharding`, `param_dtype` and `check_finite`.

    Attributes:
        name: the alias, Hub id or path that the model was loaded by; "" for a pair (model, params).
        model: the network.
        params: its params, on the devices.
        processor: the processor of images.
        mesh: the devices, or None.
        batch_size: how many images of one size run together.
        on_new_shape: a function that the estimator calls with a shape of pixels before it runs that shape for the first
            time, which is when a program is compiled. Set it to tell users why they wait.

    Raises:
        ConfigError: an option cannot be used, or options contradict each other.
        WeightsError, ConfigError, HubError: see `dajax.load`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | tuple[DepthAnything, Mapping[str, Any]] = "small",
        *,
        dtype: Any = None,
        style: str | None = None,
        input_size: int | tuple[int, int] | None = None,
        buckets: int | None = None,
        policy: str = "resize",
        batch_size: int | None = None,
        mesh: Mesh | str | None = None,
        parallel: str = "jit",
        processor: DepthImageProcessor | None = None,
        kernels: str | None = None,
        **load_options: Any,
    ) -> None:
        self.name = "" if isinstance(model, tuple) else str(model)
        _check_names(load_options)
        self.mesh = resolve_mesh(mesh, parallel)
        self.batch_size = data_parallel_size(self.mesh) if batch_size is None else _check_batch_size(batch_size)
        if processor is not None and input_size is not None:
            raise ConfigError("both input_size and a processor were given: set the input_size of the processor")
        if isinstance(model, tuple):
            if load_options:
                raise ConfigError(
                    f"{', '.join(sorted(load_options))} can be used with the name of a model, not with a pair (model, "
                    "params)"
                )
            self.model, params = _adapt(*model, dtype=dtype, style=style)
            if kernels is not None:
                check_kernels(kernels)
                self.model = self.model.clone(kernels=kernels)
            style = self.model.config.style
            if processor is None:
                processor = own_processor(self.model.config, input_size)
            _check_style(processor, style)
        else:
            # The processor comes first, so that an error in it shows before a gigabyte of params is read.
            if processor is None:
                processor = DepthImageProcessor.from_pretrained(
                    model, style=style, input_size=input_size, **hub_options_in(load_options)
                )
            style = style or processor.style
            _check_style(processor, style)
            if self.mesh is not None and load_options.get("sharding") is None:
                load_options["sharding"] = replicated(self.mesh)
            if dtype is not None:
                load_options["param_dtype"] = partial(parameter_dtype, dtype=dtype)
            self.model, params = load(model, dtype=dtype, style=style, kernels=kernels or "auto", **load_options)
        _check_sizes(processor, self.model.config.patch_size)
        self.processor = processor
        self._bucketing: tuple[int | None, str] = (buckets, policy)
        Buckets(processor, buckets, policy)  # refuses what cannot be used
        self.params = place_params(params, self.mesh, parallel)
        leaf = jax.tree.leaves(self.params)[0]
        self._devices = list(leaf.devices() if self.mesh is None else self.mesh.devices.flat)
        self.on_new_shape: Callable[[tuple[int, ...]], None] = lambda shape: None
        self._parallel = parallel
        self._lock = threading.Lock()
        self._forget_programs()

    def _forget_programs(self) -> None:
        # jax keeps programs as long as the function that they are compiled from, so that a new function begins without
        # any. A thread that runs a program keeps the old one until it is done.
        def depth(params: Mapping[str, Any], pixels: Array) -> Array:
            return self._depth(params, pixels)

        # A lock for each shape: while one thread compiles a program, another that needs it waits for it.
        self._shapes: dict[tuple[int, ...], threading.Lock] = {}
        self._ready: set[tuple[int, ...]] = set()
        self._apply = distribute(depth, self.mesh, self._parallel, self.params)

    def _depth(self, params: Mapping[str, Any], pixels: Array) -> Array:
        output: Any = self.model.apply({"params": params}, pixels)
        return output.predicted_depth

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "an estimator has compiled programs and arrays on devices, and cannot be pickled or copied: make one in "
            "each process, for example in the initializer of a pool"
        )

    @property
    def device(self) -> str:
        """The kind of the devices that the params are on, and their number if there are several."""
        kind = str(self._devices[0].device_kind)
        return kind if len(self._devices) == 1 else f"{len(self._devices)} x {kind}"

    @property
    def dtype(self) -> str:
        """The name of the computation dtype."""
        return str(jnp.dtype(self.model.dtype))

    def __call__(
        self,
        images: Any,
        *,
        batch_size: int | None = None,
        buckets: int | None = None,
        policy: str | None = None,
        tiles: int | tuple[int, int] | None = None,
    ) -> Any:
        """Return the depth map of one image, or a list of depth maps for a list of images.

        Args:
            images: an image (a path, encoded bytes, an open file, a PIL image, or a uint8 or float array [height,
                width, 3]), or a list of images of any sizes.
            batch_size: a batch size to use instead of the estimator's. One image is always a batch of its own.
            buckets: a number of sizes to use instead of the estimator's; see `DepthEstimator`.
            policy: a policy to use instead of the estimator's.
            tiles: Into how many overlapping parts to divide large images; see `dajax.inference.tiled_depth`.

        Returns:
            A depth map, float32 [height, width] in the image's size, or a list of them. It is affine-invariant inverse
            depth, bigger is nearer (relative models), or metres (metric models).

        Raises:
            ImageError: an image cannot be read.
            ConfigError: the model's values are too large for float16; or tiles, buckets or policy cannot be used.
        """
        is_list = isinstance(images, list | tuple)
        depths = self.stream(
            images if is_list else [images], batch_size=batch_size, buckets=buckets, policy=policy, tiles=tiles
        )
        return list(depths) if is_list else next(depths)

    def predict(self, pixels: Float[Array | np.ndarray, "batch height width 3"]) -> Float[Array, "batch height width"]:
        """Run the network on normalised pixels, and return their depth in the size of the pixels.

        The result is on the devices, which may still compute it when this function returns.
        """
        shape = tuple(pixels.shape)
        if shape in self._ready:
            with running_on(self._devices[0]):
                return self._apply(self.params, pixels)
        lock, is_new = self._lock_of(shape)
        if is_new:
            self.on_new_shape(shape)
        with lock, running_on(self._devices[0]):
            depth: Array = self._apply(self.params, pixels)
            self._ready.add(shape)
        return depth

    def _lock_of(self, shape: tuple[int, ...]) -> tuple[threading.Lock, bool]:
        """Return the lock of a shape's program, and whether the shape is new."""
        with self._lock:
            is_new = shape not in self._shapes
            if is_new and len(self._shapes) >= limits.MAX_PROGRAMS:
                warnings.warn(
                    f"images of more than {limits.MAX_PROGRAMS} sizes came: their programs are dropped, and will be "
                    "compiled again; buckets=… bounds the number of sizes",
                    UserWarning,
                    stacklevel=3,
                )
                self._forget_programs()
            return self._shapes.setdefault(shape, threading.Lock()), is_new

    def compile(
        self,
        sizes: Any = None,
        *,
        batch_size: int | None = None,
        buckets: int | None = None,
        whole_batches: bool = False,
        progress: bool = True,
        stop: threading.Event | None = None,
    ) -> list[CompiledProgram]:
        """Compile the programs for images of these sizes, so that none of these images waits for it.

        The network does not run, except with "pmap", where it runs once on zeros.
        Every program is compiled that `__call__` and `stream` may need with the same options:
        one for each processed size, and for each number of rows that the last batch of a size may have. Other threads
        may use the estimator meanwhile; one that needs a program which is being compiled waits for it.

        Args:
            sizes: a list of (height, width) of images, before processing. None is every bucket.
            batch_size: how many images of one size will run together. None is the estimator's batch size.
            buckets: a number of sizes to use instead of the estimator's; see `DepthEstimator`.
            whole_batches: whether `stream` will be called with it. Then there is one program for each size.
            progress: whether to show a bar on standard error.
            stop: an event that another thread sets to end early, after the program that is being compiled.

        Returns:
            The programs: shape, seconds, and whether they came from the cache on disk.

        Raises:
            ConfigError: `sizes` has something else than sizes; there are neither sizes nor buckets; or more programs
                are needed than an estimator keeps.
            ImageError: an image of such a size has more patches than the limit.
        """
        batch_size = self.batch_size if batch_size is None else _check_batch_size(batch_size)
        found = Buckets(self.processor, self._bucketing[0] if buckets is None else buckets, self._bucketing[1])
        rows = possible_rows(batch_size, data_parallel_size(self.mesh), self._rows(whole_batches))
        processed = dict.fromkeys(_processed_sizes(sizes, found))
        shapes = [(count, *size, 3) for size in processed for count in reversed(rows)]
        if len(shapes) > limits.MAX_PROGRAMS:
            raise ConfigError(
                f"these sizes need {len(shapes)} programs, and an estimator keeps {limits.MAX_PROGRAMS}: give fewer "
                "sizes, a smaller batch_size, or buckets=…"
            )
        programs: list[CompiledProgram] = []
        with ProgressBar("dajax", len(shapes), unit="program", show=progress) as bar:
            for shape in shapes:
                if stop is not None and stop.is_set():
                    break
                programs.append(self._compile_shape(shape))
                bar.advance()
        return programs

    def _compile_shape(self, shape: tuple[int, ...]) -> CompiledProgram:
        lock, _ = self._lock_of(shape)
        with lock, running_on(self._devices[0]):
            if shape in self._ready:
                return CompiledProgram(shape, 0.0, False)
            program = timed(shape, lambda: self._prepare(shape))
            self._ready.add(shape)
        return program

    def _prepare(self, shape: tuple[int, ...]) -> None:
        if self._apply.lower is None:
            jax.block_until_ready(self._apply(self.params, np.zeros(shape, np.float32)))
        else:
            # A call of the same shape finds what jax has lowered and compiled.
            self._apply.lower(self.params, jax.ShapeDtypeStruct(shape, np.float32)).compile()

    def _rows(self, whole_batches: bool) -> Rows:
        """Return which numbers of rows batches have; see `BatchScheduler`."""
        if not whole_batches:
            return "fewest"
        # The order in which a CPU adds up a row of a product depends on the row's place in the batch, and which
        # places differ depends on the processor. A program of one image on each device has only one place.
        # With sharded params the devices compute parts of all images together.
        if self._devices[0].platform != "cpu":
            return "whole"
        return "single" if are_whole(self.params) else "first"

    def stream(
        self,
        images: Iterable[Any],
        *,
        batch_size: int | None = None,
        buckets: int | None = None,
        policy: str | None = None,
        whole_batches: bool = False,
        source_size: bool = True,
        tiles: int | tuple[int, int] | None = None,
        on_smaller_batch: Callable[[int], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the depth map of each image, in order.

        The stream reads a few batches ahead at most, so `images` may be endless. If a batch does not fit into the
        memory of the devices, the stream halves it, and all batches that follow.

        Args:
            images: images of any sizes, as in `__call__`, or `dajax.preprocessing.ProcessedImage`.
            batch_size: a batch size to use instead of the estimator's.
            buckets: a number of sizes to use instead of the estimator's; see `DepthEstimator`.
            policy: a policy to use instead of the estimator's.
            whole_batches: whether a batch that lacks images is computed as a whole batch. Then the depth map of an
                image is equal to the bit whatever other images there are. On CPUs each device runs one image at a time,
                because the order of its sums depends on an image's place in a batch. Without it, a batch that lacks
                images is as small as a power of two allows.
            source_size: whether depth maps have the sizes of their images. Without it, they have the size of the
                network's output, without the pixels that `policy` filled up.
            tiles: Into how many overlapping parts to divide each image; see `dajax.inference.tiled_depth`. It cannot be
                used with `buckets`, and ignores `whole_batches` and `on_smaller_batch`.
            on_smaller_batch: a function that is called with the new batch size if memory was short. None gives a
                warning.

        Yields:
            A depth map, float32 [height, width]. It is affine-invariant inverse depth, bigger is nearer (relative
            models), or metres (metric models).

        Raises:
            ImageError: an image cannot be read.
            ConfigError: the model's values are too large for float16; or tiles, buckets or policy cannot be used.
            JobError: not even one image for each device fits into memory.
        """
        buckets = self._bucketing[0] if buckets is None else buckets
        policy = self._bucketing[1] if policy is None else policy
        if tiles is not None:
            if buckets is not None or not source_size:
                raise ConfigError(
                    "tiles cannot be used with buckets, and their depth maps always have the size of the image"
                )
            yield from (tiled_depth(self, image, tiles, batch_size=batch_size) for image in images)
            return
        batch_size = self.batch_size if batch_size is None else _check_batch_size(batch_size)
        sizes = Buckets(self.processor, buckets, policy)
        scheduler = BatchScheduler(
            self.predict,
            partial(self._finish, source_size=source_size),
            batch_size=batch_size,
            devices=data_parallel_size(self.mesh),
            rows=self._rows(whole_batches),
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
                "in float16 the values of this model exceed 65504, the largest number, and its depth is not finite: "
                "use bfloat16, which has the range of float32"
            )
        if not source_size:
            return depth.copy()
        return self.processor.post_process_depth_estimation(depth[None], [image.source_size])[0]["predicted_depth"]


# The options of `load` that an estimator does not take itself.
_LOAD_OPTIONS = (*HubOptions.__annotations__, "config", "prefix", "sharding", "param_dtype", "check_finite")


def _check_names(load_options: Mapping[str, Any]) -> None:
    for name in load_options:
        if name not in _LOAD_OPTIONS:
            known = [*inspect.signature(DepthEstimator).parameters, *_LOAD_OPTIONS]
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted({*known} - {'load_options'}))}"
            raise ConfigError(f"DepthEstimator has no option {name!r}: {hint}")


def _check_style(processor: DepthImageProcessor, style: str) -> None:
    """Refuse a processor and a model of different styles: mixing them matches neither implementation."""
    if processor.style != style:
        raise ConfigError(
            f"the processor has the style {processor.style!r} and the model {style!r}: give both the same style"
        )


def _check_sizes(processor: DepthImageProcessor, patch: int) -> None:
    """Refuse a processor whose sizes are not those of whole patches."""
    fixed = not processor.keep_aspect_ratio and not any(side % patch for side in processor.size.values())
    if processor.do_resize and processor.ensure_multiple_of % patch and not fixed:
        raise ConfigError(
            f"the processor's ensure_multiple_of is {processor.ensure_multiple_of}, and the model's patches have "
            f"{patch} pixels: write {patch} into preprocessor_config.json, or give a processor that has it"
        )


def _processed_sizes(sizes: Any, buckets: Buckets) -> list[tuple[int, int]]:
    """Return the sizes that images of these sizes are processed at; with None, those of all buckets."""
    if sizes is None:
        if not buckets.sizes:
            raise ConfigError("there are neither sizes nor buckets: give sizes=[(height, width), …] or buckets=…")
        return buckets.sizes
    if not isinstance(sizes, list | tuple):
        raise ConfigError(f"sizes must be a list of (height, width), got {sizes!r}")
    for size in sizes:
        is_pair = isinstance(size, list | tuple) and len(size) == 2
        if not is_pair or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in size):
            raise ConfigError(f"sizes must be a list of (height, width) in pixels, got {size!r} in it")
    return [buckets.size_of(height, width) for height, width in sizes]


def _check_batch_size(batch_size: Any) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    return batch_size


def _adapt(
    model: DepthAnything, params: Mapping[str, Any], *, dtype: Any, style: str | None
) -> tuple[DepthAnything, Mapping[str, Any]]:
    """Return a pair with the wanted dtype and style. With None it keeps its own."""
    if style is not None:
        model = model.clone(config=model.config.with_style(style))
    if dtype is not None:
        try:
            dtype = jnp.dtype(dtype)
        except TypeError as error:
            raise ConfigError(f"dtype must be a floating-point dtype such as float32, got {dtype!r}") from error
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ConfigError(f"dtype must be a floating-point dtype such as float32, got {dtype}")
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ConfigError(f'dtype {dtype} needs jax.config.update("jax_enable_x64", True)')

        def cast(path: tuple[Any, ...], leaf: Any) -> Any:
            # Arrays of numpy are cast on the host, so that only the smaller ones go to the devices.
            kept = parameter_dtype("/".join(path), dtype)
            return leaf.astype(kept) if isinstance(leaf, jax.Array) else np.asarray(leaf, kept)

        params = path_aware_map(cast, params)
        model = model.clone(dtype=dtype)
    return model, params
