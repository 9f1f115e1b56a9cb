"""Which images `dajax predict` reads: files, folders, patterns and a URL."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dajax.errors import ImageError
from dajax.images.find import and_passed_over, search_images, unlisted_reason
from dajax.images.urls import is_url
from dajax.inference.outputs import OUTPUT_ENDINGS, is_color_file

# A file, or text that is a URL.
Source = Path | str


@dataclass(frozen=True)
class ImageInput:
    """An image, and what decides the names of its outputs.

    Attributes:
        source: the file, or a URL.
        root: the folder that the user named. Outputs keep the image's path below it. None is the folder of the file.
        identity: what tells the image from others in later runs, if it is neither the file's place nor the URL.
    """

    source: Source
    root: Path | None = None
    identity: str = ""


@dataclass
class Inputs:
    """What `find_inputs` has found.

    Attributes:
        images: the images.
        passed_over: how many files and folders were passed over, by kind.
        unlisted: the folders that could not be listed, and why: their images are not among `images`.
    """

    images: list[ImageInput] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    unlisted: list[tuple[Source, str]] = field(default_factory=list)


def find_inputs(patterns: Sequence[str | os.PathLike[str]], output: Path, *, allow_urls: bool = False) -> Inputs:
    """Return the images that files, folders and patterns stand for, without the outputs of earlier runs.

    In folders and patterns, depth maps (`*_depth.png`, `*_depth16.png` and so on) are passed over, and so is everything
    in `output` if that folder is inside of them. A file that is named is never passed over. Each file is returned once.

    Args:
        patterns: files, folders and patterns.
        output: the output folder, or the file of one coloured depth map.
        allow_urls: whether one of the patterns may be a URL. It comes last.

    Raises:
        ImageError: a file does not exist, a folder or pattern has no image, or there are several URLs.
    """
    urls = [str(pattern) for pattern in patterns if is_url(pattern)] if allow_urls else []
    if len(urls) > 1:
        raise ImageError(f"there are {len(urls)} URLs, but only one is read at a time: download the images first")
    files = [pattern for pattern in patterns if pattern not in urls]
    found = _find_files(files, output) if files or not urls else Inputs()
    found.images += [ImageInput(url) for url in urls]
    return found


def _find_files(patterns: Sequence[str | os.PathLike[str]], output: Path) -> Inputs:
    named = {Path(pattern) for pattern in patterns}
    output = (output.parent if is_color_file(output) else output).resolve()
    folders = [_searched_folder(Path(pattern)).resolve() for pattern in patterns]
    # If the output folder is or holds an input folder, depth maps are recognised by their names alone.
    is_apart = not any(output == folder or output in folder.parents for folder in folders)

    def is_output(path: Path) -> bool:
        return path.name.endswith(OUTPUT_ENDINGS) or (is_apart and output in path.resolve().parents)

    inputs = Inputs()
    found: dict[str, ImageInput] = {}
    for pattern in patterns:
        root = _searched_folder(Path(pattern))
        searched = search_images(pattern)
        inputs.passed_over += searched.passed_over
        inputs.unlisted += [(Path(folder), unlisted_reason(error)) for folder, error in searched.unlisted.items()]
        for path in searched.paths:
            place = os.path.abspath(path)
            if path not in named and is_output(path):
                inputs.passed_over["depth maps of earlier runs"] += 1
            elif place not in found:
                is_below = Path(os.path.abspath(root)) in Path(place).parents
                found[place] = ImageInput(path, root if is_below else path.parent)
    if not found and not inputs.unlisted:
        said = and_passed_over(inputs.passed_over)
        raise ImageError(f"{', '.join(map(str, patterns))}: there are only depth maps of an earlier run{said}")
    inputs.images = list(found.values())
    return inputs


def _searched_folder(pattern: Path) -> Path:
    """Return the folder that is searched: the named one, or the part of a pattern before its first wildcard."""
    if pattern.exists() or not glob.has_magic(str(pattern)):
        return pattern
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))
