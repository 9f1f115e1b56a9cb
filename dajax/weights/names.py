"""Finds the tensors of a model in a checkpoint, whatever training scripts have put around their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from dajax.errors import WeightsError, shown
from dajax.weights.report import raise_problems, some_of

# Parts of names that are put in by torch.compile, activation checkpointing, FSDP (its newer and its older version), and
# DataParallel and DistributedDataParallel. They may stand anywhere in a name.
_INFIXES = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module", "module"})
# DINOv2 for sharded training keeps blocks in chunks; blocks are numbered through the whole model all the same.
_CHUNKED_BLOCK = re.compile(r"^pretrained\.blocks\.\d+\.(?=\d+\.)")
# Names of the small trained matrices of LoRA and its relatives, and of what peft makes of the weights below them.
_ADAPTER = re.compile(r"(?:^|\.)(?:(?:lora|hada|ia3|oft|vera|boft|lokr)_|base_layer\.|lora\.|adapters?\.)")
_PARAMETRIZATION = re.compile(r"(?:^|\.)parametrizations\.")


class Layout(NamedTuple):
    """How one implementation names its tensors.

    Attributes:
        name: what messages call the implementation.
        encoder: the beginning of all names of the encoder.
        rest: the beginnings of all names of neck and head.
        token: the name of the class token, which every encoder has once.
        table: what takes the place of `encoder` in the names of our tables.
    """

    name: str
    encoder: str
    rest: tuple[str, ...]
    token: str
    table: str


_LAYOUTS = (
    Layout("Transformers", "backbone.", ("neck.", "head."), "backbone.embeddings.cls_token", "backbone."),
    Layout("the authors' code", "pretrained.", ("depth_head.",), "pretrained.cls_token", "pretrained."),
    # Distill-Any-Depth calls the encoder "backbone", as Transformers does, but its parts as the authors do.
    Layout("Distill-Any-Depth", "backbone.", ("depth_head.",), "backbone.cls_token", "pretrained."),
    Layout("dajax", "backbone/", ("neck/", "head/"), "backbone/embeddings/cls_token", "backbone/"),
)
_TABLES = {"backbone.": "huggingface", "pretrained.": "official", "backbone/": "flax"}
# DINOv2 alone. What ends with the first token also ends with the second, so the order matters.
_BARE_LAYOUTS = (
    Layout("DINOv2 in Transformers", "", (), "embeddings.cls_token", "backbone."),
    Layout("DINOv2's authors", "", (), "cls_token", "pretrained."),
)


class NamedModel(NamedTuple):
    """The tensors of one model in a checkpoint.

    Attributes:
        prefix: what stands before the names of its tensors, in the file.
        layout: how it names them.
        names: {name in our tables: name in the file}, of all tensors below the encoder, the neck and the head.
    """

    prefix: str
    layout: Layout
    names: dict[str, str]

    @property
    def is_whole(self) -> bool:
        """Whether it has neck and head, too."""
        rest = self.layout.rest
        return bool(rest) and all(any(name.startswith(start) for name in self.names) for start in rest)

    @property
    def table(self) -> str:
        """The table that has these names, see `dajax.weights.mapping.TABLES`."""
        is_version_5 = any(name.endswith(".attention.q_proj.weight") for name in self.names)
        return "huggingface-5" if self.layout.table == "backbone." and is_version_5 else _TABLES[self.layout.table]


def find_models(names: Collection[str], where: object) -> list[NamedModel]:
    """Return the models in a checkpoint: each class token is that of one.

    Args:
        names: all names of the checkpoint.
        where: what an error calls the checkpoint.

    Raises:
        WeightsError: two names of one model mean the same tensor.
    """
    return _find(names, where, _LAYOUTS)


def find_bare_encoders(names: Collection[str], where: object) -> list[NamedModel]:
    """Return the DINOv2 encoders in a checkpoint that has no model; see `find_models`."""
    return _find(names, where, _BARE_LAYOUTS)


def _find(names: Collection[str], where: object, layouts: Sequence[Layout]) -> list[NamedModel]:
    found = []
    for name in names:
        for layout in layouts:
            if (prefix := _before(name, layout.token)) is not None:
                found.append((prefix, layout))
                break
    # A name belongs to the model with the longest prefix that it begins with.
    others = {prefix for prefix, _ in found}
    return [
        NamedModel(prefix, layout, _members(names, prefix, layout, others - {prefix}, where))
        for prefix, layout in found
    ]


def _before(name: str, token: str) -> str | None:
    """Return what stands before a class token in a name, or None if the name is not that of one."""
    if name.endswith(token):  # nearly always, and quickly decided
        prefix = name.removesuffix(token)
    elif name.endswith("cls_token") and "/" not in token:
        # The encoder itself may be wrapped: backbone._orig_mod.embeddings.cls_token.
        parts, wanted = name.split("."), token.split(".")
        start = next((i for i in range(len(parts)) if _plain(parts[i:]) == wanted and parts[i] == wanted[0]), None)
        if start is None:
            return None
        prefix = "".join(f"{part}." for part in parts[:start])
    else:
        return None
    return prefix if not prefix or prefix[-1] in "./" else None


def _plain(parts: Iterable[str]) -> list[str]:
    return [part for part in parts if part not in _INFIXES]


def _members(
    names: Collection[str], prefix: str, layout: Layout, others: Collection[str], where: object
) -> dict[str, str]:
    members: dict[str, str] = {}
    problems = []
    nested = tuple(other for other in others if other.startswith(prefix))
    for name in names:
        if not name.startswith(prefix) or (nested and name.startswith(nested)):
            continue
        plain = name.removeprefix(prefix)
        if "/" not in layout.encoder:
            plain = ".".join(_plain(plain.split(".")))
        if not plain.startswith((layout.encoder, *layout.rest)):
            continue
        if plain.startswith(layout.encoder):
            plain = _CHUNKED_BLOCK.sub("pretrained.blocks.", layout.table + plain.removeprefix(layout.encoder))
        if plain in members:
            problems.append(f"{members[plain]} and {name}")
        members[plain] = name
    raise_problems(f"{where}: two tensors have names that mean the same", problems)
    return members


def refuse_unmerged(names: Collection[str], where: object) -> None:
    """Refuse a checkpoint whose weights are yet to be computed from several tensors.

    Raises:
        WeightsError: it has adapters, or parametrizations.
    """
    if adapters := [name for name in names if _ADAPTER.search(name)]:
        raise WeightsError(
            f"{where} has adapters, {some_of(adapters)}: merge them into the weights first, where they were trained "
            "(peft: model.merge_and_unload()), and save the state dict"
        )
    if found := [name for name in names if _PARAMETRIZATION.search(name)]:
        raise WeightsError(
            f"{where} has weights in parts, {some_of(found)}: call torch.nn.utils.parametrize.remove_parametrizations "
            "for each module first, and save the state dict"
        )


def choose(models: Sequence[NamedModel], prefix: str | None, where: object) -> NamedModel:
    """Return the model of a prefix, or the only one.

    Args:
        models: the models in the checkpoint.
        prefix: what stands before its names, with or without the last dot; None if there should be only one.
        where: what an error calls the checkpoint.

    Raises:
        WeightsError: there are several, or none has this prefix.
    """
    listed = some_of([repr(model.prefix) for model in models], 8)
    if prefix is None:
        found = list(models)
    else:
        given = {prefix, f"{prefix}.", f"{prefix}/"}
        found = [model for model in models if model.prefix in given]
    if not found:
        raise WeightsError(f"{where} has no model with the prefix {shown(prefix)}; it has: {listed}")
    if len(found) > 1 and len({model.prefix for model in found}) == 1:
        layouts = " and ".join(model.layout.name for model in found)
        raise WeightsError(
            f"{where} has {len(found)} models with one prefix, {shown(found[0].prefix)}, and the names of {layouts}: "
            "save each in a file of its own"
        )
    if len(found) > 1:
        raise WeightsError(
            f"{where} has {len(found)} models, whose tensors begin with {listed}: say with prefix=… which one is meant"
        )
    return found[0]


def nearest_layout(names: Collection[str]) -> tuple[Layout, list[str]]:
    """Return the layout with which most of these names have something in common, and what of it is missing."""

    def count(start: str) -> int:
        pattern = re.compile(rf"(?:^|[./]){re.escape(start)}")
        return sum(pattern.search(name) is not None for name in names)

    def missing(layout: Layout) -> list[str]:
        return [start for start in (layout.token, *layout.rest) if not count(start)]

    best = max(_LAYOUTS, key=lambda layout: (-len(missing(layout)), count(layout.encoder)))
    return best, missing(best)
