"""Decides which tensors of a checkpoint become which parameters, and checks all names and shapes before any is read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dajax import limits
from dajax.config import KINDS, DepthAnythingConfig, describes_model
from dajax.errors import AssumedKindWarning, ConfigError, WeightsError, shown
from dajax.json_fields import read_json
from dajax.weights.checkpoint_files import Files
from dajax.weights.mapping import Source, sources, torch_shape
from dajax.weights.names import (
    NamedModel,
    choose,
    find_bare_encoders,
    find_models,
    nearest_layout,
    refuse_unmerged,
)
from dajax.weights.report import raise_problems, some_of
from dajax.weights.safetensors_io import SafetensorsFile
from dajax.weights.shapes import Shape, parameter_shapes
from dajax.weights.structure import consistent_structure, differences, encoder_structure, joined
from dajax.weights.torch_files.torch_file import TorchFile

WeightsFile = SafetensorsFile | TorchFile


class Tensor(NamedTuple):
    """A tensor in a file, which is not read yet.

    Attributes:
        problem: why it cannot be a param: its type; empty if it can be one.
    """

    file: WeightsFile
    name: str
    dtype: np.dtype
    shape: Shape
    problem: str = ""

    @property
    def nbytes(self) -> int:
        """The number of bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


# By name: the file's names, or those of a table.
Tensors = dict[str, Tensor]
# Maps each Flax path to its source and its shape.
Plan = dict[str, tuple[Source, Shape]]


class FoundModel(NamedTuple):
    """The model in a checkpoint.

    Attributes:
        tensors: by their names in the table.
        table: see `mapping.TABLES`.
        prefix: what stands before their names in the file.
        outside: the names of other tensors in the file.
    """

    tensors: Tensors
    table: str
    prefix: str
    outside: list[str]


def all_tensors(files: Sequence[WeightsFile]) -> Tensors:
    """Return the tensors of all shards, by the names in the files.

    Raises:
        WeightsError: a tensor is in two shards, or the tensors are far larger than the files.
    """
    tensors: Tensors = {}
    problems = []
    for file in files:
        found = [Tensor(file, name, info.dtype, info.shape) for name, info in file.tensors.items()]
        found += [Tensor(file, name, np.dtype(np.uint8), (), problem) for name, problem in file.unusable.items()]
        for tensor in found:
            if tensor.name in tensors:
                problems.append(f"{tensor.name} is in {tensors[tensor.name].file.path.name} and in {file.path.name}")
            tensors[tensor.name] = tensor
    raise_problems(f"{files[0].path.parent}: tensors are in two shards", problems)
    values, stored = sum(tensor.nbytes for tensor in tensors.values()), sum(f.path.stat().st_size for f in files)
    if values > 2 * stored + limits.MAX_EXPANDED_BYTES:
        raise WeightsError(
            f"{files[0].path}: its tensors repeat {stored:,} stored bytes until they are {values:,}: no model does"
        )
    return tensors


def find_model(path: Path, tensors: Tensors, prefix: str | None) -> FoundModel:
    """Return the one model in a checkpoint, or that with the given prefix.

    Args:
        path: the file of weights, for messages.
        tensors: all tensors, by the names in the files.
        prefix: what stands before the names of the model; None: it is the only one that fits.

    Raises:
        WeightsError: there is no model, there are several, its weights are not merged, or it is of another family.
    """
    refuse_unmerged(tensors, path)
    models = [model for model in find_models(tensors, path) if model.is_whole]
    if not models:
        raise _no_model(path, tensors)
    if prefix is None and len(models) > 1:
        # Half a copy, such as that of an optimizer, is no second model.
        models = [model for model in models if _is_consistent(model, tensors)] or models
    return _found(path, tensors, choose(models, prefix, path))


def find_encoder(path: Path, tensors: Tensors, prefix: str | None) -> tuple[FoundModel, bool]:
    """Return the encoder of the one model in a checkpoint, or a DINOv2 encoder alone; see `find_model`.

    Returns:
        The encoder's tensors, and whether there are a neck and a head as well.

    Raises:
        WeightsError: there is no encoder, there are several, its weights are not merged, or it is of another family.
    """
    refuse_unmerged(tensors, path)
    models = find_models(tensors, path) or find_bare_encoders(tensors, path)
    if not models:
        raise _no_model(path, tensors)
    chosen = choose(models, prefix, path)
    found = _found(path, tensors, chosen)
    inside = {plain: tensor for plain, tensor in found.tensors.items() if plain.startswith(chosen.layout.table)}
    return found._replace(tensors=inside), chosen.is_whole


def _found(path: Path, tensors: Tensors, chosen: NamedModel) -> FoundModel:
    refuse_other_models(path, chosen.names, tensors)
    inside = set(chosen.names.values())
    return FoundModel(
        {plain: tensors[name] for plain, name in chosen.names.items()},
        chosen.table,
        chosen.prefix,
        [name for name in tensors if name not in inside],
    )


def _is_consistent(model: NamedModel, tensors: Tensors) -> bool:
    """Whether these are all tensors of one model, whatever its config."""
    shapes = {plain: tensors[name].shape for plain, name in model.names.items()}
    return consistent_structure(model.table, shapes) is not None


_ENCODER_ALONE = (
    "it is no depth model. Training can start from it with a fresh head: encoder_only = true, or "
    "dajax.weights.load_encoder"
)


def _no_model(path: Path, tensors: Tensors) -> WeightsError:
    """Say what a checkpoint without a whole model is instead."""
    refuse_other_models(path, {name: name for name in tensors}, tensors)
    names = list(tensors)
    if parts := find_models(tensors, path):
        lacking = " and ".join(start.rstrip("./") for start in parts[0].layout.rest)
        some = some_of(list(parts[0].names.values()), 2)
        return WeightsError(f"{path} has an encoder ({some}) without {lacking}: {_ENCODER_ALONE}")
    if find_bare_encoders(tensors, path):
        return WeightsError(f"{path} is a DINOv2 encoder without neck and head ({some_of(names)}): {_ENCODER_ALONE}")
    layout, missing = nearest_layout(names)
    return WeightsError(
        f"{path} has no model of Depth Anything: its {len(names):,} tensors are named {some_of(names)}. The nearest "
        f"names are those of {layout.name}; {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    )


def choose_config(files: Files, tensors: Tensors, given: DepthAnythingConfig | None) -> DepthAnythingConfig:
    """Return the config: the given one, that of config.json, that of the file's name, or else a guess with a warning.

    Raises:
        WeightsError: nothing says what the config is.
        ConfigError: config.json is malformed.
    """
    named = None if files.alias is None else _without_absent(DepthAnythingConfig.from_pretrained(files.alias), tensors)
    if given is not None:
        config = given
    elif files.config is not None and not files.config.exists() and not files.config.is_symlink():
        raise WeightsError(
            f"{files.config.parent} has no config.json, which says what {files.weights.name} is: copy it, too, or name "
            "the file itself and pass config=…"
        )
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
        kind: one of `dajax.config.KINDS`.

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


_SIZES = ("small", "base", "large", "giant")


def _released_size(path: Path, tensors: Tensors) -> str:
    shapes = {tensor.shape for tensor in tensors.values()}
    for size in _SIZES:
        config: DepthAnythingConfig = getattr(DepthAnythingConfig, size)()
        if (1, 1, config.backbone_config.hidden_size) in shapes and (config.fusion_hidden_size,) in shapes:
            return size
    raise WeightsError(
        f"{path} comes without a config.json, and no released model has its size: only the config of its own model can "
        "say what it is (config=…)"
    )


def encoder_config(path: Path, found: FoundModel) -> DepthAnythingConfig:
    """Return the config of a relative model with an encoder that came alone, as its shapes show it.

    Taps, neck and head are those of the released model with such an encoder; without one, the taps divide the layers
    evenly, and neck and head are those of Small.

    Raises:
        WeightsError: the shapes are those of no encoder.
        ConfigError: the encoder is out of bounds.
    """
    encoder = encoder_structure(found.table, {name: tensor.shape for name, tensor in found.tensors.items()})
    if encoder is None:
        names = some_of([tensor.name for tensor in found.tensors.values()])
        raise WeightsError(f"{path}: the shapes of its encoder's tensors ({names}) are not those of DINOv2")
    depth, width = encoder.num_hidden_layers, encoder.hidden_size
    released = [getattr(DepthAnythingConfig, size)() for size in _SIZES]
    for config in released:
        if (config.backbone_config.num_hidden_layers, config.backbone_config.hidden_size) == (depth, width):
            encoder = replace(encoder, out_indices=config.backbone_config.out_indices)
            return replace(config, backbone_config=encoder, patch_size=encoder.patch_size)
    encoder = replace(encoder, out_indices=tuple(depth * quarter // 4 for quarter in range(1, 5)))
    return replace(released[0], backbone_config=encoder, patch_size=encoder.patch_size, reassemble_hidden_size=width)


def make_plan(path: Path, model: FoundModel, config: DepthAnythingConfig, part: str = "") -> Plan:
    """Check the name, type and shape of every tensor, and return where each parameter comes from.

    Args:
        path: the file of weights, for messages.
        model: its tensors.
        config: what they are to fit.
        part: the beginning of the paths of the parameters that are wanted; empty: all.

    Raises:
        WeightsError: tensors are missing, are left over, or have another type or shape. The message has a few of each
            kind; or, if the config is that of another size, its fields that differ.
    """
    tensors = model.tensors
    shapes = {flax: shape for flax, shape in parameter_shapes(config).items() if flax.startswith(part)}
    plan = {flax: (source, shapes[flax]) for flax, source in sources(model.table, shapes).items()}
    expected = {name for source, _ in plan.values() for name in source.names}
    missing = sorted(expected - tensors.keys())
    extra = [f"{tensors[name].name} {list(tensors[name].shape)}" for name in sorted(tensors.keys() - expected)]
    types = [f"{tensors[name].name}: {tensors[name].problem}" for name in sorted(expected & tensors.keys())]
    problems = [
        *_some("missing", missing),
        *_some("not in the model", extra),
        *_some("wrong type", [line for line in types if not line.endswith(": ")]),
        *_some("wrong shape", _wrong_shapes(plan, tensors)),
    ]
    if not problems:
        return plan
    backbone = config.backbone_config
    summary = f"{path} does not fit its config ({backbone.num_hidden_layers} layers of width {backbone.hidden_size})"
    structure = consistent_structure(model.table, {name: tensor.shape for name, tensor in tensors.items()})
    if structure is not None and (others := differences(config, structure)):
        raise_problems(
            f"{summary}, which is of another model",
            others,
            "Write what the tensors have into config.json, or pass config=… to replace it.",
        )
    raise_problems(summary, problems)
    return plan


def _wrong_shapes(plan: Plan, tensors: Tensors) -> list[str]:
    found = {}  # by tensor: a tensor of several parts is listed once
    for source, shape in plan.values():
        if not all(name in tensors and not tensors[name].problem for name in source.names):
            continue
        have = [tensors[name].shape for name in source.names]
        want = torch_shape(source, shape)
        if joined(have) != want:
            names = " + ".join(tensors[name].name for name in source.names)
            shown_have = " + ".join(str(list(s)) for s in have)
            found[names] = f"{names}: the config asks for {list(want)}, the file has {shown_have}"
    return list(found.values())


def _some(kind: str, items: Sequence[str], most: int = 6) -> list[str]:
    """Return lines for the first items of a kind, and how many more there are."""
    lines = [f"{kind}: {item}" for item in items[:most]]
    return lines + ([f"{kind}: {len(items) - most:,} more"] if len(items) > most else [])


# Parts of names by which other families of depth models are known.
_SIGNS = {
    "backbone.pretrained.": "Depth Anything 3",
    "rope": "DINOv3",
    "storage_tokens": "DINOv3",
    "embeddings.patch_embeddings.weight": "DINOv3",  # before register_tokens, which it has too
    "register_tokens": "DINOv2 with registers",
    "reg_token": "DINOv2 with registers",
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


# These stand beside a whole Depth Anything model, which is a part of theirs.
_AROUND = ("metric_head", "seed_bin_regressor", "conditional_log_binomial")


def refuse_other_models(path: Path, names: Mapping[str, str], all_names: Iterable[str]) -> None:
    """Name the family of a checkpoint that is not Depth Anything V1 or V2.

    Args:
        path: the file of weights, for messages.
        names: {name without prefix and wrappers: name in the file} of the model.
        all_names: the names of all tensors in the file.

    Raises:
        WeightsError: it is one of those that are known.
    """
    everywhere = {name: name for name in all_names}
    for sign, family in _SIGNS.items():
        searched = everywhere if sign in _AROUND else names
        if found := next((name for plain, name in searched.items() if sign in plain), None):
            raise WeightsError(f"{path} is {family} (it has {shown(found)}): dajax reads Depth Anything V1 and V2")
