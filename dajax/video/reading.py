"""Reads the frames of a video or a camera, as they are displayed and with their times, by PyAV (FFmpeg's libraries)."""

from __future__ import annotations

import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np

from dajax.errors import ImageError
from dajax.limits import MAX_PIXELS
from dajax.video.clock import Clock
from dajax.video.displayed import displayed, pixel_aspect, shown_size
from dajax.video.ending import is_cut_off
from dajax.video.opening import decoder_of, import_av, open_file, open_video, said

# The stated length of a video is rounded, and the last frame has no length: it may be wrong by so much, in seconds or
# as a share.
_TOLERANCE = (1.0, 0.02)
# What lies outside is no number of frames per second. Encoders refuse some of that.
_RATES = (Fraction(1, 1000), Fraction(1000))
# Frames that are decoded, at most, from where a search ends to the frame that is searched for. Encoders put a frame
# that can be decoded alone after 250 others, if nobody asks for something else.
_SEARCHED = 300
# Audio packets that wait, at most, for a frame that says what their times are: twenty seconds.
_WAITING = 1000


@dataclass(frozen=True)
class Frame:
    """A frame as players show it.

    Attributes:
        pixels: the image, uint8 [height, width, 3], RGB for an SDR display, upright, with square pixels.
        pts: the time at which it is shown, in units of `time_base`, see `VideoReader`.
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
    """Reads the frames of a video as players show them, in order, one at a time.

    A frame is turned and mirrored as the file asks, its pixels are made square, transparency is laid on white, and HDR
    becomes SDR (ITU-R BT.2390). A video that states no colour matrix is read by BT.601 up to 1279x576 pixels, and else
    by BT.709. `notes` says what of this could not be done.

    It does not rely on the counts and lengths that a file states. If the video breaks off or changes its size, the
    iteration ends there and `problem` says why. Damaged frames are skipped, as players do, and `problem` counts them.

    Times are those of the file. If its clock begins later than after one second, or before 0, as those of recorded
    broadcasts do, times are counted from the first frame, or from the first audio where `on_audio` is given and the
    audio is earlier.

    Args:
        source: a video file, or "webcam:0" for the first camera.
        on_audio: called with each packet of the first audio stream. The times in it are counted as those of the frames.

    Attributes:
        source: the same as the argument.
        size: (height, width) of the frames as they are shown.
        time_base: the unit of `Frame.pts`, in seconds.
        rate: the mean number of frames per second.
        expected: the number of frames that the file states, which may be wrong; 0 if it is unknown.
        is_live: whether the source is a camera.
        audio: the first audio stream, or None.
        count: the number of frames that were read so far.
        problem: After the last frame: what the video lacks; empty if it is whole.
        notes: what of the video is not shown as it asks, a sentence each.

    Raises:
        ImageError: the file cannot be read as a video, or has no frames.
        ConfigError: PyAV is not installed.
    """

    def __init__(self, source: str | os.PathLike[str], *, on_audio: Callable[[Any], None] | None = None) -> None:
        av = import_av()
        self.source = os.fspath(source)
        self._name = repr(self.source)
        self.count = 0
        self.problem = ""
        self.notes: set[str] = set()
        self._on_audio = on_audio
        self._early_audio: deque[Any] = deque()  # packets that come before the frames of their time
        self._container, self.is_live = open_video(self.source)
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
        self.time_base: Fraction = self._stream.time_base
        # After close, a stream must not be asked for anything: PyAV would read memory that was given back.
        self._index, self._length = self._stream.index, max(self._stated_length(), 0.0)
        self._decoder = decoder_of(self._stream, self._name, self.notes)
        self._like = None
        if self._decoder is not self._stream.codec_context:  # Only that one passes on what the container says.
            with suppress(av.error.FFmpegError), open_file(self._container.name) as container:
                self._like = next(container.decode(container.streams[self._index]), None)
        self.audio = streams.audio[0] if streams.audio else None
        rates = self._stream.average_rate, self._stream.guessed_rate
        self.rate = next((rate for rate in rates if rate and _RATES[0] <= rate <= _RATES[1]), Fraction(30))
        self._aspect = pixel_aspect(self._stream.sample_aspect_ratio, self.notes)
        self._clock = Clock(self.time_base, self.rate, self.audio if self._on_audio else None, self.notes)
        self._frames = self._decoded(av)
        self._ahead: Frame | None = next(self._frames, None)
        if self._ahead is None:
            raise ImageError(f"{self._name}: has no frames{f' ({self.problem})' if self.problem else ''}")
        self.size = (self._ahead.pixels.shape[0], self._ahead.pixels.shape[1])
        self.expected = int(self._stream.frames or round(self._length * self.rate))

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

    def samples(self, count: int, seconds: float | None = None) -> list[Frame]:
        """Return up to `count` frames that are spread over the video. The position of this reader does not change.

        There are none for a camera, and none where the frames that are found do not span the video, because the file
        states a wrong length or none, or cannot be searched.

        Args:
            count: the number of frames.
            seconds: Only the beginning of the video is meant, of this length.
        """
        if self.is_live:
            return []
        length = self._length
        reach = min((span for span in (length, seconds) if span), default=0.0)
        if not reach:
            return []
        found: dict[int, Frame] = {}
        with open_file(self._container.name) as container:
            stream = container.streams[self._index]
            decoder = decoder_of(stream, self._name, self.notes)
            places = [reach * (place + 0.5) / count for place in range(count)]
            for place in places:
                if (frame := self._searched(container, stream, decoder, place)) is not None:
                    found[frame.pts] = Frame(self._shown(frame), frame.pts - self._clock.shift, self.time_base)
            if reach == length:
                # The video has another length if it goes on after its end.
                beyond = length + max(_TOLERANCE[0], _TOLERANCE[1] * length)
                if self._searched(container, stream, decoder, beyond) is not None:
                    return []
        frames = [found[pts] for pts in sorted(found)]
        spans = len(frames) >= min(count, 2) and frames[-1].seconds >= 0.75 * places[-1]
        return frames if spans else []

    def _searched(self, container: Any, stream: Any, decoder: Any, seconds: float) -> Any | None:
        """Return the first frame that is shown at a time or later; None if there is none, or if it is far away."""
        av = import_av()
        at = self._clock.shift + math.ceil(seconds / self.time_base)
        passed = 0
        try:
            container.seek(at, stream=stream)  # to an earlier frame, from which it can be decoded
            decoder.flush_buffers()
            for packet in container.demux(stream):
                for frame in decoder.decode(packet):
                    if frame.pts is not None and frame.pts >= at:
                        return frame
                    passed += 1
                if passed > _SEARCHED:
                    return None
        except (av.error.FFmpegError, OSError):
            pass
        return None

    def _stated_length(self) -> float:
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
        size: tuple[int, int] | None = None
        self._damaged = 0
        try:
            for frame in self._read(av):
                pixels = self._shown(frame)
                if size not in (None, pixels.shape[:2]):
                    now = f"{pixels.shape[0]}x{pixels.shape[1]}"
                    self.problem = f"from frame {self.count} on, frames are {now} (height x width), not {_by(size)}"
                    return
                size = pixels.shape[:2]
                time = self._clock.of_frame(frame.pts)
                self._pass_audio()
                yield Frame(pixels, time, self.time_base)
            self._pass_audio(ended=True)
            cut_off = not self.is_live and is_cut_off(self.source)
        except (av.error.FFmpegError, OSError) as error:
            self.problem = f"it cannot be read after frame {self.count} ({said(error)})"
            return
        problems = [f"{self._damaged} of its frames are damaged"] if self._damaged else []
        if cut_off:
            problems.append(f"it ends after {self.count} frames, because the file is cut off")
        self.problem = "; ".join(problems)

    def _read(self, av: Any) -> Iterator[Any]:
        """Yield the decoded frames, and pass audio on."""
        listened = [self._stream] + ([self.audio] if self.audio is not None and self._on_audio else [])
        try:
            for packet in self._container.demux(listened):
                if packet.stream is not self._stream:
                    if packet.dts is not None:
                        self._early_audio.append(packet)
                        self._pass_audio()
                    continue
                try:
                    decoded = self._decoder.decode(packet)
                except (av.error.InvalidDataError, av.error.ExternalError):
                    # The following frames may be whole again.
                    self._damaged, decoded = self._damaged + 1, []
                for frame in decoded:
                    self._damaged += frame.is_corrupt
                    yield frame
        except av.error.EOFError:
            pass

    def _shown(self, frame: Any) -> np.ndarray:
        height, width = shown_size(frame.height, frame.width, self._aspect)
        if height * width > MAX_PIXELS:
            raise ImageError(f"{self._name}: its frames have more than {MAX_PIXELS:,} pixels")
        try:
            return displayed(frame, self._aspect, self.notes, self._like)
        except ImageError as error:
            raise ImageError(f"{self._name}: {error}") from error

    def _pass_audio(self, *, ended: bool = False) -> None:
        """Pass on the audio packets of which the times are known."""
        while self._early_audio and self._clock.runs and self._on_audio is not None:
            wait = not ended and len(self._early_audio) < _WAITING
            if not self._clock.set_packet(self._early_audio[0], wait=wait):
                return
            self._on_audio(self._early_audio.popleft())


def _clock(text: str) -> float:
    """Return the seconds in a text "hours:minutes:seconds"; 0 for any other text."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text.strip())
    return 0.0 if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def _by(size: tuple[int, ...] | None) -> str:
    return "x".join(map(str, size or ()))
