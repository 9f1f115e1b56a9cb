"""Decides which tensors of a checkpoint become which parameters, and checks all names and shapes before any is read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dajax import limits
from dajax.config import DepthAnythingConfig, describes_model
from dajax.errors import AssumedKindWarning, ConfigError, WeightsError, shown
from dajax.json_fields import read_json
from dajax.weights.checkpoint_files import Files
from dajax.weights.mapping import Source, recognise, sources, torch_shape
from dajax.weights.names import plain_names
from dajax.weights.report import raise_problems
from dajax.weights.safetensors_io import SafetensorsFile
from dajax.weights.shapes import Shape, parameter_shapes
from dajax.weights.torch_files.torch_file import TorchFile

# Checkpoints of these kinds have tensors of the same names and shapes.
KINDS = ("relative", "metric-indoor", "metric-outdoor", "v1")

WeightsFile = SafetensorsFile | TorchFile


class Tensor(NamedTuple):
    """A tensor in a file, which is not read yet."""

    file: WeightsFile
    name: str
    dtype: np.dtype
    shape: Shape

    @property
    def nbytes(self) -> int:
        """The number of bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


# Keyed by the names in the tables.
Tensors = dict[str, Tensor]
# Maps each Flax path to its source and its shape.
Plan = dict[str, tuple[Source, Shape]]


def all_tensors(files: Sequence[WeightsFile]) -> Tensors:
    """Return the tensors of all shards.

    Raises:
        WeightsError: a tensor is in two shards, or the tensors are far larger than the files.
    """
    tensors: Tensors = {}
    problems = []
    for file in files:
        for name, info in file.tensors.items():
            if name in tensors:
                problems.append(f"{name} is in {tensors[name].file.path.name} and in {file.path.name}")
            tensors[name] = Tensor(file, name, info.dtype, info.shape)
    raise_problems(f"{files[0].path.parent}: tensors are in two shards", problems)
    values, stored = sum(tensor.nbytes for tensor in tensors.values()), sum(f.path.stat().st_size for f in files)
    if values > 2 * stored + limits.MAX_EXPANDED_BYTES:
        raise WeightsError(
            f"{files[0].path}: its tensors repeat {stored:,} stored bytes until they are {values:,}: no model does"
        )
    return {plain: tensors[name] for plain, name in plain_names(tensors, files[0].path).items()}


def choose_config(files: Files, tensors: Tensors, given: DepthAnythingConfig | None) -> DepthAnythingConfig:
    """Return the config: the given one, that of config.json, that of the file's name, or else a guess with a warning.

    Raises:
        WeightsError: nothing says what the config is.
        ConfigError: config.json is malformed.
    """
    named = None if files.alias is None else _without_absent(DepthAnythingConfig.from_pretrained(files.alias), tensors)
    if given is not None:
        config = given
    elif files.config is not None and (named is None or describes_model(read_json(files.config))):
        config = DepthAnythingConfig.from_file(files.config)
    elif named is not None:  # even beside the authors' own config.json, which says other things
        return named
    else:
        return _guess_config(files.weights, tensors)
    if named is not None and _kind(config, named) != _kind(named, config):
        warnings.warn(
            f"the name of {files.weights} says {files.alias!r}, {_kind(named, config)}, and its config says "
            f"{_kind(config, named)}. The tensors cannot decide; dajax follows the config",
            UserWarning,
            stacklevel=3,
        )
    return config


def _kind(config: DepthAnythingConfig, other: DepthAnythingConfig) -> str:
    """Describe what distinguishes checkpoints whose tensors look the same."""
    kind = f"metric with max_depth {config.max_depth:g}" if config.is_metric else "relative"
    if config.backbone_config.num_hidden_layers != other.backbone_config.num_hidden_layers:
        return kind  # then the size determines the taps
    return f"{kind} with taps after layers {', '.join(map(str, config.backbone_config.out_indices))}"


def _without_absent(config: DepthAnythingConfig, tensors: Tensors) -> DepthAnythingConfig:
    """Drop the mask token from the config if the file lacks it; the network does not use it."""
    if any(name.endswith("mask_token") for name in tensors):
        return config
    return replace(config, backbone_config=replace(config.backbone_config, use_mask_token=False))


def _guess_config(path: Path, tensors: Tensors) -> DepthAnythingConfig:
    size = _released_size(path, tensors)
    warnings.warn(
        f"{path} has no config.json beside it: dajax takes it for Depth Anything V2 {size}, relative. V1, V2 and "
        "metric checkpoints have the same tensors: if it is another, pass config=…",
        AssumedKindWarning,
        stacklevel=4,
    )
    return _without_absent(getattr(DepthAnythingConfig, size)(), tensors)


def config_of_kind(path: Path, tensors: Tensors, kind: str) -> DepthAnythingConfig:
    """Return the released config of a kind, of the size that the tensors have.

    Args:
        path: the file of weights, for messages.
        tensors: its tensors.
        kind: one of `KINDS`.

    Raises:
        ConfigError: there is no such kind.
        WeightsError: no released model has the size of these tensors.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {shown(kind)}")
    size = _released_size(path, tensors)
    constructors = {
        "relative": lambda: getattr(DepthAnythingConfig, size)(),
        "metric-indoor": lambda: DepthAnythingConfig.metric_indoor(size),
        "metric-outdoor": lambda: DepthAnythingConfig.metric_outdoor(size),
        "v1": lambda: DepthAnythingConfig.v1(size),
    }
    return _without_absent(constructors[kind](), tensors)


def _released_size(path: Path, tensors: Tensors) -> str:
    shapes = {tensor.shape for tensor in tensors.values()}
    for size in ("small", "base", "large", "giant"):
        config: DepthAnythingConfig = getattr(DepthAnythingConfig, size)()
        if (1, 1, config.backbone_config.hidden_size) in shapes and (config.fusion_hidden_size,) in shapes:
            return size
    raise WeightsError(f"{path} comes without a config.json and has no released size: pass config=…")


def make_plan(path: Path, tensors: Tensors, config: DepthAnythingConfig) -> Plan:
    """Check the name and shape of every tensor, and return where each parameter comes from.

    Raises:
        WeightsError: tensors are missing, are left over, or have another shape. The message lists all.
    """
    shapes = parameter_shapes(config)
    table = recognise(tensors.keys(), shapes.keys())
    plan = {flax: (source, shapes[flax]) for flax, source in sources(table, shapes).items()}
    expected = {name for source, _ in plan.values() for name in source.names}
    problems = [f"missing: {name}" for name in sorted(expected - tensors.keys())]
    problems += [
        f"not in the model: {tensors[name].name} {list(tensors[name].shape)}"
        for name in sorted(tensors.keys() - expected)
    ]
    mismatches = {}  # by tensor: a tensor of several parts is listed once
    for source, shape in plan.values():
        if all(name in tensors for name in source.names):
            found = [tensors[name].shape for name in source.names]
            want = torch_shape(source, shape)
            # Parts are concatenated along their first axis.
            joined = (sum(s[0] if s else 0 for s in found), *found[0][1:]) if len(found) > 1 else found[0]
            if joined != want or len(set(found)) > 1:
                names = " + ".join(tensors[name].name for name in source.names)
                have = " + ".join(str(list(s)) for s in found)
                mismatches[names] = f"wrong shape: {names}: the config asks for {list(want)}, the file has {have}"
    width = config.backbone_config.hidden_size
    problems += mismatches.values()
    raise_problems(
        f"{path} does not fit its config ({config.backbone_config.num_hidden_layers} layers of width {width})",
        problems,
        "Is it the config of another size? Pass config=… to replace it." if problems else "",
    )
    return plan


# Parts of names by which other families of depth models are known.
_SIGNS = {
    "backbone.pretrained.": "Depth Anything 3",
    "rope": "DINOv3",
    "storage_tokens": "DINOv3",
    "embeddings.patch_embeddings.weight": "DINOv3",  # before register_tokens, which it has too
    "register_tokens": "DINOv2 with registers",
    "prompt_depth": "Prompt Depth Anything",
    "resConfUnit_depth": "Prompt Depth Anything",
    "residual_layer_depth": "Prompt Depth Anything",
    "metric_head": "ZoeDepth (Depth Anything V1 metric)",
    "seed_bin_regressor": "ZoeDepth (Depth Anything V1 metric)",
    "conditional_log_binomial": "ZoeDepth (Depth Anything V1 metric)",
    "motion_modules": "Video Depth Anything",
    "readout_projects": "DPT",
    "act_postprocess": "DPT (MiDaS)",
}


def refuse_other_models(path: Path, tensors: Tensors) -> None:
    """Name the family of a checkpoint that is not Depth Anything V1 or V2.

    Raises:
        WeightsError: it is one of those that are known.
    """
    for sign, family in _SIGNS.items():
        if found := next((tensor.name for tensor in tensors.values() if sign in tensor.name), None):
            raise WeightsError(f"{path} is {family} (it has {shown(found)}): dajax reads Depth Anything V1 and V2")
