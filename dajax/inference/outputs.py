"""Where `dajax predict` writes: names that keep every other image's outputs, and all other files, as they are.

Outputs are named by `dajax.depth_maps.naming`, as those of jobs are. There is no list of the outputs of earlier runs.
Instead each coloured depth map has an entry `dajax.source` in its metadata: a digest of the place of its image, as seen
from the output folder. A name is used if nothing has it yet, or if its coloured depth map comes from the same image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from dajax.depth_maps import encode
from dajax.depth_maps.colormap import colorize
from dajax.depth_maps.naming import digest, output_names, possible_names
from dajax.errors import ConfigError, ImageError
from dajax.files import in_the_way_of
from dajax.geometry.point_files import CLOUD_ENDINGS
from dajax.images.urls import is_url

# npy and pfm have no room to say what their values are. A file with this ending says it.
DESCRIPTION_ENDING = "_depth.json"
OUTPUT_ENDINGS = (*encode.ENDINGS.values(), *CLOUD_ENDINGS.values(), DESCRIPTION_ENDING)
# An output with one of these suffixes was meant as a file; without a check it would become a folder.
_OTHER_SUFFIXES = (".bmp", ".exr", ".gif", ".heic", ".npy", ".npz", ".pfm", ".tif", ".tiff")


def is_color_file(output: Path) -> bool:
    """Return whether an output is the file of one coloured depth map: it has an image's suffix and is no folder."""
    return output.suffix.lower() in encode.COLOUR_FORMATS and not output.is_dir()


def check_output(output: Path, colormap: str, *, images: int) -> None:
    """Make the output folder, and check that the colour map exists.

    Args:
        output: the folder, or the file of one coloured depth map.
        colormap: the name of the colour map.
        images: the number of images.

    Raises:
        ImageError: the colour map does not exist, or the output folder cannot be made.
        ConfigError: the output is one file and there are several images, or the file's format is none of images.
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
    if problem := in_the_way_of(output):
        raise ImageError(problem)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{str(output)!r}: the output folder cannot be made ({error.strerror})") from error


def image_digest(source: Path | str, output: Path) -> str:
    """Return a text that tells an image from others: a digest of its URL, or of its path from the output folder.

    The relative path stays the same if images and outputs are moved together.
    """
    if is_url(source):
        return digest(str(source)).hex()
    place = os.path.abspath(source)
    with suppress(ValueError):  # they are on different drives of Windows
        place = os.path.relpath(place, os.path.abspath(output))
    return digest(Path(place).as_posix()).hex()


def choose_names(
    keys: Sequence[str], digests: Sequence[str], output: Path, endings: Sequence[str], inputs: set[str]
) -> list[str | None]:
    """Return a name for the outputs of each image, below the output folder and without ending.

    Args:
        keys: the keys of the images; see `dajax.depth_maps.naming`.
        digests: what `image_digest` returns for each image.
        output: the output folder.
        endings: the endings of the files that will be written.
        inputs: the absolute paths of all images.

    Returns:
        For each image its name; None if other files have all its possible names.
    """
    earlier: dict[str, str] = {}
    taken: dict[str, str] = {}
    for key, one in zip(keys, digests, strict=True):
        possible = possible_names(key)
        own = next((name for name in possible if _is_own(output / name, one, endings, inputs)), None)
        if own is not None:
            earlier[key] = own
        # \0 is in no key of an image, so these names are given to none.
        taken |= {f"\0{name}": name for name in possible if name != own and _is_taken(output / name, endings, inputs)}
    names = output_names(keys, taken | earlier)
    return [
        None if f"\0{name}" in taken and key not in earlier else name for key, name in zip(keys, names, strict=True)
    ]


def with_ending(stem: Path, ending: str) -> Path:
    """Return the path of an output."""
    return stem.with_name(stem.name + ending)


def _is_taken(stem: Path, endings: Sequence[str], inputs: set[str]) -> bool:
    paths = [with_ending(stem, ending) for ending in endings]
    return any(os.path.lexists(path) or os.path.abspath(path) in inputs for path in paths)


def _is_own(stem: Path, one: str, endings: Sequence[str], inputs: set[str]) -> bool:
    if any(os.path.abspath(with_ending(stem, ending)) in inputs for ending in endings):
        return False
    try:
        with Image.open(with_ending(stem, encode.ENDINGS["color"])) as image:
            return image.info.get(f"{encode.PREFIX}source") == one
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # there is none, or it is no image
        return False
