"""Writes videos of coloured depth, by PyAV.

A file is written under a temporary name and gets its own name when it is whole. A file without its end is kept as
NAME.partial.SUFFIX.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dajax.errors import ConfigError, ImageError
from dajax.files import temporary_path
from dajax.video.displayed import BT601, BT709, matrix_of_size
from dajax.video.opening import import_av

# The codec of each container.
_CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
# PyAV's `Colorspace` has numbers of its own.
_SWSCALE = {BT601: 5, BT709: 1}
# FFmpeg's number of the range in which black is 16 and white is 235.
LIMITED = 1
COLOUR_SUFFIXES = tuple(_CODECS)


class Whole:
    """A file that is written under a temporary name, in the folder where it will be.

    Args:
        path: its final name.

    Raises:
        ImageError: the folder does not exist or cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = temporary_path(path, path.suffix)
        try:
            self.temporary.touch()
        except OSError as error:
            raise ImageError(f"{str(path)!r}: cannot be written ({error.strerror}). Does the folder exist?") from error

    def keep(self, *, partial: bool) -> Path:
        """Give the file its name, `NAME.partial.SUFFIX` if it is not whole, and return this name."""
        path = partial_name(self.path) if partial else self.path
        os.replace(self.temporary, path)
        if not partial:
            partial_name(self.path).unlink(missing_ok=True)  # from an earlier run
        return path

    def drop(self) -> None:
        """Remove the file."""
        self.temporary.unlink(missing_ok=True)


def partial_name(path: Path) -> Path:
    """Return the name of a file that lacks its end."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


class VideoWriter:
    """Writes a video of coloured frames, each at the time of the frame from which it was made.

    The file says how colours are stored: by BT.601 up to 1279x576 pixels, and else by BT.709, in the limited range.

    Args:
        path: a .mp4, .mov, .mkv or .webm file. MP4 and MOV keep times exactly; Matroska and WebM round to milliseconds.
        size: (height, width) of the frames. An odd side gets one more row or column, because the codecs store colours
            for squares of two by two pixels.
        time_base: the unit of the frames' times, in seconds.
        rate: the mean number of frames per second.
        audio: the audio stream whose packets `write_audio` will copy, or None.

    Raises:
        ConfigError: the container is unknown, its codec is missing, or it cannot hold the audio.
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
        check_video_name(path)
        self._file = Whole(path)
        self._odd = (size[0] % 2, size[1] % 2)
        self._failed = ""
        # Otherwise the time of the first frame would be rounded to milliseconds.
        options = {"movie_timescale": str(time_base.denominator)} if path.suffix.lower() in (".mp4", ".mov") else {}
        try:
            self._container = av.open(url_of(self._file.temporary), "w", options=options)
        except (av.error.FFmpegError, OSError) as error:
            self._file.drop()
            raise ImageError(f"{str(path)!r}: cannot be written ({error.strerror})") from error
        try:
            codec = _CODECS[path.suffix.lower()]
            if codec not in av.codecs_available:
                raise ConfigError(f"this PyAV has no encoder {codec}, which {path.suffix} needs")
            quality = {"crf": "30", "b": "0", "cpu-used": "4"}
            if codec == "libx264":
                quality = {"crf": "18", "preset": "veryfast"}
            # The rate says how to spend bits; frames have their own times. Encoders refuse what these cannot have.
            rate = min(max(rate, Fraction(1)), 1 / time_base)
            self._stream = self._container.add_stream(codec, rate=rate, options=quality)
            self._stream.height, self._stream.width = size[0] + self._odd[0], size[1] + self._odd[1]
            self._stream.pix_fmt = "yuv420p"
            # A player that does not read the tags guesses the same by the size.
            self._matrix = matrix_of_size(self._stream.height, self._stream.width)
            set_colours(self._stream.codec_context, self._matrix)
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
        """Write a frame, uint8 [height, width, 3], RGB, that is shown at the time `pts`."""
        av = import_av()
        if any(self._odd):
            pixels = np.pad(pixels, ((0, self._odd[0]), (0, self._odd[1]), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=_SWSCALE[self._matrix], dst_color_range=LIMITED)
        set_colours(frame, self._matrix)
        frame.pts, frame.time_base = pts, self._stream.codec_context.time_base
        self._mux(frame)

    def write_audio(self, packet: Any) -> None:
        """Copy a packet of the audio stream."""
        assert self._audio is not None
        packet.stream = self._audio
        with faults(self._file):
            self._container.mux(packet)

    def close(self, *, partial: bool = False) -> Path:
        """Finish the file and return its name."""
        try:
            self._mux(None)
            with faults(self._file):
                self._container.close()
                return self._file.keep(partial=partial)
        except BaseException:
            self._abandon()
            raise

    def abandon(self) -> None:
        """Remove the file."""
        self._abandon()

    def _mux(self, frame: Any) -> None:
        if self._failed:
            # FFmpeg crashes if a file without a beginning gets an end.
            raise ImageError(self._failed)
        try:
            with faults(self._file):
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


def set_colours(target: Any, matrix: int) -> None:
    """Tag a frame or an encoder with a matrix of ITU-T H.273, and with the primaries and the curve that belong to it.

    BT.601 (525 lines) and BT.709 have the same number in all three tables of H.273 (6 and 1). The range is limited.
    """
    target.colorspace = target.color_primaries = target.color_trc = matrix
    target.color_range = LIMITED


def url_of(path: Path) -> str:
    """Return a path in the form that FFmpeg takes. Without it, "a:b/c.mp4" would be the protocol "a"."""
    return f"file:{path.absolute()}"


@contextmanager
def faults(file: Whole) -> Iterator[None]:
    """Turn errors of a file, such as a full disk, into ImageError."""
    av = import_av()
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        raise ImageError(f"{str(file.path)!r}: cannot be written ({error.strerror or error})") from error


def check_video_name(path: Path) -> None:
    """Raise ConfigError if a video of coloured depth cannot have this name."""
    if path.suffix.lower() not in _CODECS:
        raise ConfigError(f"{str(path)!r}: videos are written as {', '.join(_CODECS)}")
