"""What a job writes: a few files for each image, or shards of many images."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from dajax.batch.items import Item
from dajax.batch.manifest import Row
from dajax.depth_maps import encode
from dajax.depth_maps.naming import digest
from dajax.errors import ConfigError, ImageError


@dataclass(frozen=True)
class Encoding:
    """How depth becomes bytes.

    Attributes:
        formats: any of "color", "npy", "npz", "png16", "tiff", "pfm" and "exr".
        values: "float32" or "float16", of npy and npz.
        colormap: of "color".
        kind: "relative" or "metric".
        model: name to put into the files.
        style: of the preprocessing, to put into them as well.
    """

    formats: tuple[str, ...]
    values: encode.Values
    colormap: str
    kind: str
    model: str
    style: str

    def check(self) -> None:
        """Raise ConfigError or ImageError where this cannot be done."""
        unknown = [form for form in self.formats if form not in encode.ENDINGS]
        if unknown or not self.formats or len(set(self.formats)) != len(self.formats):
            raise ConfigError(f"formats must be some of {', '.join(encode.ENDINGS)}, each once; got {self.formats}")
        if self.values not in get_args(encode.Values):
            raise ConfigError(f"values must be float32 or float16, got {self.values!r}")
        if self.values == "float16" and not {"npy", "npz"} & set(self.formats):
            raise ConfigError(f"values = 'float16' goes with npy or npz, not with {', '.join(self.formats)} alone")
        encode.color([[0.0]], self.colormap)
        self.files(np.zeros((1, 1), np.float32))  # what is not installed shows now

    def files(self, depth: np.ndarray) -> list[tuple[str, bytes]]:
        """Return the ending and the bytes of each file of a depth map.

        Raises:
            ImageError: it has values that are not finite, or that do not fit into `values`.
        """
        about: Any = {"kind": self.kind, "model": self.model, "style": self.style}
        options: Any = {"values": self.values, "colormap": self.colormap}
        return [(encode.ENDINGS[form], encode.encoded(form, depth, **about, **options)) for form in self.formats]


@dataclass(frozen=True)
class Outcome:
    """What became of one item, on its way to be written.

    Attributes:
        item: which one.
        name: of its output, without ending.
        files: ending and bytes; none if it was rejected.
        shape: [height, width] of the depth map.
        notes: of the reader.
        reason: why it was rejected.
    """

    item: Item
    name: str
    files: list[tuple[str, bytes]]
    shape: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""


def rejected(item: Item, name: str, reason: str, notes: tuple[str, ...] = ()) -> Outcome:
    """Return the outcome of an item without output."""
    return Outcome(item, name, [], (), notes, reason)


def row_of(outcome: Outcome, output: list[str]) -> Row:
    """Return the manifest's row of an outcome whose files are `output`."""
    if outcome.reason:
        return Row(outcome.item.key, "rejected", reason=outcome.reason, notes=list(outcome.notes))
    digests = [hashlib.sha256(data).hexdigest() for _, data in outcome.files]
    return Row(outcome.item.key, "done", output, digests, list(outcome.shape), notes=list(outcome.notes))


class Shards(ABC):
    """Makes the bytes of one file of many outcomes. The same outcomes give the same bytes."""

    suffix: str

    @abstractmethod
    def pack(self, outcomes: Sequence[Outcome]) -> bytes:
        """Return the file."""

    def name(self, number: int) -> str:
        """Return the name of the shard with this number."""
        return f"depth-{number:06}{self.suffix}"


class TarShards(Shards):
    """WebDataset: of each sample NAME.depth.npy and so on, and NAME.json; a dot in a name would end it."""

    suffix = ".tar"

    def pack(self, outcomes: Sequence[Outcome]) -> bytes:
        """See `Shards`."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for outcome in outcomes:
                if outcome.reason:
                    continue
                stem = _sample_name(outcome.name)
                about = {"key": outcome.item.key, "shape": list(outcome.shape), "notes": list(outcome.notes)}
                # All of a sample have one stem, and WebDataset's field is what stands behind its first dot.
                members = [(ending.replace("_", ".", 1), data) for ending, data in outcome.files]
                for field, data in [*members, (".json", json.dumps(about).encode("ascii"))]:
                    member = tarfile.TarInfo(stem + field)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        return stream.getvalue()


def _sample_name(name: str) -> str:
    """Return the name without dots in its last part, and distinct from that of every other name."""
    folder, slash, last = name.rpartition("/")
    if "." in last:
        last = f"{last.replace('.', '_')}-{digest(name).hex()[:8]}"
    return folder + slash + last


class ParquetShards(Shards):
    """A row for each image: key, height, width, and a column of bytes for each format."""

    suffix = ".parquet"

    def __init__(self) -> None:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ConfigError("Parquet shards need pyarrow: pip install pyarrow") from error

    def pack(self, outcomes: Sequence[Outcome]) -> bytes:
        """See `Shards`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        kept = [outcome for outcome in outcomes if not outcome.reason]
        columns: dict[str, Any] = {
            # Names that are no Unicode are written with escapes, as in the manifest.
            "key": pa.array([o.item.key.encode("utf-8", "backslashreplace").decode() for o in kept], pa.string()),
            "height": pa.array([o.shape[0] for o in kept], pa.int32()),
            "width": pa.array([o.shape[1] for o in kept], pa.int32()),
        }
        for place, (ending, _) in enumerate(kept[0].files if kept else []):
            data = [o.files[place][1] for o in kept]
            columns[ending.lstrip("_").replace(".", "_")] = pa.array(data, pa.large_binary())
        stream = io.BytesIO()
        pq.write_table(pa.table(columns), stream)
        return stream.getvalue()


def make_shards(form: str) -> Shards:
    """Return the maker of "tar" or "parquet" shards.

    Raises:
        ConfigError: it is neither, or pyarrow is not installed.
    """
    if form == "tar":
        return TarShards()
    if form == "parquet":
        return ParquetShards()
    raise ConfigError(f"shards are tar or parquet, got {form!r}")


def encoded(encoding: Encoding, item: Item, name: str, depth: np.ndarray, notes: tuple[str, ...]) -> Outcome:
    """Return the outcome of a depth map."""
    try:
        files = encoding.files(depth)
    except ImageError as error:
        return rejected(item, name, str(error), notes)
    return Outcome(item, name, files, depth.shape, notes)
