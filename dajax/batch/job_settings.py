"""How a job is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dajax.depth_maps.encode import Values
from dajax.errors import ConfigError
from dajax.preprocessing.buckets import Policy

Size = Literal["source", "model"]
ShardFormat = Literal["tar", "parquet"]


@dataclass(frozen=True)
class BatchSettings:
    """How a job is done. What decides about outputs is kept in the output folder, and a resume has to say the same.

    Attributes:
        formats: of the outputs: any of "color", "npy", "npz", "png16", "tiff", "pfm", "exr".
        values: "float32" or "float16", of npy and npz.
        size: maps of the "source" images' sizes, or of the "model".
        colormap: of "color".
        shards: images in each shard; None: files of its own for each image.
        shard_format: "tar" (WebDataset) or "parquet".
        batch_size: images that are run together; None: the estimator's.
        buckets: see `DepthEstimator.stream`.
        policy: see `DepthEstimator.stream`.
        workers: processes that read images; None: one for each core, 16 at most.
        decode_timeout: seconds that reading one image may take.
        max_rejects: stop when more than so many images had to be left out; None: never.
        retry_rejects: try those again that an earlier run left out.
        column: of a CSV or Parquet source.
        share: (k, n): this process does the k-th of n shares of the images, counted from 1; others may do theirs in
            the same output folder at the same time. None: all of them, and nobody else works there.
    """

    formats: tuple[str, ...] = ("npy",)
    values: Values = "float32"
    size: Size = "source"
    colormap: str = "Spectral_r"
    shards: int | None = None
    shard_format: ShardFormat = "tar"
    batch_size: int | None = None
    buckets: int | None = None
    policy: Policy = "resize"
    workers: int | None = None
    decode_timeout: float = 60.0
    max_rejects: int | None = None
    retry_rejects: bool = False
    column: str | None = None
    share: tuple[int, int] | None = None

    def check(self) -> None:
        """Raise ConfigError where a value cannot be used."""
        if self.size not in get_args(Size):
            raise ConfigError(f"size must be source or model, got {self.size!r}")
        for name in ("shards", "batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not self.decode_timeout > 0:
            raise ConfigError(f"decode_timeout must be positive, got {self.decode_timeout!r}")
        if self.max_rejects is not None and self.max_rejects < 0:
            raise ConfigError(f"max_rejects must be at least 0, got {self.max_rejects}")
        if self.shards is not None and self.retry_rejects:
            raise ConfigError("retry_rejects goes with files: a shard that is whole is not written again")
        if self.share is not None and not 1 <= self.share[0] <= self.share[1]:
            raise ConfigError(f"share must be (k, n) with k from 1 to n, got {self.share!r}")
