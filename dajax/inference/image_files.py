"""Image files in, depth files out."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import unquote, urlsplit

import numpy as np
from jaxtyping import Float32
from PIL import Image

from dajax.depth_maps import encode
from dajax.depth_maps.colormap import colorize
from dajax.depth_maps.panels import depth_colors
from dajax.depth_maps.panels import side_by_side as beside
from dajax.errors import ConfigError, ImageError
from dajax.files import write_atomically
from dajax.geometry.cloud import CLOUD_ENDINGS, Cloud
from dajax.images.find import find_images
from dajax.images.image_sources import read_source
from dajax.images.read import DecodedImage
from dajax.images.urls import is_url
from dajax.inference.estimator import DepthEstimator

Raw = Literal["none", "npy", "npz", "png16", "tiff", "pfm", "exr"]
# Formats with no room to say what their values are: a file beside them does.
_SILENT = {"npy", "pfm"}
_BESIDE = "_depth.json"
# A file, or text that is a URL.
Source = Path | str
# An output that ends in one of these is meant as a file, and would else become a folder of that name.
_OTHER_SUFFIXES = (".bmp", ".exr", ".gif", ".heic", ".npy", ".npz", ".pfm", ".tif", ".tiff")
_MAX_NAME_BYTES = 255  # of every common file system


@dataclass
class FilesReport:
    """What became of the images.

    Attributes:
        written: the files that were made.
        rejects: images that were left out, and why.
    """

    written: list[Path] = field(default_factory=list)
    rejects: list[tuple[Source, str]] = field(default_factory=list)


def find_inputs(patterns: Sequence[str | os.PathLike[str]], output: Path, *, allow_urls: bool = False) -> list[Source]:
    """Return the images that are meant by files, folders and patterns, without what a former run wrote.

    In folders and patterns, maps (`*_depth.png`, `*_depth16.png`) are passed over, and so is all that is in `output`
    if that lies inside of them. A file that is named is always meant. Each file is returned once. With `allow_urls` one
    of the patterns may be a URL; it comes last.

    Raises:
        ImageError: a file does not exist, a folder or pattern has no image, or there are several URLs.
    """
    urls = [pattern for pattern in patterns if is_url(pattern)]
    if urls and allow_urls:
        if len(urls) > 1:
            raise ImageError(f"{len(urls)} URLs; one is read at a time. Download the images first.")
        files = [pattern for pattern in patterns if not is_url(pattern)]
        return [*(find_inputs(files, output) if files else []), *urls]
    named = {Path(pattern) for pattern in patterns}
    endings = (*encode.ENDINGS.values(), *CLOUD_ENDINGS.values(), _BESIDE)
    output = (output.parent if is_color_file(output) else output).resolve()
    folders = [_searched_folder(Path(pattern)).resolve() for pattern in patterns]
    # Where the output folder is or holds an input folder, maps are known by their names alone.
    is_apart = not any(output == folder or output in folder.parents for folder in folders)

    def is_own(path: Path) -> bool:
        return path.name.endswith(endings) or (is_apart and output in path.resolve().parents)

    found = {os.path.abspath(path): path for path in find_images(patterns) if path in named or not is_own(path)}
    if not found:
        raise ImageError(f"{', '.join(map(str, patterns))}: nothing but depth maps of a former run")
    return list(found.values())


def output_names(sources: Sequence[Path]) -> list[Path]:
    """Return a relative path without suffix for each image, all distinct under every file system's rules.

    The image's stem; where two have the same, its whole name; where that does not help either, its path below the
    folder that all have in common.
    """
    if not sources:
        return []
    resolved = [Path(os.path.abspath(source)) for source in sources]
    root = Path(os.path.commonpath([source.parent for source in resolved]))
    choices = (
        [Path(source.stem) for source in resolved],
        [Path(source.name) for source in resolved],
        [source.relative_to(root) for source in resolved],
    )
    names: list[Path] = [Path()] * len(sources)
    left = list(range(len(sources)))
    taken: set[str] = set()
    for choice in choices:
        # File systems may fold case and Unicode forms: `É.jpg` and `e´.JPG` can be one file.
        count = Counter(_folded(choice[i]) for i in left)
        alone = [i for i in left if count[_folded(choice[i])] == 1 and _folded(choice[i]) not in taken]
        for i in alone:
            names[i] = choice[i]
            taken.add(_folded(choice[i]))
        left = [i for i in left if i not in set(alone)]
    for i in left:  # only case or Unicode form tells them apart, or nothing: a URL and the file that its path names
        number = resolved[:i].count(resolved[i])
        names[i] = choices[2][i].with_name(f"{choices[2][i].name}-{_digest(f'{resolved[i]}' + '+' * number)}")
    return [_shortened(name) for name in names]


def url_as_path(url: str) -> Path:
    """Return a relative path, host and file name, that is safe to name files after; nothing has to be there."""
    try:
        parts = urlsplit(url)
        host, path = parts.hostname or "", unquote(parts.path)
    except ValueError:  # not a valid URL
        host, path = "", ""
    return Path(_safe(host) or "host") / (_safe(re.split(r"[/\\]", path)[-1]) or "image")


def predict_files(
    estimator: DepthEstimator,
    sources: Sequence[Source],
    output: str | os.PathLike[str],
    *,
    allow_urls: bool = False,
    colormap: str = "Spectral_r",
    side_by_side: bool = False,
    raw: Raw = "none",
    cloud: Cloud | None = None,
    tiles: int | None = None,
    model: str = "",
    on_done: Callable[[Source], None] = lambda source: None,
) -> FilesReport:
    """Write a coloured depth map (and the depth itself) for each image; what cannot be done is reported, not lost.

    Args:
        estimator: what estimates.
        sources: the files; or text that is a URL, whose maps are named after the end of its path.
        output: folder for the depth maps; made if need be. For one image also a file with the suffix .png, .jpg or
            .webp that is no folder: the coloured depth map is written there, and other files beside it.
        allow_urls: download the URLs; without it they are left out.
        colormap: of the coloured maps. Near has the map's upper end, for metric models too.
        side_by_side: put the image left of the coloured map.
        raw: also write the depth: "npy", "tiff", "pfm" or "exr" (float32), "npz" (float32, with unit and model) or
            "png16" (16-bit PNG with scale and offset in its metadata). What npy and pfm have no room for (unit, model,
            style) goes into a .json beside them.
        cloud: also write points or a surface.
        tiles: see `dajax.inference.tiles.tiled_depth`.
        model: name to put into the metadata.
        on_done: called with each image when it is finished or left out.

    Raises:
        ImageError: the colormap is not known, or the output folder cannot be made.
        ConfigError: `raw` is not one of the above, or the model does not give the metres that points need.
    """
    output = Path(output)
    check_output(output, colormap, images=len(sources))
    color_file = output if is_color_file(output) else None
    metric = estimator.model.config.is_metric
    about: dict[str, Any] = {
        "kind": "metric" if metric else "relative",
        "model": model,
        "style": estimator.model.config.style,
    }
    if cloud is not None:
        cloud.check(about["kind"], images=len(sources))
    if raw not in get_args(Raw):
        raise ConfigError(f"raw must be one of {', '.join(get_args(Raw))}, got {raw!r}")
    sources = [source if is_url(source) else Path(source) for source in sources]
    inputs = {os.path.abspath(source) for source in sources if not is_url(source)}
    if color_file is not None and os.path.abspath(color_file) in inputs:
        raise ConfigError(f"{str(color_file)!r} is the image itself: choose another name")
    report = FilesReport()
    if raw != "none":
        encode.encoded(raw, np.zeros((1, 1)), **about)  # what is not installed shows now
    in_work: deque[_InWork] = deque()

    def reject(source: Source, error: Exception) -> None:
        report.rejects.append((source, str(error)))
        on_done(source)

    def readable() -> Iterator[DecodedImage]:
        names = output_names([url_as_path(source) if is_url(source) else Path(source) for source in sources])
        for source, name in zip(sources, names, strict=True):
            try:
                image = read_source(source, allow_urls=allow_urls)
                estimator.processor.target_size(image.shape[0], image.shape[1])
            except ImageError as error:
                reject(source, error)
                continue
            stem = output / name if color_file is None else color_file.with_suffix("")
            in_work.append(_InWork(source, stem, image if side_by_side or cloud else None))
            yield DecodedImage(image)

    def write(work: _InWork, depth: Float32[np.ndarray, "height width"]) -> list[Path]:
        suffix = ".png" if color_file is None else color_file.suffix
        shown = work.image if side_by_side else None
        encodings = _encoded(depth, shown, raw, colormap, about, suffix.lower())
        files = {ending: partial(_put, data) for ending, data in encodings.items()}
        if cloud is not None:
            image_path = "" if is_url(work.source) else work.source
            files[CLOUD_ENDINGS[cloud.form]] = partial(
                _put_cloud, cloud=cloud, image=work.image, depth=depth, kind=about["kind"], image_path=image_path
            )
        paths = {work.stem.with_name(work.stem.name + ending): put for ending, put in files.items()}
        if color_file is not None:
            paths = {
                color_file if path.name.endswith(encode.ENDINGS["color"]) else path: put for path, put in paths.items()
            }
        for path in paths:
            if os.path.abspath(path) in inputs:
                raise ImageError(f"its map {str(path)!r} would replace another image; choose another output folder")
        work.stem.parent.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        try:
            # The values first: a coloured map without the values that were asked for would look finished.
            for path, put in reversed(paths.items()):
                put(path)
                written.append(path)
        except BaseException:
            for path in written:
                path.unlink()
            raise
        return list(paths)

    for depth in estimator.stream(readable(), tiles=tiles):
        work = in_work.popleft()
        try:
            report.written += write(work, depth)
        except (ImageError, ConfigError, OSError) as error:
            reject(work.source, error)
        else:
            on_done(work.source)
    return report


class _InWork(NamedTuple):
    """An image on its way: where its maps go, and the image where that is needed again."""

    source: Source
    stem: Path
    image: np.ndarray | None


def _encoded(
    depth: np.ndarray, image: np.ndarray | None, raw: Raw, colormap: str, about: dict[str, Any], suffix: str
) -> dict[str, bytes]:
    """Return ending and content of the files of one depth map; the suffix says how the coloured one is encoded."""
    if image is None:
        colours = Image.fromarray(depth_colors(depth, cmap=colormap, kind=about["kind"]))
    else:
        colours = beside(image, depth, cmap=colormap, kind=about["kind"])
    files = {encode.ENDINGS["color"]: encode.encoded_image(colours, suffix=suffix, about=encode.described(**about))}
    if raw != "none":
        files[encode.ENDINGS[raw]] = encode.encoded(raw, depth, **about)
    if raw in _SILENT:
        text = json.dumps({**encode.described(**about), "shape": list(depth.shape)}, indent=2) + "\n"
        files[_BESIDE] = text.encode("ascii")
    return files


def _put(data: bytes, path: Path) -> None:
    write_atomically(path, data, error=ImageError)


def _put_cloud(path: Path, *, cloud: Cloud, **options: Any) -> None:
    cloud.write(path, **options)


def is_color_file(output: Path) -> bool:
    """Whether an output is the file of one coloured depth map: it has an image's suffix and is no folder."""
    return output.suffix.lower() in encode.COLOUR_FORMATS and not output.is_dir()


def check_output(output: Path, colormap: str, *, images: int) -> None:
    """Make the output folder, and see that the colormap exists.

    Args:
        output: the folder, or the file of one coloured depth map.
        colormap: of the coloured depth maps.
        images: how many images there are.

    Raises:
        ImageError: the colormap is not known, or the output folder cannot be made.
        ConfigError: the output is one file and there are several images, or its format is not one of images.
    """
    colorize([[0.0]], colormap)
    suffix = output.suffix.lower()
    if suffix in _OTHER_SUFFIXES and not output.is_dir():
        raise ConfigError(
            f"{str(output)!r}: coloured depth maps are written as {', '.join(encode.COLOUR_FORMATS)}; name such a "
            "file, or a folder"
        )
    if is_color_file(output):
        if images > 1:
            raise ConfigError(f"{str(output)!r} is one file, and there are {images} images: name a folder")
        output = output.parent
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{str(output)!r}: the output folder cannot be made ({error.strerror})") from error


def _searched_folder(pattern: Path) -> Path:
    """Return the folder that is searched: what is named, or what stands before the first wildcard."""
    if pattern.exists() or not glob.has_magic(str(pattern)):
        return pattern
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _safe(name: str) -> str:
    """Replace what some file system or terminal does not take, and leave no name that is hidden or means a folder."""
    return re.sub(r'[<>:"|?*/\\]', "_", "".join(c if c.isprintable() else "_" for c in name)).strip(". ")


def _folded(name: Path) -> str:
    return unicodedata.normalize("NFC", str(name)).casefold()


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


def _shortened(name: Path) -> Path:
    """Cut a name to what a file system takes, suffixes and the temporary name of an unfinished file included."""
    room = _MAX_NAME_BYTES - 60
    encoded = os.fsencode(name.name)
    if len(encoded) <= room:
        return name
    return name.with_name(f"{encoded[: room - 9].decode('utf-8', 'ignore')}-{_digest(name.name)}")
