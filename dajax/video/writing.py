"""Clips of coloured depth, by PyAV; and raw depth of clips, in 16-bit FFV1 or as numpy's .npz.

Everything is written under another name and moved to its own when it is whole; what broke off is kept under a name that
says so.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dajax.errors import ConfigError, ImageError

from .reading import Frame, import_av

# Codec and pixel format by container.
_CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
COLOUR_SUFFIXES = tuple(_CODECS)
_LEVELS = 65535


class Whole:
    """A file under a temporary name beside its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".dajax-{secrets.token_hex(8)}{path.suffix}")
        try:
            self.temporary.touch()
        except OSError as error:
            raise ImageError(f"{str(path)!r}: cannot be written ({error.strerror}). Does the folder exist?") from error

    def keep(self, *, partial: bool) -> Path:
        """Give the file its name, `NAME.partial.SUFFIX` if it is not whole, and return that."""
        path = partial_name(self.path) if partial else self.path
        os.replace(self.temporary, path)
        if not partial:
            partial_name(self.path).unlink(missing_ok=True)  # of a former run
        return path

    def drop(self) -> None:
        """Remove what there is."""
        self.temporary.unlink(missing_ok=True)


def partial_name(path: Path) -> Path:
    """Return what a file is called while it lacks its end."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


class ClipWriter:
    """Writes a clip of colour frames, each at the time of the frame that it was made of.

    Args:
        path: a .mp4, .mov, .mkv or .webm file. MP4 and MOV keep times exactly; Matroska and WebM count milliseconds.
        size: (height, width) of the frames. Odd sides get one row or column more: the codecs' colours are in squares
            of two.
        time_base: seconds that the frames' times count.
        rate: frames a second, on average.
        audio: a stream whose packets `write_audio` will be given, to be copied.

    Raises:
        ConfigError: the container or codec is not there, or cannot hold the audio.
        ImageError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: tuple[int, int],
        time_base: Fraction,
        rate: Fraction,
        audio: Any = None,
    ) -> None:
        av = import_av()
        path = Path(path)
        check_clip_name(path)
        self._file = Whole(path)
        self._odd = (size[0] % 2, size[1] % 2)
        self._failed = ""
        # Of the first frame's wait, which is otherwise kept in milliseconds.
        options = {"movie_timescale": str(time_base.denominator)} if path.suffix.lower() in (".mp4", ".mov") else {}
        try:
            self._container = av.open(_url(self._file.temporary), "w", options=options)
        except (av.error.FFmpegError, OSError) as error:
            self._file.drop()
            raise ImageError(f"{str(path)!r}: cannot be written ({error.strerror})") from error
        try:
            codec = _CODECS[path.suffix.lower()]
            if codec not in av.codecs_available:
                raise ConfigError(f"this PyAV has no {codec}, which {path.suffix} needs")
            quality = {"crf": "30", "b": "0", "cpu-used": "4"}
            if codec == "libx264":
                quality = {"crf": "18", "preset": "veryfast"}
            self._stream = self._container.add_stream(codec, rate=rate, options=quality)
            self._stream.height, self._stream.width = size[0] + self._odd[0], size[1] + self._odd[1]
            self._stream.pix_fmt = "yuv420p"
            self._stream.time_base = self._stream.codec_context.time_base = time_base
            self._audio = None
            if audio is not None:
                try:
                    self._audio = self._container.add_stream_from_template(audio)
                    self._container.start_encoding()
                except (av.error.FFmpegError, ValueError) as error:
                    raise ConfigError(
                        f"{path.suffix} cannot hold this audio ({audio.codec_context.name}): write another kind of "
                        "file, such as .mkv, or leave the audio out"
                    ) from error
        except BaseException:
            self._abandon()
            raise

    def write(self, pixels: np.ndarray, pts: int) -> None:
        """Write a frame, uint8 [height, width, 3], that is shown at `pts`."""
        av = import_av()
        if any(self._odd):
            pixels = np.pad(pixels, ((0, self._odd[0]), (0, self._odd[1]), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = pts, self._stream.codec_context.time_base
        self._mux(frame)

    def write_audio(self, packet: Any) -> None:
        """Copy a packet of the audio stream."""
        assert self._audio is not None
        packet.stream = self._audio
        with _faults(self._file):
            self._container.mux(packet)

    def close(self, *, partial: bool = False) -> Path:
        """Finish the file, and return its name."""
        try:
            self._mux(None)
            with _faults(self._file):
                self._container.close()
                return self._file.keep(partial=partial)
        except BaseException:
            self._abandon()
            raise

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._abandon()

    def _mux(self, frame: Any) -> None:
        if self._failed:
            # FFmpeg crashes where a file without a beginning is given an end.
            raise ImageError(self._failed)
        try:
            with _faults(self._file):
                for packet in self._stream.encode(frame):
                    self._container.mux(packet)
        except ImageError as error:
            self._failed = str(error)
            raise

    def _abandon(self) -> None:
        av = import_av()
        with suppress(av.error.FFmpegError, OSError, ValueError):
            self._container.close()
        self._file.drop()


def _url(path: Path) -> str:
    """Return a path as FFmpeg takes it: a folder with a colon in its name would be a protocol."""
    return f"file:{path.absolute()}"


@contextmanager
def _faults(file: Whole) -> Iterator[None]:
    """Raise what goes wrong with a file, a full disk for one, as ImageError."""
    av = import_av()
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        raise ImageError(f"{str(file.path)!r}: cannot be written ({error.strerror or error})") from error


def check_clip_name(path: Path) -> None:
    """Raise ConfigError where a clip of colours cannot have this name."""
    if path.suffix.lower() not in _CODECS:
        raise ConfigError(f"{str(path)!r}: clips are written as {', '.join(_CODECS)}")


class RawWriter(ABC):
    """Writes depth of frames, losslessly within a stated step."""

    @abstractmethod
    def write(self, depth: np.ndarray, frame: Frame) -> None:
        """Write the map of a frame."""

    @abstractmethod
    def close(self, *, partial: bool = False) -> list[Path]:
        """Finish, and return the names of the files."""

    @abstractmethod
    def abandon(self) -> None:
        """Leave nothing behind."""


class Ffv1Writer(RawWriter):
    """16-bit FFV1 in Matroska, and a .json beside it: times, and what the 65,536 steps stand for.

    depth = step * level + offset. Step and offset hold for the clip; where a map leaves their range they become others
    from that frame on, so that no value is cut off.

    Args:
        path: a .mkv file.
        about: kind, units, model and so on; becomes part of the .json.
        lo, hi: range to begin with.
        rate: frames a second, on average.
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
            with _faults(self._file):
                self._open(depth.shape, frame.time_base)
        low, high = float(depth.min()), float(depth.max())
        lo, hi = self._range
        if not self._scales or low < lo or high > hi:
            lo, hi = min(lo, low), max(hi, high)
            self._range = lo, hi
            self._scales.append({"frame": self._count, "step": (hi - lo) / _LEVELS or 1.0, "offset": lo})
        scale = self._scales[-1]
        levels = np.rint((depth.astype(np.float64) - scale["offset"]) / scale["step"])
        picture = av.VideoFrame.from_ndarray(np.clip(levels, 0, _LEVELS).astype(np.uint16), format="gray16le")
        picture.pts, picture.time_base = frame.pts, frame.time_base
        with _faults(self._file):
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
            self._times.write(f"{frame.pts}\n")
        self._count += 1

    def _open(self, size: tuple[int, ...], time_base: Fraction) -> None:
        av = import_av()
        self._time_base = time_base
        self._container = av.open(_url(self._file.temporary), "w", format="matroska")
        self._stream = self._container.add_stream("ffv1", rate=self._rate)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "gray16le"
        self._stream.time_base = self._stream.codec_context.time_base = time_base

    def close(self, *, partial: bool = False) -> list[Path]:
        """See `RawWriter`."""
        with _faults(self._file):
            return self._close(partial=partial)

    def _close(self, *, partial: bool) -> list[Path]:
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        self._container = None
        self._times.close()
        # The times were written as they came; now they become the end of the index.
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
        # Never a new clip beside the index of an old one.
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
    """One .npz: "000000", "000001", … the maps, float32; "pts" and "time_base", their times; "kind" and so on, text."""

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
        with _faults(self._file):
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
        with _faults(self._file):
            self._archive.writestr(f"{name}.npy", stream.getvalue())


def read_depth_video(path: str | os.PathLike[str]) -> Iterator[tuple[float, np.ndarray]]:
    """Yield time (seconds) and depth (float32 [height, width]) of each frame of what `dajax video --raw` wrote.

    Args:
        path: the .mkv, whose .json has to be beside it, or the .npz.

    Raises:
        ImageError: the files are not those.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with np.load(path) as archive:
            base = Fraction(*(int(n) for n in archive["time_base"]))
            for number, pts in enumerate(archive["pts"].tolist()):
                yield float(pts * base), archive[f"{number:06}"]
        return
    index = read_index(path)
    base = Fraction(*index["time_base"])
    scales = list(index["scales"])
    av = import_av()
    with av.open(f"file:{path.absolute()}") as container:
        scale = scales.pop(0)
        for number, (frame, pts) in enumerate(zip(container.decode(video=0), index["pts"], strict=True)):
            if scales and scales[0]["frame"] == number:
                scale = scales.pop(0)
            depth = frame.to_ndarray().astype(np.float64) * scale["step"] + scale["offset"]
            yield float(pts * base), depth.astype(np.float32)


def read_index(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what the .json beside a raw clip says: kind, units, model, time_base, pts, scales and so on.

    Raises:
        ImageError: it is not there, or another one.
    """
    file = Path(path).with_suffix(".json")
    try:
        index = json.loads(file.read_bytes())
        if index["format"] != "dajax-depth-video-1":
            raise ValueError("it is of another kind")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(
            f"{str(file)!r}: has to say what the levels of {Path(path).name} stand for ({error})"
        ) from error
    return dict(index)
