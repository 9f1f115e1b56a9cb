"""How a job is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dajax.depth_maps.encode import Format, Values, check_png_scale
from dajax.errors import ConfigError, ImageError
from dajax.images.pixels import ValueRange, chosen_range
from dajax.preprocessing.buckets import Policy

Size = Literal["source", "model"]
ShardFormat = Literal["tar", "parquet"]


@dataclass(frozen=True)
class BatchSettings:
    """How a job is done. The output folder keeps what decides about outputs, and a later run must say the same.

    Attributes:
        formats: for each image: npy, npz, png16, tiff, pfm, exr or color. The npz has unit and model in
            it, png16 is a 16-bit PNG with its scale in the metadata; tiff, pfm and exr have float32 values; color is
            for people.
        values: type of the values in npy and npz.
        png_scale: the metres of a step of png16, as RGB-D tools expect: 0.001 for millimetres. Values that do not fit
            are stored as 0, and the manifest counts them. Without it, each PNG has a scale of its own.
        size: the size of depth maps: their image's, or the model's.
        colormap: Colours of `color`: Spectral_r, inferno, turbo, ... With matplotlib installed, any of
            its names.
        shards: Put this many images into each output shard. Without it, each image gets files of its own.
        shard_format: Output shards are WebDataset tar files, or Parquet files.
        batch_size: images of one size that are run together. Without it, the estimator's own batch size.
        buckets: Process images at no more than this many sizes, for few compilations.
        policy: Stretch images to their bucket's size, or pad them. Padding keeps their aspect ratio.
        workers: Processes that read images. Without it, one for each core, but no more than 16.
        value_range: Beyond 8 bits: what becomes black and white. With "auto" it is the smallest and the largest value
            of each image. Images of 8 bits stay as they are.
        allow_truncated: Take what there is of images that break off.
        decode_timeout: seconds that reading one image may take.
        max_rejects: Stop when a run leaves out more images than this.
        retry_rejects: Try again what an earlier run left out. Output shards do not allow it.
        check_inputs: Look at every image that is done, to see whether it has changed since. Listings of buckets say it
            without this.
        remake_changed: Make again the depth maps of images that have changed since.
        flip_disagreement: Record how much the depth of each mirror image differs. It takes twice the time.
        column: the column of paths or images of a table.
        process_index: which part of the images this process does, counted from 0. The other processes, on this machine
            or on others, do theirs in the same output folder at the same time.
        process_count: how many processes do the job together. With 1, this process does all of it, and no other process
            may work in the output folder meanwhile.
    """

    formats: tuple[Format, ...] = ("npy",)
    values: Values = "float32"
    size: Size = "source"
    colormap: str = "Spectral_r"
    shards: int | None = None
    shard_format: ShardFormat = "tar"
    batch_size: int | None = None
    buckets: int | None = None
    policy: Policy = "resize"
    workers: int | None = None
    value_range: ValueRange | None = None
    allow_truncated: bool = False
    decode_timeout: float = 60.0
    max_rejects: int | None = None
    retry_rejects: bool = False
    check_inputs: bool = False
    remake_changed: bool = False
    flip_disagreement: bool = False
    column: str | None = None
    process_index: int = 0
    process_count: int = 1
    png_scale: float | None = None

    def check(self) -> None:
        """Raise ConfigError if a value cannot be used. Formats, values and buckets are checked where they are used."""
        if self.size not in get_args(Size):
            raise ConfigError(f"size must be source or model, got {self.size!r}")
        for name, least in (
            ("shards", 1),
            ("batch_size", 1),
            ("workers", 1),
            ("max_rejects", 0),
            ("process_count", 1),
            ("process_index", 0),
        ):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
        try:
            chosen_range((0.0, 1.0), "the job", self.value_range, unsigned_bits=16, what="")
        except ImageError as error:
            raise ConfigError(str(error)) from error
        if not self.decode_timeout > 0:
            raise ConfigError(f"decode_timeout must be positive, got {self.decode_timeout!r}")
        if self.png_scale is not None:
            check_png_scale(self.png_scale, "metric")
            if "png16" not in self.formats:
                raise ConfigError(f"png_scale goes with png16, not with {', '.join(self.formats)}")
        if self.shards is not None and self.retry_rejects:
            raise ConfigError("retry_rejects goes with files: an output shard that is whole is not written again")
        if self.process_index >= self.process_count:
            raise ConfigError(
                f"process_index counts from 0, so it must be less than process_count ({self.process_count}); got "
                f"{self.process_index}"
            )
