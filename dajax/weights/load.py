"""Checkpoints to a model and its params."""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError, WeightsError, shown
from dajax.model.depth_anything import DepthAnything
from dajax.validation import read_json

from .files import find_files, find_shards
from .layout import copy_rearranged
from .mapping import Source, recognise, sources, torch_shape
from .report import raise_problems
from .safetensors_io import FLOAT_DTYPES, SafetensorsFile, TensorInfo
from .shapes import Shape, parameter_shapes
from .tree import flatten, nest

# Two are enough to read the next tensor while the last one is transposed; more only take memory.
_READERS = 2


def load(
    name: str | os.PathLike[str],
    *,
    config: DepthAnythingConfig | None = None,
    dtype: Any = None,
    sharding: Any = None,
    style: str = "huggingface",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    check_finite: bool = True,
) -> tuple[DepthAnything, dict[str, Any]]:
    """Load a model and its params.

    Tensor by tensor: beside the params themselves it takes the memory of two tensors.

    Args:
        name: an alias (`dajax.list_models()`), a Hub id, a directory (Transformers' layout, also sharded, with the
            tensor names of Transformers 4 or 5; or `dajax.save(format="flax")`'s), or a .safetensors file. An alias is
            an alias even if a folder has that name: write "./small" for the folder.
        config: instead of the checkpoint's config.json.
        dtype: of the params, and what the model computes in. None keeps the file's type and computes in float32.
        sharding: where params go: one `jax.sharding.Sharding` or device for all, or a nested dict of them like the
            params. None: the default device.
        style: "huggingface" (numbers of Transformers) or "official" (of the authors' code): how position embeddings are
            resampled. Use the same for the processor.
        revision: branch, tag or commit on the Hub.
        token: of a Hub account.
        cache_dir: of the Hub's downloads.
        local_files_only: take only what the Hub's cache has.
        check_finite: refuse weights with NaN or infinity.

    Returns:
        The Linen module (`model.config` says what it is) and its params, a nested dict of jax arrays.

    Raises:
        WeightsError: the checkpoint is missing, damaged, or does not fit its config: every missing, extra and
            mis-shaped tensor is listed.
        ConfigError: config.json or an argument is wrong.
        HubError: the Hub does not give the files.
    """
    hub_options = {
        "revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only,
    }  # fmt: skip
    if config is not None and not isinstance(config, DepthAnythingConfig):
        raise ConfigError(f"config must be a DepthAnythingConfig, got {type(config).__name__}")
    wanted = None if dtype is None else _float_dtype(dtype)
    weights, config_path = find_files(name, hub_options)
    with ExitStack() as stack:
        files = [stack.enter_context(SafetensorsFile(path)) for path in find_shards(weights)]
        tensors = _all_tensors(files)
        if config is None:
            config = (
                _guess_config(weights, tensors)
                if config_path is None
                else DepthAnythingConfig.from_dict(read_json(config_path))
            )
        config = config.with_style(style)
        plan = _plan(weights, tensors, config)
        params = _read_all(plan, tensors, wanted, sharding, check_finite)
    return DepthAnything(config, dtype=jnp.float32 if wanted is None else wanted), params


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


def _has_float64() -> bool:
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


Tensors = dict[str, tuple[SafetensorsFile, TensorInfo]]


def _all_tensors(files: list[SafetensorsFile]) -> Tensors:
    tensors: Tensors = {}
    problems = []
    for file in files:
        for name, info in file.tensors.items():
            if name in tensors:
                problems.append(f"{name} is in {tensors[name][0].path.name} and in {file.path.name}")
            tensors[name] = (file, info)
    raise_problems(f"{files[0].path.parent}: tensors stand in two shards", problems)
    return tensors


def _guess_config(path: Path, tensors: Tensors) -> DepthAnythingConfig:
    shapes = {info.shape for _, info in tensors.values()}
    for size in ("small", "base", "large", "giant"):
        config: DepthAnythingConfig = getattr(DepthAnythingConfig, size)()
        width, fusion = config.backbone_config.hidden_size, config.fusion_hidden_size
        if (1, 1, width) in shapes and (fusion,) in shapes:
            warnings.warn(
                f"{path} comes without a config.json: taken for Depth Anything V2 {size}, relative. V1, V2 and metric "
                "checkpoints have the same tensors: if it is another, pass config=…",
                UserWarning,
                stacklevel=3,
            )
            return config
    raise WeightsError(f"{path} comes without a config.json and has no released size: pass config=…")


Plan = dict[str, tuple[Source, Shape]]


def _plan(path: Path, tensors: Tensors, config: DepthAnythingConfig) -> Plan:
    """Return where each parameter comes from, having checked every tensor's name and shape."""
    _refuse_other_models(path, tensors)
    shapes = parameter_shapes(config)
    table = recognise(tensors.keys(), shapes.keys())
    plan = {flax: (source, shapes[flax]) for flax, source in sources(table, shapes).items()}
    expected = {name for source, _ in plan.values() for name in source.names}
    problems = [f"missing: {name}" for name in sorted(expected - tensors.keys())]
    problems += [
        f"not in the model: {name} {list(tensors[name][1].shape)}" for name in sorted(tensors.keys() - expected)
    ]
    for source, shape in plan.values():
        if all(name in tensors for name in source.names):
            found = [tensors[name][1].shape for name in source.names]
            want = torch_shape(source, shape)
            # Parts are joined along their first axis.
            joined = (sum(s[0] if s else 0 for s in found), *found[0][1:]) if len(found) > 1 else found[0]
            if joined != want or len(set(found)) > 1:
                names, have = " + ".join(source.names), " + ".join(str(list(s)) for s in found)
                problems.append(f"wrong shape: {names}: the config asks for {list(want)}, the file has {have}")
    width = config.backbone_config.hidden_size
    raise_problems(
        f"{path} does not fit its config ({config.backbone_config.num_hidden_layers} layers of width {width})",
        problems,
        "Is it the config of another size? Pass config=… to replace it." if problems else "",
    )
    return plan


def _refuse_other_models(path: Path, tensors: Tensors) -> None:
    signs = {
        "backbone.pretrained.": "Depth Anything 3",
        "rope": "DINOv3",
        "storage_tokens": "DINOv3",
        "register_tokens": "DINOv2 with registers",
        "prompt_depth": "Prompt Depth Anything",
        "metric_head": "ZoeDepth (Depth Anything V1 metric)",
        "motion_modules": "Video Depth Anything",
        "readout_projects": "DPT",
    }
    for sign, family in signs.items():
        if found := next((name for name in tensors if sign in name), None):
            raise WeightsError(f"{path} is {family} (it has {shown(found)}): dajax reads Depth Anything V1 and V2")


def _read_all(
    plan: Plan, tensors: Tensors, dtype: np.dtype | None, sharding: Any, check_finite: bool
) -> dict[str, Any]:
    place = _placement(sharding, plan)
    largest = max(info.stop - info.start for _, info in tensors.values())
    local = threading.local()
    has_float64 = _has_float64()

    def read(path: str) -> np.ndarray:
        if not hasattr(local, "buffer"):
            local.buffer = np.empty(largest, np.uint8)
        source, shape = plan[path]
        as_dtype = _kept_dtype(source, tensors, has_float64) if dtype is None else dtype
        return _read_one(source, shape, tensors, as_dtype, local.buffer, check_finite)

    # Arrays are placed by the caller's thread: `with jax.default_device(...)` and the like hold for that one only.
    params: dict[str, jax.Array] = {}
    ahead: deque[tuple[str, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(_READERS) as pool:
        for path in plan:
            ahead.append((path, pool.submit(read, path)))
            if len(ahead) > 2 * _READERS:
                first, future = ahead.popleft()
                params[first] = place(first, future.result())
        params |= {rest: place(rest, future.result()) for rest, future in ahead}
    return nest(params)


def _kept_dtype(source: Source, tensors: Tensors, has_float64: bool) -> np.dtype:
    """Return the type of the file, as far as jax has it."""
    dtypes = {tensors[name][1].dtype for name in source.names}
    found = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    return np.dtype(np.float32) if found == np.float64 and not has_float64 else found


def _read_one(
    source: Source, shape: Shape, tensors: Tensors, dtype: np.dtype, buffer: np.ndarray, check_finite: bool
) -> np.ndarray:
    parts = [tensors[name] for name in source.names]
    target = _aligned_empty(shape, dtype)
    # Seen with PyTorch's axes: what is read is cast and transposed in one pass, straight into its place.
    view, position = source.transform.to_torch(target), 0
    for name, (file, info) in zip(source.names, parts, strict=True):
        rows = info.shape[0] if len(parts) > 1 else None
        part = view if rows is None else view[position : position + rows]
        with np.errstate(over="ignore"):  # what becomes infinite is reported below
            copy_rearranged(part, file.read(name, buffer))
        position += rows or 0
    if check_finite and not _is_finite(target):
        raise WeightsError(
            f"{parts[0][0].path}: tensor {' + '.join(source.names)} has NaN or infinite values as {dtype}; "
            "check_finite=False loads it all the same"
        )
    return target


def _aligned_empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Return an empty array on a 64-byte boundary: jax takes such an array on the CPU as it is, without a copy."""
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
        flat = flatten(sharding)
        raise_problems("sharding does not fit the params", [f"missing: {path}" for path in plan if path not in flat])
        return lambda path, array: _put(path, array, flat[path])
    return lambda path, array: _put(path, array, sharding)


def _put(path: str, array: np.ndarray, sharding: Any) -> jax.Array:
    try:
        return jax.device_put(array, sharding)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sharding does not fit {path} {list(array.shape)}: {error}") from error
