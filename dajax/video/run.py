"""A video in, a video of its depth out: what `dajax video` does."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dajax.depth_maps.colormap import colorize
from dajax.depth_maps.encode import described
from dajax.depth_maps.panels import depth_colors, side_by_side
from dajax.errors import ConfigError, ImageError
from dajax.images.read import DecodedImage
from dajax.inference.estimator import DepthEstimator
from dajax.video.raw import Ffv1Writer, NpzWriter, RawWriter
from dajax.video.reading import Frame, VideoReader
from dajax.video.smoothing import Smoother
from dajax.video.writing import VideoWriter, check_video_name

RawVideo = Literal["none", "ffv1", "npz"]
RAW_ENDINGS: dict[str, str] = {"ffv1": "_depth.mkv", "npz": "_depth.npz"}
# Frames that are looked at for the range of the colours.
_SAMPLES = 24
# What a camera's range is taken from.
_FIRST = 16
# Of all depths that were looked at; what is beyond has the colours of the ends.
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class VideoSettings:
    """How a video is done.

    Attributes:
        colormap: see `dajax.depth_maps.colormap.colorize`; near has its upper end.
        side_by_side: put the image left of the map.
        raw: also write the depth itself, "ffv1" (16 bits, with their scale in a .json) or "npz" (float32).
        raw_size: of that: "source", the video's, or "model", the network's.
        smooth: steady the depth, see `dajax.video.smoothing`.
        audio: copy the video's first audio stream.
        limits: values of the colours' ends, (smallest, largest); None: of frames that are spread over the video.
        seconds: stop after so many; None: at the video's end.
    """

    colormap: str = "Spectral_r"
    side_by_side: bool = False
    raw: RawVideo = "none"
    raw_size: Literal["source", "model"] = "source"
    smooth: bool = True
    audio: bool = False
    limits: tuple[float, float] | None = None
    seconds: float | None = None

    def check(self) -> None:
        """Raise ConfigError or ImageError where this cannot be done."""
        colorize([[0.0]], self.colormap)
        if self.raw not in get_args(RawVideo):
            raise ConfigError(f"raw must be one of {', '.join(get_args(RawVideo))}, got {self.raw!r}")
        if self.raw_size not in ("source", "model"):
            raise ConfigError(f"raw_size must be source or model, got {self.raw_size!r}")
        if self.limits is not None and not (np.isfinite(self.limits).all() and self.limits[0] < self.limits[1]):
            raise ConfigError(f"the limits must be finite, the smaller first, got {self.limits}")
        if self.seconds is not None and not self.seconds > 0:
            raise ConfigError(f"seconds must be positive, got {self.seconds}")
        if self.smooth:
            Smoother()  # sees that OpenCV is there


@dataclass
class VideoReport:
    """What became of a video.

    Attributes:
        frames: how many there are in the output.
        written: the files.
        limits: values at the ends of the colours.
        problem: what the video lacked, so that the output is called `NAME.partial.SUFFIX`; empty if it is whole.
    """

    frames: int = 0
    written: list[Path] = field(default_factory=list)
    limits: tuple[float, float] = (0.0, 0.0)
    problem: str = ""


def depth_of_frames(
    estimator: DepthEstimator, frames: Iterable[Frame], *, smooth: bool = True
) -> Iterator[tuple[Frame, np.ndarray]]:
    """Yield each frame with its depth, float32 in the network's size, in order; up to 40 frames later if steadied.

    Args:
        estimator: what estimates.
        frames: such as a `VideoReader`.
        smooth: see `dajax.video.smoothing`.

    Raises:
        ImageError: depth is not finite.
        ConfigError: steadying needs OpenCV.
    """
    waiting: deque[Frame] = deque()  # for the network
    held: deque[Frame] = deque()  # for their steadied depth
    smoother = Smoother("metric" if estimator.model.config.is_metric else "relative") if smooth else None

    def pixels() -> Iterator[DecodedImage]:
        for frame in frames:
            waiting.append(frame)
            yield DecodedImage(frame.pixels)

    for depth in estimator.stream(pixels(), source_size=False, whole_batches=True):
        frame = waiting.popleft()
        if not np.isfinite(depth).all():
            raise ImageError(f"the depth at {frame.seconds:.3f} s is not finite")
        if smoother is None:
            yield frame, depth
            continue
        held.append(frame)
        for steady in smoother.push(depth, frame.pixels):
            yield held.popleft(), steady
    for steady in smoother.flush() if smoother is not None else ():
        yield held.popleft(), steady


def depth_video(
    estimator: DepthEstimator,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: VideoSettings | None = None,
    *,
    model: str = "",
    on_start: Callable[[int], None] = lambda expected: None,
    on_frame: Callable[[], None] = lambda: None,
    stop: threading.Event | None = None,
) -> VideoReport:
    """Write a video of the coloured depth of a video: as many frames, at the same times, upright.

    Memory does not grow with the video: about sixty frames are held.

    Args:
        estimator: what estimates.
        source: a file, or "webcam:0": the first camera, until `stop`.
        output: a .mp4, .mov, .mkv or .webm file; its folder is made if need be. Raw depth is written beside it.
        settings: how.
        model: name to put into raw files.
        on_start: called once with the number of frames that there may be, 0 if that is not known.
        on_frame: called for each frame that is written.
        stop: set it from another thread or a signal's handler to end early: that is how a camera's video ends.

    Returns:
        What was written. Where the video breaks off or is stopped, that is what there was up to then, under a name that
        says so.

    Raises:
        ImageError: the video cannot be read, or the output not written.
        ConfigError: settings that cannot be used; PyAV or OpenCV is not installed.
    """
    settings = VideoSettings() if settings is None else settings
    settings.check()
    output = Path(output)
    check_video_name(output)
    if os.path.exists(source) and output.exists() and os.path.samefile(source, output):
        raise ConfigError(f"{str(output)!r} is the video itself: choose another name")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{str(output.parent)!r}: the output folder cannot be made ({error.strerror})") from error
    packets: deque[Any] = deque()
    with VideoReader(source, on_audio=packets.append if settings.audio else None) as reader:
        if settings.audio and reader.audio is None:
            raise ConfigError(f"{os.fspath(source)!r} has no audio")
        estimator.processor.target_size(*reader.size)
        stop = threading.Event() if stop is None else stop
        frames = _until(reader, settings.seconds, stop)
        steadied = depth_of_frames(estimator, frames, smooth=settings.smooth)
        report = VideoReport(limits=settings.limits or (0.0, 0.0))
        on_start(reader.expected)
        begun: list[tuple[Frame, np.ndarray]] = []
        if settings.limits is None:
            looked_at = estimator.stream(
                [DecodedImage(frame.pixels) for frame in reader.samples(_SAMPLES)], source_size=False
            )
            seen = list(looked_at)
            if not seen:
                begun = list(islice(steadied, _FIRST))
                seen = [depth for _, depth in begun]
            if not seen:
                raise ImageError(f"{os.fspath(source)!r}: no frame could be done ({reader.problem or 'stopped'})")
            low, high = np.percentile(np.concatenate([depth.ravel() for depth in seen]), _PERCENTILES)
            report.limits = (float(low), float(high))
        writers = _Writers(reader, output, settings, estimator, model, report.limits)
        try:
            for frame, depth in chain(begun, steadied):
                while packets:
                    writers.audio(packets.popleft())
                writers.write(frame, depth)
                report.frames += 1
                on_frame()
            report.problem = reader.problem or ("interrupted" if stop.is_set() and not reader.is_live else "")
        except (ImageError, MemoryError) as error:
            report.problem = str(error)
        except BaseException:
            writers.abandon()
            raise
        try:
            if not report.frames:
                raise ImageError(f"{os.fspath(source)!r}: no frame could be done ({report.problem or 'stopped'})")
            writers.close(report, packets)
        except BaseException:
            writers.abandon()
            raise
    return report


class _Writers:
    """All that is written of a video."""

    def __init__(
        self,
        reader: VideoReader,
        output: Path,
        settings: VideoSettings,
        estimator: DepthEstimator,
        model: str,
        limits: tuple[float, float],
    ) -> None:
        self._settings, self._limits, self._resize = settings, limits, estimator.processor.post_process_depth_estimation
        self._kind = "metric" if estimator.model.config.is_metric else "relative"
        height, width = reader.size
        if settings.side_by_side:
            width = side_by_side(np.zeros((height, width, 3), np.uint8), np.zeros((height, width))).width
        audio = reader.audio if settings.audio else None
        self._video = VideoWriter(output, (height, width), reader.time_base, reader.rate, audio)
        self._raw: RawWriter | None = None
        about = described(self._kind, model, estimator.model.config.style)
        if settings.raw != "none":
            path = output.with_name(output.stem + RAW_ENDINGS[settings.raw])
            if settings.raw == "npz":
                self._raw = NpzWriter(path, about)
            else:
                low, high = limits
                if self._kind == "metric":  # what the model can say at most
                    low, high = 0.0, float(estimator.model.config.max_depth or high)
                else:  # room on both sides for frames that were not looked at
                    low, high = low - 0.5 * (high - low), high + 0.5 * (high - low)
                self._raw = Ffv1Writer(path, about, lo=low, hi=high, rate=reader.rate)

    def write(self, frame: Frame, depth: np.ndarray) -> None:
        size = (frame.pixels.shape[0], frame.pixels.shape[1])
        full = self._resize(depth[None], [size])[0]["predicted_depth"]
        if self._raw is not None:
            self._raw.write(full if self._settings.raw_size == "source" else depth, frame)
        low, high = self._limits
        options: dict[str, Any] = {"cmap": self._settings.colormap, "kind": self._kind, "lo": low, "hi": high}
        if self._settings.side_by_side:
            colours = np.asarray(side_by_side(frame.pixels, full, **options))
        else:
            colours = depth_colors(full, **options)
        self._video.write(colours, frame.pts)

    def audio(self, packet: Any) -> None:
        self._video.write_audio(packet)

    def close(self, report: VideoReport, packets: deque[Any]) -> None:
        """Finish the files, with the rest of the audio; what cannot be finished becomes the report's problem."""
        files: list[Path] = []
        # The values first: a coloured video without the values that were asked for would look finished.
        if self._raw is not None:
            try:
                files = self._raw.close(partial=bool(report.problem))
            except ImageError as error:
                self._raw.abandon()  # on a full disk that makes room for the end of the coloured video
                report.problem = report.problem or str(error)
        try:
            while packets:
                self.audio(packets.popleft())
        except ImageError as error:
            report.problem = report.problem or str(error)
        report.written = [self._video.close(partial=bool(report.problem)), *files]

    def abandon(self) -> None:
        self._video.abandon()
        if self._raw is not None:
            self._raw.abandon()


def _until(frames: Iterable[Frame], seconds: float | None, stop: threading.Event) -> Iterator[Frame]:
    start: float | None = None
    for frame in frames:
        start = frame.seconds if start is None else start
        if stop.is_set() or (seconds is not None and frame.seconds - start >= seconds):
            return
        yield frame
