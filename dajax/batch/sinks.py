"""The bytes that a job writes: a few files for each image, or output shards of many images."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from dajax.batch.decode_pool import Decoded
from dajax.batch.items import Item
from dajax.batch.manifest import Row
from dajax.batch.quality import FIGURES, quality
from dajax.checkpoints import licence_of
from dajax.depth_maps import encode
from dajax.depth_maps.naming import digest
from dajax.errors import ConfigError, ImageError, missing_extra

TAR, PARQUET = ".tar", ".parquet"


@dataclass(frozen=True)
class Encoding:
    """How a depth map becomes files.

    Attributes:
        formats: any of "color", "npy", "npz", "png16", "tiff", "pfm" and "exr".
        values: "float32" or "float16", for npy and npz.
        colormap: For "color".
        kind: "relative" or "metric", which is written into the files where the format allows it.
        model: the model's name, likewise.
        style: the style of preprocessing, likewise.
        png_scale: the metres of a step of "png16"; None: each file has its own.
        max_depth: the largest depth of a metric model, in metres; None for relative models.
    """

    formats: tuple[encode.Format, ...]
    values: encode.Values
    colormap: str
    kind: str
    model: str
    style: str
    png_scale: float | None = None
    max_depth: float | None = None

    def about(self) -> dict[str, str]:
        """Return what output shards say about all their depth maps."""
        return encode.described(self.kind, self.model, self.style) | {"licence": licence_of(self.model)}

    def check(self) -> None:
        """Raise ConfigError or ImageError if files cannot be made like this."""
        unknown = [form for form in self.formats if form not in encode.ENDINGS]
        if unknown or not self.formats or len(set(self.formats)) != len(self.formats):
            raise ConfigError(f"formats must be some of {', '.join(encode.ENDINGS)}, each once; got {self.formats}")
        if self.values not in get_args(encode.Values):
            raise ConfigError(f"values must be float32 or float16, got {self.values!r}")
        if self.values == "float16" and not {"npy", "npz"} & set(self.formats):
            raise ConfigError(f"values = 'float16' goes with npy or npz, not with {', '.join(self.formats)} alone")
        encode.color([[0.0]], self.colormap)
        self.files(np.zeros((1, 1), np.float32))  # fails now if a library is not installed

    def files(self, depth: np.ndarray) -> list[tuple[str, bytes]]:
        """Return the ending and the bytes of each file of a depth map.

        Args:
            depth: float32 [height, width].

        Raises:
            ImageError: it has values that are not finite, or that do not fit into `values`.
        """
        about: Any = {"kind": self.kind, "model": self.model, "style": self.style}
        options: Any = {"values": self.values, "colormap": self.colormap, "png_scale": self.png_scale}
        return [(encode.ENDINGS[form], encode.encoded(form, depth, **about, **options)) for form in self.formats]


@dataclass(frozen=True)
class Outcome:
    """What became of one item, before it is written.

    Attributes:
        item: the item.
        name: the name of its output, without ending.
        files: the ending and the bytes of each file; empty if the item was rejected.
        shape: (height, width) of the depth map.
        notes: what the reader said about the image, and what its files lack.
        reason: Why the item was rejected; "" if it was not.
        quality: see `dajax.batch.quality.quality`.
        stamp: what tells whether the image changes later; "" if not known.
    """

    item: Item
    name: str
    files: list[tuple[str, bytes]]
    shape: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""
    quality: dict[str, float] = field(default_factory=dict)
    stamp: str = ""


def rejected(decoded: Decoded, name: str, reason: str) -> Outcome:
    """Return the outcome of an item without output."""
    return Outcome(decoded.item, name, [], (), decoded.notes, reason, stamp=decoded.stamp)


def encoded(encoding: Encoding, decoded: Decoded, name: str, depth: np.ndarray, flip: float | None) -> Outcome:
    """Return the outcome of an item with this depth map; it is a reject if the depth map cannot be encoded.

    Args:
        encoding: how the depth map becomes files.
        decoded: the image.
        name: the name of its output, without ending.
        depth: float32 [height, width].
        flip: the mean disagreement with the depth of the mirror image; None if it was not asked for.
    """
    try:
        files = encoding.files(depth)
        notes = (*decoded.notes, *(() if encoding.png_scale is None else encode.misfits(depth, encoding.png_scale)))
    except ImageError as error:
        return rejected(decoded, name, str(error))
    figures = quality(depth, encoding.max_depth, flip)
    return Outcome(decoded.item, name, files, depth.shape, notes, "", figures, decoded.stamp)


def row_of(outcome: Outcome, output: list[str]) -> Row:
    """Return the manifest's row of an outcome whose files have the names `output`."""
    key, notes = outcome.item.key, list(outcome.notes)
    if outcome.reason:
        return Row(key, "rejected", reason=outcome.reason, notes=notes, stamp=outcome.stamp)
    digests = [hashlib.sha256(data).hexdigest() for _, data in outcome.files]
    shape = list(outcome.shape)
    return Row(key, "done", output, digests, shape, notes=notes, quality=outcome.quality, stamp=outcome.stamp)


class Shards(ABC):
    """Makes output shards: one file of many outcomes. The same outcomes give the same bytes.

    Args:
        about: what each output shard says about all its depth maps: kind, units, model, licence and so on.
    """

    suffix: str

    def __init__(self, about: Mapping[str, str]) -> None:
        self._about = dict(about)

    @abstractmethod
    def pack(self, outcomes: Sequence[Outcome]) -> bytes:
        """Return the content of an output shard."""

    def name(self, number: int) -> str:
        """Return the name of the output shard with this number."""
        return f"depth-{number:06}{self.suffix}"


class TarShards(Shards):
    """WebDataset: each image has the members NAME.depth.npy (one for each format) and NAME.json.

    By POSIX.1-2001 (pax interchange format) a member is a header of 512 bytes and its data, filled up to a multiple of
    512; WebDataset takes members in a row with the same name before the first dot for one sample.
    """

    suffix = TAR

    def pack(self, outcomes: Sequence[Outcome]) -> bytes:
        """See `Shards`."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for outcome in outcomes:
                if outcome.reason:
                    continue
                stem = _sample_name(outcome.name)
                about: dict[str, Any] = {"key": outcome.item.key, "shape": list(outcome.shape)}
                about |= {"notes": list(outcome.notes), "quality": outcome.quality} | self._about
                # All members of a sample have the same stem, and the field begins behind the first dot.
                members = [(ending.replace("_", ".", 1), data) for ending, data in outcome.files]
                for field, data in [*members, (".json", json.dumps(about).encode("ascii"))]:
                    member = tarfile.TarInfo(stem + field)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        return stream.getvalue()


def _sample_name(name: str) -> str:
    """Return the name without dots in its last part, where a dot would end it; distinct names stay distinct."""
    folder, slash, last = name.rpartition("/")
    if "." in last:
        last = f"{last.replace('.', '_')}-{digest(name).hex()[:8]}"
    return folder + slash + last


class ParquetShards(Shards):
    """Parquet: each image has a row with key, size and quality, and a column of bytes for each format.

    The metadata of the schema says what holds for all rows. By the Apache Parquet format a file begins and ends with
    "PAR1", and a footer before the end has the schema.
    """

    suffix = PARQUET

    def __init__(self, about: Mapping[str, str]) -> None:
        super().__init__(about)
        pyarrow_parquet()

    def pack(self, outcomes: Sequence[Outcome]) -> bytes:
        """See `Shards`."""
        pq = pyarrow_parquet()
        import pyarrow as pa

        kept = [outcome for outcome in outcomes if not outcome.reason]
        columns: dict[str, Any] = {
            # Names that are not Unicode are written with escapes, as in the manifest.
            "key": pa.array([o.item.key.encode("utf-8", "backslashreplace").decode() for o in kept], pa.string()),
            "height": pa.array([o.shape[0] for o in kept], pa.int32()),
            "width": pa.array([o.shape[1] for o in kept], pa.int32()),
        }
        for name in FIGURES:
            columns[name] = pa.array([o.quality.get(name) for o in kept], pa.float64())
        for place, (ending, _) in enumerate(kept[0].files if kept else []):
            data = [o.files[place][1] for o in kept]
            columns[ending.lstrip("_").replace(".", "_")] = pa.array(data, pa.large_binary())
        stream = io.BytesIO()
        pq.write_table(pa.table(columns).replace_schema_metadata(self._about), stream)
        return stream.getvalue()


def pyarrow_parquet() -> Any:
    """Return `pyarrow.parquet`.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(missing_extra("parquet", "Parquet shards need pyarrow")) from error
    return pyarrow.parquet


def make_shards(form: str, about: Mapping[str, str]) -> Shards:
    """Return the maker of "tar" or "parquet" output shards that say `about` of themselves.

    Raises:
        ConfigError: `form` is neither, or pyarrow is not installed.
    """
    if form == "tar":
        return TarShards(about)
    if form == "parquet":
        return ParquetShards(about)
    raise ConfigError(f"shards are tar or parquet, got {form!r}")
