"""Reads the frames of a video or a camera, upright and with their exact times, by PyAV (FFmpeg's libraries)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np

from dajax.errors import ConfigError, ImageError, missing_extra
from dajax.images.urls import is_url
from dajax.limits import MAX_PIXELS

# Containers that hold frames themselves. Playlists and lists of files (hls, dash, concat, image sequences) would open
# other files, which nobody has named.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,gif,nut,asf,mxf,yuv4mpegpipe,mjpeg,h264,hevc,ivf"
)
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
# So many seconds may be missing at the end of the stated length: it is rounded, and the last frame has no length.
_TOLERANCE = 1.0
_CAMERA = re.compile(r"webcam:(\d+)")


@dataclass(frozen=True)
class Frame:
    """A frame as players show it.

    Attributes:
        pixels: the image, uint8 [height, width, 3], RGB, upright.
        pts: the time at which it is shown, in units of `time_base`.
        time_base: the unit of `pts`, in seconds.
    """

    pixels: np.ndarray
    pts: int
    time_base: Fraction

    @property
    def seconds(self) -> float:
        """The time at which it is shown, in seconds."""
        return float(self.pts * self.time_base)


class VideoReader:
    """Reads the frames of a video, in order, one at a time.

    It does not rely on the counts and lengths that a file states. If the video breaks off or changes its size, the
    iteration ends there and `problem` says why. Damaged frames are skipped, as players do, and `problem` counts them.

    Args:
        source: a video file, or "webcam:0" for the first camera.
        on_audio: called with each packet of the first audio stream.

    Attributes:
        source: the same as the argument.
        size: (height, width) of the upright frames.
        time_base: the unit of `Frame.pts`, in seconds.
        rate: the mean number of frames per second.
        expected: the number of frames that the file states, which may be wrong; 0 if it is unknown.
        is_live: whether the source is a camera.
        audio: the first audio stream, or None.
        count: the number of frames that were read so far.
        problem: After the last frame: what the video lacks; empty if it is whole.

    Raises:
        ImageError: the file cannot be read as a video, or has no frames.
        ConfigError: PyAV is not installed.
    """

    def __init__(self, source: str | os.PathLike[str], *, on_audio: Callable[[Any], None] | None = None) -> None:
        av = import_av()
        self.source = os.fspath(source)
        self._name = repr(self.source)
        camera = _CAMERA.fullmatch(os.fspath(source))
        self.is_live = camera is not None
        self.count = 0
        self.problem = ""
        self._on_audio = on_audio
        if is_url(source):
            raise ImageError(f"{self._name}: videos are not read from URLs; download it first")
        if not camera and not os.path.isfile(source):
            reason = "is not a file" if os.path.exists(source) else "does not exist"
            raise ImageError(f"{self._name} {reason}")
        try:
            if camera:
                device, form = camera_device(int(camera[1]))
                self._container = av.open(device, format=form)
            else:
                # "webcam:0" or "-i" may also be the name of a file, and FFmpeg gives many prefixes a meaning.
                self._container = av.open(f"file:{os.path.abspath(source)}", options=dict(_OPTIONS))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise ImageError(f"{self._name}: cannot be opened as a video ({_said(error)})") from error
        try:
            self._start(av)
        except BaseException:
            self._container.close()
            raise

    def _start(self, av: Any) -> None:
        streams = self._container.streams
        # The cover of a song is a video stream with one image.
        videos = [s for s in streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not videos:
            raise ImageError(f"{self._name}: has no video")
        self._stream = videos[0]
        self._stream.thread_type = "AUTO"
        self.audio = streams.audio[0] if streams.audio else None
        self.time_base: Fraction = self._stream.time_base
        self.rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or Fraction(30)
        self._frames = self._decoded(av)
        self._ahead: Frame | None = next(self._frames, None)
        if self._ahead is None:
            raise ImageError(f"{self._name}: has no frames{f' ({self.problem})' if self.problem else ''}")
        self.size = (self._ahead.pixels.shape[0], self._ahead.pixels.shape[1])
        self.expected = int(self._stream.frames or round(self._length() * self.rate))

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file or camera."""
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        frame, self._ahead = self._ahead, None
        if frame is None:
            frame = next(self._frames)
        self.count += 1
        return frame

    def samples(self, count: int) -> list[Frame]:
        """Return up to `count` frames that are spread over the video. The position of this reader does not change.

        There are fewer where the video cannot be searched, and none for a camera.
        """
        if self.is_live:
            return []
        av = import_av()
        found: list[Frame] = []
        length = self._length()
        start = float((self._stream.start_time or 0) * self.time_base)
        with av.open(self._container.name, options=dict(_OPTIONS)) as container:
            stream = container.streams[self._stream.index]
            for place in range(count):
                at = int((start + length * (place + 0.5) / count) / self.time_base)
                try:
                    container.seek(at, stream=stream)  # to an earlier frame, from which it can be decoded
                    decoded = container.decode(stream)
                    frame = next((frame for frame in decoded if frame.pts is not None and frame.pts >= at), None)
                except av.error.FFmpegError:
                    continue
                if frame is not None and frame.pts not in {seen.pts for seen in found}:
                    found.append(Frame(_upright(frame), frame.pts, self.time_base))
        return found

    def _length(self) -> float:
        """Return how many seconds of video the file states; 0 if it states none."""
        stream = self._stream
        if stream.duration:
            return float(stream.duration * self.time_base)
        if said := _clock(stream.metadata.get("DURATION", "")):  # Matroska states it for each stream
            return said - float((stream.start_time or 0) * self.time_base)
        if self._container.duration and len(self._container.streams) == 1:
            return float(self._container.duration / 1e6)
        return 0.0

    def _decoded(self, av: Any) -> Iterator[Frame]:
        last: int | None = None
        size: tuple[int, int] | None = None
        first = 0.0
        ticks = max(round(1 / (self.rate * self.time_base)), 1)
        listened = [self._stream] + ([self.audio] if self.audio is not None and self._on_audio else [])
        damaged = 0
        try:
            for packet in self._container.demux(listened):
                if packet.stream is not self._stream:
                    if packet.dts is not None and self._on_audio is not None:
                        self._on_audio(packet)
                    continue
                try:
                    decoded = packet.decode()
                except av.error.InvalidDataError:
                    # The following frames may be whole again.
                    damaged, decoded = damaged + 1, []
                for frame in decoded:
                    damaged += frame.is_corrupt
                    pixels = _upright(frame)
                    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
                        raise ImageError(f"{self._name}: its frames have more than {MAX_PIXELS:,} pixels")
                    if size not in (None, pixels.shape[:2]):
                        now = f"{pixels.shape[0]}x{pixels.shape[1]}"
                        self.problem = f"from frame {self.count} on, frames are {now} (height x width), not {_by(size)}"
                        return
                    size = pixels.shape[:2]
                    pts = frame.pts if frame.pts is not None else (0 if last is None else last + ticks)
                    if last is None:
                        first = float(pts * self.time_base)
                    else:  # of two frames at one time the second comes one tick later
                        pts = max(pts, last + 1)
                    last = pts
                    yield Frame(pixels, pts, self.time_base)
        except av.error.EOFError:
            pass
        except (av.error.FFmpegError, OSError) as error:
            self.problem = f"it cannot be read after frame {self.count} ({_said(error)})"
            return
        if damaged:
            self.problem = f"{damaged} of its frames are damaged"
        if last is None or self.is_live:
            return
        end = float(last * self.time_base) - first + float(1 / self.rate)
        length = self._length()
        if length - end > max(_TOLERANCE, 0.02 * length):
            ended = f"it ends after {end:.1f} seconds, but the file states {length:.1f}"
            self.problem = f"{ended}; {self.problem}" if self.problem else ended


def camera_device(number: int) -> tuple[str, str]:
    """Return the name of a camera on this system, and its format in FFmpeg.

    Raises:
        ConfigError: Cameras have no numbers on this system.
    """
    if sys.platform == "darwin":
        return str(number), "avfoundation"
    if sys.platform == "win32":
        raise ConfigError("cameras can be read on Linux and macOS only")
    return f"/dev/video{number}", "v4l2"


def import_av() -> Any:
    """Return PyAV.

    Raises:
        ConfigError: PyAV is not installed.
    """
    try:
        import av
        import av.error
        import av.stream
    except ImportError as error:
        raise ConfigError(missing_extra("video", "videos need PyAV")) from error
    return av


def _upright(frame: Any) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    # The rotation is counterclockwise, in degrees; phones write multiples of 90.
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _clock(text: str) -> float:
    """Return the seconds in a text "hours:minutes:seconds"; 0 for any other text."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text.strip())
    return 0.0 if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def _by(size: tuple[int, ...] | None) -> str:
    return "x".join(map(str, size or ()))


def _said(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
