"""Writes and reads the raw depth of videos, as 16-bit FFV1 or as numpy's .npz."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dajax.errors import DajaxError, ImageError
from dajax.video.opening import import_av
from dajax.video.reading import Frame
from dajax.video.writing import COLOUR_SUFFIXES, Whole, faults, partial_name, url_of

RAW_ENDINGS: dict[str, str] = {"ffv1": "_depth.mkv", "npz": "_depth.npz"}
_LEVELS = 65535
# What numpy, zipfile, zlib and json say of files that are damaged or made by somebody else.
_DAMAGED = (
    OSError, ValueError, LookupError, TypeError, EOFError, ArithmeticError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class RawWriter(ABC):
    """Writes the depth of frames to a file."""

    @abstractmethod
    def write(self, depth: np.ndarray, frame: Frame) -> None:
        """Write the depth of a frame, float32 [height, width]."""

    @abstractmethod
    def close(self, *, partial: bool = False) -> list[Path]:
        """Finish the files and return their names, `NAME.partial.SUFFIX` if they lack their end."""

    @abstractmethod
    def abandon(self) -> None:
        """Remove the files."""


class Ffv1Writer(RawWriter):
    """Writes 16-bit FFV1 in Matroska, and a .json beside it with the times and the scale of the 65,536 levels.

    depth = step * level + offset. Step and offset are the same for all frames as long as the depth stays in their
    range. From a frame whose depth leaves it on, a new step and offset cover the larger range, so that no value is cut
    off.

    Args:
        path: a .mkv file.
        about: Kind, units, model and so on; becomes part of the .json.
        lo, hi: the range of depth at the beginning.
        rate: the mean number of frames per second.
    """

    def __init__(self, path: Path, about: dict[str, Any], *, lo: float, hi: float, rate: Fraction) -> None:
        self._about, self._range, self._rate = about, (lo, hi), rate
        self._file, self._index = Whole(path), Whole(path.with_suffix(".json"))
        self._container: Any = None
        self._stream: Any = None
        self._scales: list[dict[str, Any]] = []
        self._times: Any = self._index.temporary.open("w", encoding="ascii")
        self._count = 0
        self._time_base = Fraction(1)

    def write(self, depth: np.ndarray, frame: Frame) -> None:
        """See `RawWriter`."""
        av = import_av()
        if self._container is None:
            with faults(self._file):
                self._open(depth.shape, frame.time_base)
        low, high = float(depth.min()), float(depth.max())
        lo, hi = self._range
        if not self._scales or low < lo or high > hi:
            lo, hi = min(lo, low), max(hi, high)
            self._range = lo, hi
            self._scales.append({"frame": self._count, "step": (hi - lo) / _LEVELS or 1.0, "offset": lo})
        scale = self._scales[-1]
        levels = np.rint((depth.astype(np.float64) - scale["offset"]) / scale["step"])
        image = av.VideoFrame.from_ndarray(np.clip(levels, 0, _LEVELS).astype(np.uint16), format="gray16le")
        image.pts, image.time_base = frame.pts, frame.time_base
        with faults(self._file):
            for packet in self._stream.encode(image):
                self._container.mux(packet)
            self._times.write(f"{frame.pts}\n")
        self._count += 1

    def _open(self, size: tuple[int, ...], time_base: Fraction) -> None:
        av = import_av()
        self._time_base = time_base
        self._container = av.open(url_of(self._file.temporary), "w", format="matroska")
        self._stream = self._container.add_stream("ffv1", rate=self._rate)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "gray16le"
        self._stream.codec_context.color_range = 2  # the full range, so that no player stretches the levels
        self._stream.time_base = self._stream.codec_context.time_base = time_base

    def close(self, *, partial: bool = False) -> list[Path]:
        """See `RawWriter`."""
        with faults(self._file):
            return self._close(partial=partial)

    def _close(self, *, partial: bool) -> list[Path]:
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        self._container = None
        self._times.close()
        # The times were written as they came, and now become the end of the index.
        index = {
            **self._about,
            "format": "dajax-depth-video-1",
            "frames": self._count,
            "whole": not partial,
            "time_base": [self._time_base.numerator, self._time_base.denominator],
            "scales": self._scales,
        }
        times = self._index.temporary.read_text(encoding="ascii").split()
        index["pts"] = [int(time) for time in times]
        self._index.temporary.write_text(json.dumps(index, indent=None) + "\n", encoding="ascii")
        # If the process ends between the two renames, a new video must not stand beside the index of an old one.
        (partial_name(self._index.path) if partial else self._index.path).unlink(missing_ok=True)
        return [self._file.keep(partial=partial), self._index.keep(partial=partial)]

    def abandon(self) -> None:
        """See `RawWriter`."""
        av = import_av()
        with suppress(av.error.FFmpegError, OSError, ValueError):
            if self._container is not None:
                self._container.close()
        with suppress(OSError):
            self._times.close()
        self._file.drop()
        self._index.drop()


class NpzWriter(RawWriter):
    """Writes one .npz with an array for each frame.

    "000000", "000001" and so on are the depth, float32 [height, width]; "pts" and "time_base" are the times; "kind" and
    the other entries of `about` are texts.

    Args:
        path: a .npz file.
        about: Kind, units, model and so on.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._about, self._file = about, Whole(path)
        self._archive = zipfile.ZipFile(self._file.temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        self._pts: list[int] = []
        self._time_base = Fraction(1)

    def write(self, depth: np.ndarray, frame: Frame) -> None:
        """See `RawWriter`."""
        self._put(f"{len(self._pts):06}", depth)
        self._pts.append(frame.pts)
        self._time_base = frame.time_base

    def close(self, *, partial: bool = False) -> list[Path]:
        """See `RawWriter`."""
        self._put("pts", np.array(self._pts, np.int64))
        self._put("time_base", np.array([self._time_base.numerator, self._time_base.denominator], np.int64))
        self._put("whole", np.array(not partial))
        for key, value in self._about.items():
            self._put(key, np.array(value))
        with faults(self._file):
            self._archive.close()
            return [self._file.keep(partial=partial)]

    def abandon(self) -> None:
        """See `RawWriter`."""
        with suppress(OSError, ValueError):
            self._archive.close()
        self._file.drop()

    def _put(self, name: str, array: np.ndarray) -> None:
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        with faults(self._file):
            self._archive.writestr(f"{name}.npy", stream.getvalue())


def read_depth_video(path: str | os.PathLike[str]) -> Iterator[tuple[float, np.ndarray]]:
    """Yield time and depth of each frame from a file that `dajax video --raw` wrote.

    Args:
        path: the .mkv, whose .json has to be beside it, or the .npz.

    Yields:
        The time in seconds and the depth, float32 [height, width]: metres, or inverse depth of a relative model.

    Raises:
        ImageError: the file or the .json is missing or damaged, or is not one that `dajax video` wrote.
        ConfigError: the file is a .mkv and PyAV is not installed.
    """
    path = Path(path)
    try:
        yield from (_read_npz if path.suffix == ".npz" else _read_ffv1)(path)
    except DajaxError:
        raise
    except _DAMAGED as error:
        raise ImageError(
            f"{str(path)!r}: cannot be read as depth that `dajax video --raw` wrote ({type(error).__name__}: {error})"
        ) from error


def _read_npz(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    with path.open("rb") as file, np.load(file) as archive:
        base = Fraction(*(int(n) for n in archive["time_base"]))
        for number, pts in enumerate(archive["pts"].tolist()):
            yield float(pts * base), archive[f"{number:06}"]


def _read_ffv1(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    index = read_depth_video_index(path)
    base = Fraction(*index["time_base"])
    scales = list(index["scales"])
    av = import_av()
    try:
        with av.open(url_of(path)) as container:
            scale = scales.pop(0)
            for number, (frame, pts) in enumerate(zip(container.decode(video=0), index["pts"], strict=True)):
                if scales and scales[0]["frame"] == number:
                    scale = scales.pop(0)
                depth = frame.to_ndarray().astype(np.float64) * scale["step"] + scale["offset"]
                yield float(pts * base), depth.astype(np.float32)
    except av.error.FFmpegError as error:
        raise OSError(str(error)) from error


def remove_older(output: Path, written: Iterable[Path], *, partial: bool) -> list[Path]:
    """Remove the raw depth that an earlier run wrote for a video of the same name, and return its files.

    A file that `dajax video` did not write stays. All stay if a coloured video of this name and another kind is there,
    to which they may belong.

    Args:
        output: the coloured video that was asked for.
        written: the files of this run, which stay.
        partial: The video of this run is not whole. Only older files that are not whole either are removed.
    """
    others = [suffix for suffix in COLOUR_SUFFIXES if suffix != output.suffix.lower()]
    if any(output.with_suffix(suffix).exists() for suffix in others):
        return []
    bases = [output.with_name(output.stem + ending) for ending in RAW_ENDINGS.values()]
    names = [partial_name(base) for base in bases] + ([] if partial else bases)
    older = [
        file
        for name in names
        if _is_raw(name)
        for file in (name, name.with_suffix(".json"))
        if file.exists() and file not in written and (file == name or name.suffix == ".mkv")
    ]
    for file in older:
        file.unlink()
    return older


def _is_raw(path: Path) -> bool:
    """Say whether `dajax video` wrote this file of raw depth."""
    if path.suffix == ".mkv":
        with suppress(ImageError):
            return bool(read_depth_video_index(path))
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return {"pts.npy", "time_base.npy", "whole.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_depth_video_index(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of the .json beside a raw video: kind, units, model, time_base, pts, scales and so on.

    Args:
        path: the .mkv or the .json.

    Raises:
        ImageError: the .json is missing or is not one that `dajax video` wrote.
    """
    file = Path(path).with_suffix(".json")
    try:
        index = json.loads(file.read_bytes())
        if index["format"] != "dajax-depth-video-1":
            raise ValueError("its format is not dajax-depth-video-1")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(
            f"{str(file)!r}: must contain the scale of the levels of {Path(path).name}, as "
            f"`dajax video --raw ffv1` writes it ({error})"
        ) from error
    return dict(index)
