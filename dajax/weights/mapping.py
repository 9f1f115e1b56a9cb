"""Names of tensors in checkpoints <-> paths of Flax parameters, as tables.

A row says where one Flax parameter comes from: its path, the PyTorch tensors whose first axes are joined for it, and
how their axes are rearranged. `{name}` stands for any part without a dot or slash, the same on both sides. Tables are
read in both directions, so what loads can be saved.
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


class Row(NamedTuple):
    """One row of a table."""

    flax: str
    torch: tuple[str, ...]
    transform: str = "same"


class Source(NamedTuple):
    """Where one Flax parameter comes from."""

    names: tuple[str, ...]
    transform: Transform


def _layer(flax: str, torch: str, transform: str) -> list[Row]:
    """Return the rows of a layer with weight and bias."""
    return [
        Row(f"{flax}/kernel", (f"{torch}.weight",), transform),
        Row(f"{flax}/bias", (f"{torch}.bias",)),
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

# The first row that fits is taken, so that special rows stand before general ones.
TABLES: dict[str, list[Row]] = {
    # What the Hub's files have, and what every version of Transformers reads and writes.
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
    # dajax's own files: a parameter is named by its path.
    "flax": [Row("{path}", ("{path}",))],
}


def sources(table: str, paths: Collection[str]) -> dict[str, Source]:
    """Return where each Flax path comes from in files that are named by `table`.

    Raises:
        KeyError: a path is not in the table (the model and the table do not fit: a bug, found by tests).
    """
    if table == "flax":
        return {path: Source((path,), TRANSFORMS["same"]) for path in paths}
    rows = [(_pattern(row.flax), row) for row in TABLES[table]]
    return {path: _source(rows, path) for path in paths}


def recognise(names: Collection[str], paths: Collection[str]) -> str:
    """Return the table under which the most of `names` are known."""
    known = {table: {n for s in sources(table, paths).values() for n in s.names} for table in TABLES}
    return max(known, key=lambda table: len(known[table].intersection(names)))


def torch_shape(source: Source, shape: Shape) -> Shape:
    """Return the shape of the (joined) PyTorch tensor of a Flax parameter of `shape`."""
    # A view on one element has the right strides to be transposed, and takes no memory.
    return source.transform.to_torch(np.broadcast_to(np.float32(0), shape)).shape


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^./]+)", re.escape(template)))


def _source(rows: list[tuple[re.Pattern[str], Row]], path: str) -> Source:
    for pattern, row in rows:
        if match := pattern.fullmatch(path):
            return Source(tuple(_fill(name, match.groupdict()) for name in row.torch), TRANSFORMS[row.transform])
    raise KeyError(f"no row of the table fits {path}")


def _fill(template: str, values: Mapping[str, str]) -> str:
    return template.format(**values)
