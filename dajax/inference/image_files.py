"""Image files to depth files: what `dajax predict` does once its options are read."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from PIL import Image

from dajax.depth_maps import encode
from dajax.depth_maps.encode import Raw
from dajax.depth_maps.naming import digest, image_keys, url_as_path
from dajax.depth_maps.panels import depth_colors
from dajax.depth_maps.panels import side_by_side as beside
from dajax.errors import ConfigError, ImageError
from dajax.files import write_atomically
from dajax.geometry.cloud import Cloud
from dajax.geometry.point_files import CLOUD_ENDINGS
from dajax.images.image_sources import read_source
from dajax.images.pixels import ValueRange
from dajax.images.read import DecodedImage
from dajax.images.urls import is_url
from dajax.inference.estimator import DepthEstimator
from dajax.inference.inputs import ImageInput, Source
from dajax.inference.outputs import (
    DESCRIPTION_ENDING,
    check_output,
    choose_names,
    image_digest,
    is_color_file,
    with_ending,
)

# These formats have no room to say what their values are. A file beside them says it.
_SILENT = {"npy", "pfm"}


@dataclass
class FilesReport:
    """What became of the images.

    Attributes:
        written: the files that were written.
        rejects: the images that were left out, and why.
        notes: what files of the other images lack, in sentences: points of pixels that have no place, values that a PNG
            cannot hold.
    """

    written: list[Path] = field(default_factory=list)
    rejects: list[tuple[Source, str]] = field(default_factory=list)
    notes: list[tuple[Source, str]] = field(default_factory=list)


def predict_files(
    estimator: DepthEstimator,
    sources: Sequence[Source | ImageInput],
    output: str | os.PathLike[str],
    *,
    allow_urls: bool = False,
    colormap: str = "Spectral_r",
    side_by_side: bool = False,
    raw: Raw = "none",
    png_scale: float | None = None,
    cloud: Cloud | None = None,
    tiles: int | None = None,
    value_range: ValueRange | None = None,
    allow_truncated: bool = False,
    model: str = "",
    on_done: Callable[[Source], None] = lambda source: None,
) -> FilesReport:
    """Write a coloured depth map (and the depth itself) for each image, and report images that are left out.

    Outputs never replace those of another image, or any other file. They have the name of their image
    (`room_depth.png`); if that name is taken, also its suffix (`room.jpg_depth.png`), or a digest. Outputs of the same
    image from an earlier run are replaced.

    Args:
        estimator: the estimator.
        sources: the files, or texts that are URLs; or an `ImageInput`, whose path below its root is kept in the output
            folder. Outputs of a URL are named after the end of its path.
        output: the folder for outputs, which is made if it does not exist. For one image it may be a file with the
            suffix .png, .jpg or .webp: the coloured depth map is written there, and other files beside it.
        allow_urls: whether to download URLs. Otherwise they are left out.
        colormap: the name of the colour map. Near has its upper end, for metric models too.
        side_by_side: whether to put the image left of the coloured depth map.
        raw: In which format to write the depth as well: "npy", "tiff", "pfm" or "exr" (float32), "npz" (float32, with
            unit and model) or "png16" (16-bit PNG with scale and offset in its metadata). npy and pfm have no room for
            unit, model and style, which are written into a .json file beside them.
        png_scale: the metres of a step of "png16", see `dajax.depth_maps.write_png16`. None: each file has its own.
        cloud: how to write points or a surface as well. None writes none. If it has known points, `raw` has the metres
            that they make, as far as `cloud.max_depth`.
        tiles: Into how many parts to divide large images; see `dajax.inference.tiled_depth`.
        value_range: the values that become black and white in files of more than 8 bits, or "auto", see `read_image`.
        allow_truncated: whether to take what there is of files that break off, with a warning.
        model: the name of the model, for the metadata.
        on_done: a function that is called with each image when it is finished or left out.

    Raises:
        ImageError: the colour map does not exist, or the output folder cannot be made.
        ConfigError: `raw`, `png_scale` or `output` cannot be used, or the model does not give the metres that points or
            `png_scale` need.
    """
    output = Path(output)
    check_output(output, colormap, images=len(sources))
    metric = estimator.model.config.is_metric
    about = encode.described("metric" if metric else "relative", model, estimator.model.config.style)
    if cloud is not None:
        cloud.check(about["kind"], images=len(sources))
    if raw not in get_args(Raw):
        raise ConfigError(f"raw must be one of {', '.join(get_args(Raw))}, got {raw!r}")
    if png_scale is not None and raw != "png16":
        raise ConfigError(f"png_scale goes with the raw format png16, got {raw}")
    files = _Files(about, colormap, side_by_side, raw, png_scale, cloud)
    if raw != "none":
        files.raw_bytes(np.zeros((1, 1)))  # a library that is not installed shows now
    inputs = [one if isinstance(one, ImageInput) else ImageInput(one) for one in sources]
    reading = {"allow_urls": allow_urls, "value_range": value_range, "allow_truncated": allow_truncated}
    run = _Run(estimator, files, _jobs(inputs, output, files.endings()), reading, on_done)
    run.run(tiles)
    return run.report


class _Job(NamedTuple):
    """An image and its outputs.

    Attributes:
        source: the file, or the URL.
        stem: the path of the outputs without their endings. None if other files have all names of this image.
        color_file: the file of the coloured depth map if the user named it.
        digest: the entry `dajax.source` of the coloured depth map.
        images: all images, by absolute path: outputs must not replace them.
    """

    source: Source
    stem: Path | None
    color_file: Path | None
    digest: str
    images: frozenset[str]

    def path(self, ending: str) -> Path:
        """Return the path of the output with this ending."""
        assert self.stem is not None
        is_color = self.color_file is not None and ending == encode.ENDINGS["color"]
        return self.color_file if is_color else with_ending(self.stem, ending)  # type: ignore[return-value]


def _jobs(inputs: Sequence[ImageInput], output: Path, endings: Sequence[str]) -> list[_Job]:
    color_file = output if is_color_file(output) else None
    sources = [Path(one.source) if not is_url(one.source) else str(one.source) for one in inputs]
    places = frozenset(os.path.abspath(source) for source in sources if not is_url(source))
    digests = [
        digest(one.identity).hex() if one.identity else image_digest(source, output)
        for one, source in zip(inputs, sources, strict=True)
    ]
    if color_file is not None:
        if os.path.abspath(color_file) in places:
            raise ConfigError(f"{str(color_file)!r} is the image itself: choose another name")
        return [_Job(sources[0], color_file.with_suffix(""), color_file, digests[0], places)] if sources else []
    paths = [url_as_path(source) if is_url(source) else Path(source) for source in sources]
    roots = [path.parent if one.root is None else one.root for one, path in zip(inputs, paths, strict=True)]
    keys = image_keys(paths, roots) if paths else []
    names = choose_names(keys, digests, output, endings, set(places))
    return [
        _Job(source, None if name is None else output / name, None, one, places)
        for source, name, one in zip(sources, names, digests, strict=True)
    ]


@dataclass(frozen=True)
class _Files:
    """Which files are made of a depth map; see `predict_files`."""

    about: dict[str, str]
    colormap: str
    side_by_side: bool
    raw: Raw
    png_scale: float | None
    cloud: Cloud | None

    @property
    def about_raw(self) -> dict[str, str]:
        """What a file of depth says: known points make metres of it."""
        if self.cloud is None or self.cloud.known_points is None:
            return self.about
        return encode.described("metric", self.about["model"], self.about.get("style", ""))

    def endings(self) -> list[str]:
        """Return the endings of the files, the coloured depth map first."""
        endings = [encode.ENDINGS["color"]]
        if self.raw != "none":
            endings.append(encode.ENDINGS[self.raw])
        if self.raw in _SILENT:
            endings.append(DESCRIPTION_ENDING)
        if self.cloud is not None:
            endings.append(CLOUD_ENDINGS[self.cloud.form])
        return endings

    def writers(
        self, job: _Job, depth: np.ndarray, image: np.ndarray | None
    ) -> tuple[dict[Path, Callable[[Path], None]], list[str]]:
        """Return the files of one image and what writes each, and notes; values are encoded before this returns."""
        data, put_cloud = [self._color(job, depth, image)], None
        notes: list[str] = []
        if self.cloud is not None:
            assert image is not None
            metres = self.cloud.metres(depth, kind=self.about["kind"])
            notes += metres.notes
            image_path = "" if is_url(job.source) else job.source
            put_cloud = partial(self.cloud.write, image=image, metres=metres, image_path=image_path)
            depth = depth if self.cloud.known_points is None else metres.values
        if self.raw != "none":
            data.append(self.raw_bytes(depth))
            notes += [] if self.png_scale is None else encode.misfits(depth, self.png_scale)
        if self.raw in _SILENT:
            data.append((json.dumps({**self.about_raw, "shape": list(depth.shape)}, indent=2) + "\n").encode("ascii"))
        writers: list[Callable[[Path], None]] = [partial(_put, data=one) for one in data]
        writers += [] if put_cloud is None else [put_cloud]
        return dict(zip(map(job.path, self.endings()), writers, strict=True)), notes

    def raw_bytes(self, depth: np.ndarray) -> bytes:
        """Return the file of depth."""
        about = self.about_raw
        kind, model, style = about["kind"], about["model"], about.get("style", "")
        return encode.encoded(self.raw, depth, kind=kind, model=model, style=style, png_scale=self.png_scale)

    def _color(self, job: _Job, depth: np.ndarray, image: np.ndarray | None) -> bytes:
        if self.side_by_side:
            colours = beside(image, depth, cmap=self.colormap, kind=self.about["kind"])
        else:
            colours = Image.fromarray(depth_colors(depth, cmap=self.colormap, kind=self.about["kind"]))
        suffix = ".png" if job.color_file is None else job.color_file.suffix.lower()
        return encode.encoded_image(colours, suffix=suffix, about={**self.about, "source": job.digest})


def _put(path: Path, *, data: bytes) -> None:
    write_atomically(path, data, error=ImageError)


class _Run:
    """One call of `predict_files`."""

    def __init__(
        self,
        estimator: DepthEstimator,
        files: _Files,
        jobs: Sequence[_Job],
        reading: dict[str, Any],
        on_done: Callable[[Source], None],
    ) -> None:
        self.report = FilesReport()
        self._estimator, self._files, self._jobs = estimator, files, jobs
        self._reading, self._on_done = reading, on_done
        # Images that the estimator has read ahead, and their pixels if outputs need them.
        self._in_work: deque[tuple[_Job, np.ndarray | None]] = deque()

    def run(self, tiles: int | None) -> None:
        """Read, estimate and write all images."""
        for depth in self._estimator.stream(self._read(), tiles=tiles):
            job, image = self._in_work.popleft()
            try:
                self.report.written += self._write(job, image, depth)
            except (ImageError, ConfigError, OSError) as error:
                self._reject(job, error)
            else:
                self._on_done(job.source)

    def _read(self) -> Iterator[DecodedImage]:
        for job in self._jobs:
            try:
                if job.stem is None:
                    raise ImageError("other files have all names that its outputs may have: choose another folder")
                image = read_source(job.source, **self._reading)
                self._estimator.processor.target_size(image.shape[0], image.shape[1])
            except ImageError as error:
                self._reject(job, error)
                continue
            self._in_work.append((job, image if self._files.side_by_side or self._files.cloud else None))
            yield DecodedImage(image)

    def _reject(self, job: _Job, error: Exception) -> None:
        self.report.rejects.append((job.source, str(error)))
        self._on_done(job.source)

    def _write(self, job: _Job, image: np.ndarray | None, depth: np.ndarray) -> list[Path]:
        writers, notes = self._files.writers(job, depth, image)
        for path in writers:
            if os.path.abspath(path) in job.images:
                raise ImageError(f"its output {str(path)!r} would replace an image: choose another name")
            path.parent.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        try:
            # Values come first: a coloured depth map without the values that belong to it would look finished.
            for path, put in reversed(writers.items()):
                put(path)
                written.append(path)
        except BaseException:
            for path in written:
                path.unlink()
            raise
        self.report.notes += [(job.source, note) for note in notes]
        return list(writers)
