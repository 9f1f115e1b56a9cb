"""Picture files in, depth files out."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

from dajax.errors import ImageError
from dajax.images.read import find_images, read_image
from dajax.images.write import write_color, write_npy, write_png16

from .estimator import DepthEstimator

Raw = Literal["none", "npy", "png16"]
SUFFIX = "_depth"
_MAX_NAME_BYTES = 255  # of every common file system


@dataclass
class FilesReport:
    """What became of the pictures.

    Attributes:
        written: the files that were made.
        rejects: pictures that were left out, and why.
    """

    written: list[Path] = field(default_factory=list)
    rejects: list[tuple[Path, str]] = field(default_factory=list)


def find_pictures(patterns: Sequence[str | os.PathLike[str]], output: Path) -> list[Path]:
    """Return the picture files that are meant by files, folders and patterns, without what a former run wrote.

    In folders, files in `output` and maps (`*_depth.png`) are passed over; a file that is named is always meant.

    Raises:
        ImageError: a file does not exist, or a folder or pattern has no picture.
    """
    named = {Path(pattern) for pattern in patterns}
    inside = output.resolve()
    # An output folder that is also an input folder is told apart by the names of the maps alone.
    shared = any(path.is_dir() and path.resolve() == inside for path in named)

    def is_own(path: Path) -> bool:
        if path in named:
            return False
        return path.stem.endswith(SUFFIX) or (not shared and inside in path.resolve().parents and output != Path("."))

    found = [path for path in find_images(patterns) if not is_own(path)]
    if not found:
        raise ImageError(f"{', '.join(map(str, patterns))}: nothing but depth maps of a former run")
    return found


def output_names(pictures: Sequence[Path]) -> list[Path]:
    """Return a relative path without suffix for each picture, all distinct under every file system's rules.

    The picture's stem; where two have the same, its whole name; where that does not help either, its path below the
    folder that all have in common.
    """
    resolved = [Path(os.path.abspath(picture)) for picture in pictures]
    root = Path(os.path.commonpath([picture.parent for picture in resolved]))
    choices = (
        [Path(picture.stem) for picture in resolved],
        [Path(picture.name) for picture in resolved],
        [picture.relative_to(root) for picture in resolved],
    )
    names: list[Path] = [Path()] * len(pictures)
    left = list(range(len(pictures)))
    taken: set[str] = set()
    for choice in choices:
        # File systems may fold case and Unicode forms: `É.jpg` and `e´.JPG` can be one file.
        count = Counter(_folded(choice[i]) for i in left)
        alone = [i for i in left if count[_folded(choice[i])] == 1 and _folded(choice[i]) not in taken]
        for i in alone:
            names[i] = choice[i]
            taken.add(_folded(choice[i]))
        left = [i for i in left if i not in set(alone)]
    for i in left:  # only case or Unicode form tells them apart
        names[i] = choices[2][i].with_name(f"{choices[2][i].name}-{_digest(str(resolved[i]))}")
    return [_shortened(name) for name in names]


def predict_files(
    estimator: DepthEstimator,
    pictures: Sequence[Path],
    output: str | os.PathLike[str],
    *,
    colormap: str = "Spectral_r",
    raw: Raw = "none",
    model: str = "",
    on_done: Callable[[Path], None] = lambda path: None,
) -> FilesReport:
    """Write a coloured depth map (and the depth itself) for each picture; what cannot be done is reported, not lost.

    Args:
        estimator: what estimates.
        pictures: the files.
        output: folder for the maps; made if need be.
        colormap: of the coloured maps. Near has the map's upper end, for metric models too.
        raw: also write the depth as "npy" (float32) or "png16" (16-bit PNG with scale and offset in its metadata).
        model: name to put into the metadata.
        on_done: called with each picture when it is finished or left out.

    Raises:
        ImageError: the colormap is not known, or the output folder cannot be made.
    """
    output = Path(output)
    report = FilesReport()
    metric = estimator.model.config.is_metric
    in_work: deque[tuple[Path, Path]] = deque()

    def reject(picture: Path, error: Exception) -> None:
        report.rejects.append((picture, str(error)))
        on_done(picture)

    def readable() -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        for picture, name in zip(pictures, output_names(pictures), strict=True):
            try:
                image = read_image(picture)
                estimator.processor.target_size(image.shape[0], image.shape[1])
            except ImageError as error:
                reject(picture, error)
                continue
            in_work.append((picture, output / name))
            yield image

    def write(stem: Path, depth: Float32[np.ndarray, "height width"]) -> Iterator[Path]:
        stem.parent.mkdir(parents=True, exist_ok=True)
        yield (path := stem.with_name(f"{stem.name}{SUFFIX}.png"))
        write_color(path, -depth if metric else depth, colormap)
        if raw == "npy":
            yield (path := stem.with_name(f"{stem.name}{SUFFIX}.npy"))
            write_npy(path, depth)
        elif raw == "png16":
            yield (path := stem.with_name(f"{stem.name}{SUFFIX}16.png"))
            write_png16(path, depth, kind="metric" if metric else "relative", model=model)

    for depth in estimator.stream(readable()):
        picture, stem = in_work.popleft()
        try:
            report.written += list(write(stem, depth))
        except (ImageError, OSError) as error:
            reject(picture, error)
        else:
            on_done(picture)
    return report


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
