"""Names of tensors in checkpoints <-> paths of Flax parameters, as tables.

A row says where one Flax parameter comes from: its path, the PyTorch tensors whose first axes are joined for it (or
which part of one it is), and how their axes are rearranged. `{name}` stands for any part without a dot or slash, the
same on both sides. Tables are read in both directions, so what loads can be saved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """How the axes of a PyTorch tensor become those of a Flax one, and back."""

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


TRANSFORMS = {
    "same": Transform(lambda x: x, lambda x: x),
    "linear": Transform(lambda x: x.T, lambda x: x.T),  # [out, in] <-> [in, out]
    "pointwise": Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),  # [out, in, 1, 1] <-> [in, out]
    "conv": Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),  # OIHW <-> HWIO
    "deconv": Transform(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1)),  # IOHW <-> HWIO
}


class Part(NamedTuple):
    """One of several equal parts of a tensor's first axis, counted from 0."""

    number: int
    of: int


WHOLE = Part(0, 1)


class Row(NamedTuple):
    """One row of a table."""

    flax: str
    torch: tuple[str, ...]
    transform: str = "same"
    part: Part = WHOLE


class Source(NamedTuple):
    """The source of one Flax parameter: tensors to concatenate, or a part of one tensor."""

    names: tuple[str, ...]
    transform: Transform
    part: Part = WHOLE


def _layer(flax: str, torch: str, transform: str, part: Part = WHOLE) -> list[Row]:
    """Return the rows of a layer with weight and bias."""
    return [
        Row(f"{flax}/kernel", (f"{torch}.weight",), transform, part),
        Row(f"{flax}/bias", (f"{torch}.bias",), "same", part),
    ]


def _norm(flax: str, torch: str) -> list[Row]:
    return [Row(f"{flax}/scale", (f"{torch}.weight",)), Row(f"{flax}/bias", (f"{torch}.bias",))]


_HF_COMMON = [
    Row("backbone/embeddings/{token}", ("backbone.embeddings.{token}",)),
    *_layer("backbone/embeddings/patch_embeddings", "backbone.embeddings.patch_embeddings.projection", "conv"),
    *_norm("backbone/layer_{i}/{norm}", "backbone.encoder.layer.{i}.{norm}"),
    Row("backbone/layer_{i}/{scale}/lambda1", ("backbone.encoder.layer.{i}.{scale}.lambda1",)),
    *_layer("backbone/layer_{i}/mlp/{fc}", "backbone.encoder.layer.{i}.mlp.{fc}", "linear"),
    *_norm("backbone/layernorm", "backbone.layernorm"),
    *_layer("neck/reassemble_{i}/projection", "neck.reassemble_stage.layers.{i}.projection", "pointwise"),
    *_layer("neck/reassemble_{i}/upsample", "neck.reassemble_stage.layers.{i}.resize", "deconv"),
    *_layer("neck/reassemble_{i}/downsample", "neck.reassemble_stage.layers.{i}.resize", "conv"),
    Row("neck/conv_{i}/kernel", ("neck.convs.{i}.weight",), "conv"),
    *_layer("neck/fusion_{i}/projection", "neck.fusion_stage.layers.{i}.projection", "pointwise"),
    *_layer("neck/fusion_{i}/{unit}/{conv}", "neck.fusion_stage.layers.{i}.{unit}.{conv}", "conv"),
    *_layer("head/conv3", "head.conv3", "pointwise"),
    *_layer("head/{conv}", "head.{conv}", "conv"),
]

_V4 = "backbone.encoder.layer.{i}.attention"
_V5_MLP = "backbone.encoder.layer.{i}.mlp"

_BLOCK = "pretrained.blocks.{i}"
_SCRATCH = "depth_head.scratch"

# The authors' names. `names` translates their variants (chunked blocks, wrapped models, Distill-Any-Depth) into these.
_OFFICIAL = [
    Row("backbone/embeddings/cls_token", ("pretrained.cls_token",)),
    Row("backbone/embeddings/position_embeddings", ("pretrained.pos_embed",)),
    Row("backbone/embeddings/mask_token", ("pretrained.mask_token",)),
    *_layer("backbone/embeddings/patch_embeddings", "pretrained.patch_embed.proj", "conv"),
    *_norm("backbone/layer_{i}/{norm}", f"{_BLOCK}.{{norm}}"),
    *_layer("backbone/layer_{i}/attention/query", f"{_BLOCK}.attn.qkv", "linear", Part(0, 3)),
    *_layer("backbone/layer_{i}/attention/key", f"{_BLOCK}.attn.qkv", "linear", Part(1, 3)),
    *_layer("backbone/layer_{i}/attention/value", f"{_BLOCK}.attn.qkv", "linear", Part(2, 3)),
    *_layer("backbone/layer_{i}/attention/output", f"{_BLOCK}.attn.proj", "linear"),
    Row("backbone/layer_{i}/layer_scale1/lambda1", (f"{_BLOCK}.ls1.gamma",)),
    Row("backbone/layer_{i}/layer_scale2/lambda1", (f"{_BLOCK}.ls2.gamma",)),
    *_layer("backbone/layer_{i}/mlp/weights_in", f"{_BLOCK}.mlp.w12", "linear"),
    *_layer("backbone/layer_{i}/mlp/weights_out", f"{_BLOCK}.mlp.w3", "linear"),
    *_layer("backbone/layer_{i}/mlp/{fc}", f"{_BLOCK}.mlp.{{fc}}", "linear"),
    *_norm("backbone/layernorm", "pretrained.norm"),
    *_layer("neck/reassemble_{i}/projection", "depth_head.projects.{i}", "pointwise"),
    *_layer("neck/reassemble_{i}/upsample", "depth_head.resize_layers.{i}", "deconv"),
    *_layer("neck/reassemble_{i}/downsample", "depth_head.resize_layers.{i}", "conv"),
    # Levels are counted from 1, from the finest; fusion stages here from 0, from the coarsest.
    *(Row(f"neck/conv_{i}/kernel", (f"{_SCRATCH}.layer{i + 1}_rn.weight",), "conv") for i in range(4)),
    *(
        row
        for i in range(4)
        for row in (
            *_layer(f"neck/fusion_{i}/projection", f"{_SCRATCH}.refinenet{4 - i}.out_conv", "pointwise"),
            *(
                row
                for unit in (1, 2)
                for conv in (1, 2)
                for row in _layer(
                    f"neck/fusion_{i}/residual_layer{unit}/convolution{conv}",
                    f"{_SCRATCH}.refinenet{4 - i}.resConfUnit{unit}.conv{conv}",
                    "conv",
                )
            ),
        )
    ),
    *_layer("head/conv1", f"{_SCRATCH}.output_conv1", "conv"),
    *_layer("head/conv2", f"{_SCRATCH}.output_conv2.0", "conv"),
    *_layer("head/conv3", f"{_SCRATCH}.output_conv2.2", "pointwise"),
]

# The first row that fits is used, so special rows stand before general ones.
TABLES: dict[str, list[Row]] = {
    # The names in the Hub's files, which every version of Transformers reads and writes.
    "huggingface": [
        *_layer("backbone/layer_{i}/attention/output", f"{_V4}.output.dense", "linear"),
        *_layer("backbone/layer_{i}/attention/{qkv}", f"{_V4}.attention.{{qkv}}", "linear"),
        *_HF_COMMON,
    ],
    # The names of the modules of Transformers 5.
    "huggingface-5": [
        *_layer("backbone/layer_{i}/attention/query", f"{_V4}.q_proj", "linear"),
        *_layer("backbone/layer_{i}/attention/key", f"{_V4}.k_proj", "linear"),
        *_layer("backbone/layer_{i}/attention/value", f"{_V4}.v_proj", "linear"),
        *_layer("backbone/layer_{i}/attention/output", f"{_V4}.o_proj", "linear"),
        Row(
            "backbone/layer_{i}/mlp/weights_in/kernel",
            (f"{_V5_MLP}.gate_proj.weight", f"{_V5_MLP}.up_proj.weight"),
            "linear",
        ),
        Row("backbone/layer_{i}/mlp/weights_in/bias", (f"{_V5_MLP}.gate_proj.bias", f"{_V5_MLP}.up_proj.bias")),
        *_layer("backbone/layer_{i}/mlp/weights_out", f"{_V5_MLP}.down_proj", "linear"),
        *_HF_COMMON,
    ],
    "official": _OFFICIAL,
    # dajax's own files name a parameter by its path.
    "flax": [Row("{path}", ("{path}",))],
}


def sources(table: str, paths: Collection[str]) -> dict[str, Source]:
    """Return the source of each Flax path in files that use the names of `table`.

    Raises:
        KeyError: a path is not in the table (the model and the table do not fit: a bug, found by tests).
    """
    if table == "flax":
        return {path: Source((path,), TRANSFORMS["same"]) for path in paths}
    rows = [(_pattern(row.flax), row) for row in TABLES[table]]
    return {path: _source(rows, path) for path in paths}


def flax_shapes(table: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return {Flax path: shape} of the tensors that the table knows.

    Where two kinds of layers have one name in the file, the path is that of the first in the table.

    Args:
        table: see `TABLES`.
        shapes: {name of the tensor: shape}.
    """
    if table == "flax":
        return dict(shapes)
    rows = [(_pattern(name), place, row) for row in TABLES[table] for place, name in enumerate(row.torch)]
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        for pattern, place, row in rows:
            if not shape or not (match := pattern.fullmatch(name)):
                continue
            if place:  # the first of the tensors that are joined stands for all
                break
            whole = (shape[0] * len(row.torch) // row.part.of, *shape[1:])
            try:
                to_flax = TRANSFORMS[row.transform].to_flax(np.broadcast_to(np.float32(0), whole))
            except (ValueError, IndexError):  # it has another rank
                continue
            found.setdefault(_fill(row.flax, match.groupdict()), to_flax.shape)
            if row.part.of == 1:
                break
    return found


def torch_shape(source: Source, shape: Shape) -> Shape:
    """Return the shape of the PyTorch tensor (after concatenation) that a Flax parameter of `shape` is made of."""
    # A view of one element can be transposed and takes no memory.
    rows, *rest = source.transform.to_torch(np.broadcast_to(np.float32(0), shape)).shape
    return (rows * source.part.of, *rest)


def targets(found: Mapping[str, Source]) -> dict[str, list[str]]:
    """Return {PyTorch tensor: the Flax paths that are its parts, in order}: how to save what `sources` says.

    Only for tables in which no parameter is joined from several tensors.
    """
    parts: dict[str, list[str]] = {}
    for path in sorted(found, key=lambda path: found[path].part.number):
        (name,) = found[path].names
        parts.setdefault(name, []).append(path)
    return parts


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^./]+)", re.escape(template)))


def _source(rows: list[tuple[re.Pattern[str], Row]], path: str) -> Source:
    for pattern, row in rows:
        if match := pattern.fullmatch(path):
            names = tuple(_fill(name, match.groupdict()) for name in row.torch)
            return Source(names, TRANSFORMS[row.transform], row.part)
    raise KeyError(f"no row of the table fits {path}")


def _fill(template: str, values: Mapping[str, str]) -> str:
    return template.format(**values)
