"""Reads a checkpoint into a model and its params."""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dajax.checkpoints import NOT_STATED, checkpoint_of
from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError, HubError, LicenceWarning, WeightsError
from dajax.hub import HubOptions, is_hub_id, processor_file
from dajax.json_fields import read_json
from dajax.kernels.targets import check_kernels
from dajax.model.depth_anything import DepthAnything
from dajax.weights.checkpoint_files import Files, find_files, find_shards
from dajax.weights.layout import copy_rearranged
from dajax.weights.load_plan import (
    Plan,
    Tensors,
    WeightsFile,
    all_tensors,
    choose_config,
    config_of_kind,
    encoder_config,
    find_encoder,
    find_model,
    make_plan,
)
from dajax.weights.mapping import Source
from dajax.weights.open import open_weights
from dajax.weights.report import raise_problems, some_of
from dajax.weights.safetensors_io import FLOAT_DTYPES
from dajax.weights.shapes import Shape
from dajax.weights.torch_files.torch_file import TorchFile

# Two threads are enough to read the next tensor while the last one is transposed. More only take memory.
_READERS = 2


def load(
    name: str | os.PathLike[str],
    *,
    config: DepthAnythingConfig | None = None,
    prefix: str | None = None,
    dtype: Any = None,
    sharding: Any = None,
    style: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    check_finite: bool = True,
    param_dtype: Any = None,
    kernels: str = "auto",
) -> tuple[DepthAnything, dict[str, Any]]:
    """Load a model and its params.

    It reads tensor by tensor: beside the params themselves this takes the memory of a few tensors.

    Args:
        name: an alias (`dajax.list_models()`), a Hub id, a directory (Transformers' layout, also sharded, with the
            tensor names of Transformers 4 or 5; or `dajax.save`'s), or a file: .safetensors, or PyTorch's .pth and
            .bin, which are read without PyTorch and without running anything in them. Files may have the names of
            Transformers, of the authors' code, or of a training script around it ("module.", optimizer state). An
            alias is an alias even if a folder has that name: write "./small" for the folder.
        config: replaces the checkpoint's config.json. The kind of a lone file comes from this argument, from a
            config.json beside it, or from its official file name (depth_anything_v2_metric_hypersim_vitl.pth, ...).
            Otherwise `load` assumes V2 relative and warns (`AssumedKindWarning`).
        prefix: what stands before the names of the model's tensors, such as "teacher.". It is needed only if several
            models are in the file.
        dtype: type of the params, and the type in which the model computes. None: params keep the file's type
            (float64 needs jax's x64 mode), and the model computes in float32.
        sharding: where the params are placed: one `jax.sharding.Sharding` or device for all, or a nested dict of them
            like the params. None: the default device.
        style: how position embeddings are resampled: "huggingface" (the numbers of Transformers) or "official" (those
            of the authors' code). Use the same style for the processor. None: "huggingface", unless dajax saved the
            model as "official".
        revision: branch, tag or commit on the Hub.
        token: the token of a Hub account.
        cache_dir: the folder for downloads from the Hub.
        local_files_only: use only what the Hub's cache has, and open no connection.
        check_finite: whether weights with NaN or infinity are refused.
        param_dtype: type of the params, if it differs from the computation dtype: `dtype="bfloat16",
            param_dtype="float32"` is more exact and takes twice the memory. It may also be a function from a path, such
            as "head/conv1/kernel", to a type.
        kernels: "auto" computes each operation as the platform does it best; "reference" by its plain formula.

    Returns:
        The Linen module (`model.config` describes it) and its params, a nested dict of jax arrays.

    Raises:
        WeightsError: the checkpoint is missing, is damaged, or does not fit its config. The message lists a few
            missing, extra and mis-shaped tensor.
        ConfigError: config.json or an argument is wrong.
        HubError: the files cannot be downloaded from the Hub.
    """
    hub_options = HubOptions(revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    if config is not None and not isinstance(config, DepthAnythingConfig):
        hint = f": DepthAnythingConfig.from_pretrained({config!r}) makes one" if isinstance(config, str) else ""
        raise ConfigError(f"config must be a DepthAnythingConfig, got {type(config).__name__}{hint}")
    check_kernels(kernels)
    wanted = None if dtype is None else _float_dtype(dtype)
    dtype_of = _dtype_of(wanted if param_dtype is None else param_dtype)
    files = find_files(name, hub_options)
    with _open_all(files.weights) as opened:
        model = find_model(files.weights, all_tensors(opened), prefix)
        tensors = model.tensors
        config = choose_config(files, tensors, config)
        config = config if style is None else config.with_style(style)
        config = replace(config, preprocessing=_preprocessing(name, files, hub_options))
        plan = make_plan(files.weights, model, config)
        params = _read_all(plan, tensors, dtype_of, sharding, check_finite)
        for file in opened:
            if isinstance(file, TorchFile):
                file.verify_rest()
                _say_foreign(file)
    narrowed = dtype_of is _as_in_file and not _has_float64()
    if narrowed and any(tensor.dtype == np.float64 for tensor in tensors.values()):
        warnings.warn(
            f"{files.weights} has float64 tensors, which become float32: jax keeps them with "
            'jax.config.update("jax_enable_x64", True); dtype="float32" says that float32 is meant',
            UserWarning,
            stacklevel=2,
        )
    if model.outside:
        where = f" (its names begin with {model.prefix!r})" if model.prefix else ""
        warnings.warn(
            f"{files.weights}: {len(model.outside):,} tensors do not belong to the model{where} and are left out: "
            f"{some_of(model.outside)}",
            UserWarning,
            stacklevel=2,
        )
    _say_licence(name)
    return DepthAnything(config, dtype=jnp.float32 if wanted is None else wanted, kernels=kernels), params


def load_encoder(
    name: str | os.PathLike[str],
    *,
    config: DepthAnythingConfig | None = None,
    prefix: str | None = None,
    style: str | None = None,
    **hub_options: Unpack[HubOptions],
) -> tuple[DepthAnythingConfig, dict[str, Any]]:
    """Load the encoder of a checkpoint, to train a fresh head on it.

    Args:
        name: as for `dajax.load`. It may also be a DINOv2 encoder alone: "facebook/dinov2-small" and its files, or a
            file of its authors.
        config: replaces the checkpoint's config.json.
        prefix: as for `dajax.load`.
        style: as for `dajax.load`.
        hub_options: see `dajax.hub.HubOptions`.

    Returns:
        The config of a model with this encoder, and the params {"backbone": ...} in float32. The config is the
        checkpoint's. For an encoder alone it is that of the released relative model with such an encoder.

    Raises:
        WeightsError: the encoder is missing or damaged, or does not fit its config.
        ConfigError: config.json or an argument is wrong.
        HubError: the files cannot be downloaded from the Hub.
    """
    files = find_files(name, hub_options)
    with _open_all(files.weights) as opened:
        found, is_whole = find_encoder(files.weights, all_tensors(opened), prefix)
        if config is None and not is_whole:
            config = encoder_config(files.weights, found)
        elif config is None:
            config = choose_config(files, found.tensors, None)
        config = config if style is None else config.with_style(style)
        plan = make_plan(files.weights, found, config, part="backbone/")
        return config, _read_all(plan, found.tensors, lambda path: np.dtype(np.float32), None, True)


# Checkpoints whose licence this process has already warned about.
_said: set[str] = set()


def released_config(
    name: str | os.PathLike[str], kind: str, *, prefix: str | None = None, **hub_options: Unpack[HubOptions]
) -> DepthAnythingConfig:
    """Return the released config of a kind for a checkpoint of any kind, of the size that its tensors have.

    Checkpoints of all kinds have tensors of the same names and shapes, so the caller has to say the kind.

    Args:
        name: as for `dajax.load`.
        kind: "relative", "metric-indoor", "metric-outdoor" or "v1".
        prefix: as for `dajax.load`.
        hub_options: see `dajax.hub.HubOptions`.

    Raises:
        ConfigError: there is no such kind.
        WeightsError: the weights cannot be read, or no released model has their size.
        HubError: the files cannot be downloaded from the Hub.
    """
    files = find_files(name, hub_options)
    with _open_all(files.weights) as opened:
        return config_of_kind(files.weights, find_model(files.weights, all_tensors(opened), prefix).tensors, kind)


def _preprocessing(name: str | os.PathLike[str], files: Files, hub_options: HubOptions) -> dict[str, Any] | None:
    """Return the fields of the preprocessor_config.json that comes with the weights, or None."""
    if is_hub_id(name):
        if checkpoint_of(str(name)) is not None:  # it is what stands here for all released checkpoints
            return None
        if files.config is not None and files.config.parent.parent.name == "snapshots":
            hub_options = {**hub_options, "revision": files.config.parent.name}  # the commit of the weights
    try:
        file = processor_file(name, hub_options)
    except HubError:  # the weights are cached and this file is not: they load all the same
        return None
    return None if file is None else read_json(file)


@contextmanager
def _open_all(weights: Path) -> Iterator[list[WeightsFile]]:
    """Open a file of weights, or every file that an index lists."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(open_weights(path))) for path in find_shards(weights)]


def _say_foreign(file: TorchFile) -> None:
    if file.foreign:
        warnings.warn(
            f"{file.path} holds more than tensors: values of {some_of(file.foreign)} were skipped, and nothing of them "
            "was imported or run",
            UserWarning,
            stacklevel=3,
        )


def _say_licence(name: Any) -> None:
    released = checkpoint_of(name) if isinstance(name, str) and is_hub_id(name) else None
    if released is None or released.licence == "Apache-2.0" or released.alias in _said:
        return
    _said.add(released.alias)
    terms = "state no licence" if released.licence == NOT_STATED else f"are under {released.licence}"
    warnings.warn(
        f"the weights of {released.alias!r} ({released.hub_id}) {terms}: see its page before you use them in a product",
        LicenceWarning,
        stacklevel=3,
    )


def _float_dtype(dtype: Any) -> np.dtype:
    known = list(FLOAT_DTYPES.values())
    try:
        found = jnp.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as error:  # numpy parses strings
        raise ConfigError(f"dtype must be one of {', '.join(map(str, known))}, got {dtype!r}") from error
    if found not in known:
        raise ConfigError(f"dtype must be one of {', '.join(map(str, known))}, got {dtype!r}")
    if found == np.float64 and not _has_float64():
        raise ConfigError('dtype float64 needs jax.config.update("jax_enable_x64", True)')
    return found


# Maps the path of a parameter to its type. None: the type that it has in the file.
DtypeOf = Callable[[str], np.dtype | None]


def _dtype_of(dtype: Any) -> DtypeOf:
    if dtype is None:
        return _as_in_file
    if callable(dtype) and not isinstance(dtype, type | np.dtype) and not hasattr(dtype, "dtype"):
        return lambda path: _float_dtype(dtype(path))
    found = _float_dtype(dtype)
    return lambda path: found


def _as_in_file(path: str) -> None:
    return None


def _has_float64() -> bool:
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


def _read_all(plan: Plan, tensors: Tensors, dtype_of: DtypeOf, sharding: Any, check_finite: bool) -> dict[str, Any]:
    place = _placement(sharding, plan)
    largest = max(tensor.nbytes for tensor in tensors.values())
    local = threading.local()
    has_float64 = _has_float64()

    def read(path: str) -> np.ndarray:
        if not hasattr(local, "buffer"):
            local.buffer = np.empty(largest, np.uint8)
        source, shape = plan[path]
        dtype = dtype_of(path)
        as_dtype = _kept_dtype(source, tensors, has_float64) if dtype is None else dtype
        return _read_one(source, shape, tensors, as_dtype, local.buffer, check_finite)

    # The caller's thread places the arrays: `with jax.default_device(...)` and the like hold for that thread only.
    params: dict[str, jax.Array] = {}
    ahead: deque[tuple[str, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(_READERS) as pool:
        for path in plan:
            ahead.append((path, pool.submit(read, path)))
            if len(ahead) > 2 * _READERS:
                first, future = ahead.popleft()
                params[first] = place(first, future.result())
        params |= {rest: place(rest, future.result()) for rest, future in ahead}
    return unflatten_dict(params, sep="/")


def _kept_dtype(source: Source, tensors: Tensors, has_float64: bool) -> np.dtype:
    """Return the type that the file has, or float32 where jax does not have that type."""
    dtypes = {tensors[name].dtype for name in source.names}
    found = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    return np.dtype(np.float32) if found == np.float64 and not has_float64 else found


def _read_one(
    source: Source, shape: Shape, tensors: Tensors, dtype: np.dtype, buffer: np.ndarray, check_finite: bool
) -> np.ndarray:
    parts = [tensors[name] for name in source.names]
    target = _aligned_empty(shape, dtype)
    # This view has PyTorch's axes: one pass reads, casts and transposes straight into the target.
    view, position = source.transform.to_torch(target), 0
    for part in parts:
        rows = part.shape[0] if len(parts) > 1 else None
        place = view if rows is None else view[position : position + rows]
        values = part.file.read(part.name, buffer)
        if source.part.of > 1:
            values = values[source.part.number * len(view) :][: len(view)]
        with np.errstate(over="ignore"):  # infinite values are reported below
            copy_rearranged(place, values)
        position += rows or 0
    if check_finite and not _is_finite(target):
        raise WeightsError(
            f"{parts[0].file.path}: tensor {' + '.join(part.name for part in parts)} has NaN or infinite values as "
            f"{dtype}; check_finite=False loads them all the same"
        )
    return target


def _aligned_empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Return an empty array on a 64-byte boundary. On the CPU jax uses such an array without a copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype.itemsize == 2:
        # Half-precision sums are slow in numpy and overflow. An exponent of all ones is NaN or infinity.
        exponent = np.uint16(0x7C00 if array.dtype == np.float16 else 0x7F80)
        return not bool(((array.view(np.uint16) & exponent) == exponent).any())
    with np.errstate(all="ignore"):
        if np.isfinite(array.sum()):  # one pass without a temporary array; no NaN or infinity can hide in a sum
            return True
    return bool(np.isfinite(array).all())


def _placement(sharding: Any, plan: Plan) -> Callable[[str, np.ndarray], jax.Array]:
    if isinstance(sharding, Mapping):
        flat = flatten_dict(sharding, sep="/")
        raise_problems("sharding does not fit the params", [f"missing: {path}" for path in plan if path not in flat])
        return lambda path, array: _put(path, array, flat[path])
    return lambda path, array: _put(path, array, sharding)


def _put(path: str, array: np.ndarray, sharding: Any) -> jax.Array:
    try:
        return jax.device_put(array, sharding)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sharding does not fit {path} {list(array.shape)}: {error}") from error
