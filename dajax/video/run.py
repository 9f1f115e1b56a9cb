"""Makes a video of depth from a video. The command `dajax video` calls it."""

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
from dajax.files import in_the_way_of
from dajax.images.read import DecodedImage
from dajax.inference.estimator import DepthEstimator
from dajax.video.raw import RAW_ENDINGS, Ffv1Writer, NpzWriter, RawWriter, remove_older
from dajax.video.reading import Frame, VideoReader
from dajax.video.smoothing import Smoother
from dajax.video.writing import VideoWriter, check_video_name

RawVideo = Literal["none", "ffv1", "npz"]
# The number of frames, spread over a video, from which the range of the colours is taken.
_SAMPLES = 24
# The number of first frames from which it is taken where a video cannot be searched, such as that of a camera.
_FIRST = 16
# The percentiles of all these depths that become the ends of the colours.
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class VideoSettings:
    """How a video of depth is made.

    Attributes:
        colormap: the name of a colour map, see `dajax.depth_maps.colorize`; its upper end is near.
        side_by_side: Put the image to the left of its depth map.
        raw: also write the depth itself: "ffv1" (16 bits, and a .json with their scale) or "npz" (float32).
        raw_size: the size of the raw depth: "source" is the size of the video, "model" that of the network's output.
        smooth: Steady the depth over time, see `dajax.video.Smoother`.
        audio: Copy the first audio stream of the video.
        limits: the depths at the ends of the colours, (smallest, largest), in metres or inverse depth; None: they are
            taken from frames that are spread over the video.
        seconds: Stop after so many seconds of the video; None: at its end.
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
        """Check all values.

        Raises:
            ConfigError: a value cannot be used, or a package that it needs is not installed.
            ImageError: there is no such colour map.
        """
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
            Smoother()  # raises if OpenCV is missing


@dataclass
class VideoReport:
    """What `depth_video` wrote.

    Attributes:
        frames: the number of frames in the output.
        written: the files.
        limits: the depths at the ends of the colours.
        problem: what the video lacked, so that the output is called `NAME.partial.SUFFIX`; empty if it is whole.
        notes: what of the video is not shown as it asks, and which files of an earlier run were removed.
    """

    frames: int = 0
    written: list[Path] = field(default_factory=list)
    limits: tuple[float, float] = (0.0, 0.0)
    problem: str = ""
    notes: list[str] = field(default_factory=list)


def depth_of_frames(
    estimator: DepthEstimator, frames: Iterable[Frame], *, smooth: bool = True
) -> Iterator[tuple[Frame, np.ndarray]]:
    """Yield each frame with its depth, in order. Steadied depth comes up to 40 frames later than its frame is read.

    Args:
        estimator: Estimates the depth.
        frames: the frames, such as a `VideoReader`.
        smooth: Steady the depth over time, see `dajax.video.Smoother`.

    Yields:
        The frame and its depth, float32 [height, width] in the size of the network's output: metres, or inverse depth
        of a relative model.

    Raises:
        ImageError: the depth of a frame is not finite.
        ConfigError: `smooth` is set and OpenCV is not installed.
    """
    waiting: deque[Frame] = deque()  # for the network
    held: deque[Frame] = deque()  # for the steadied depth
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
    """Write a video of coloured depth with as many frames as the source, at the same times, in the shape that is shown.

    Memory does not grow with the length of the video: it holds about sixty frames.

    Args:
        estimator: Estimates the depth.
        source: a video file, or "webcam:0" for the first camera, which is read until `stop` is set.
        output: a .mp4, .mov, .mkv or .webm file; its folder is made if it does not exist. Raw depth is written beside
            it, and that of an earlier run is removed.
        settings: how the video is made; None: the defaults.
        model: the name of the model, which becomes part of raw files.
        on_start: called once with the number of frames that the source states, 0 if that is unknown.
        on_frame: called after each written frame.
        stop: Set it from another thread or from a signal handler to end early. A camera's video always ends so.

    Returns:
        What was written. If the video breaks off or is stopped, the files contain the frames up to then, and their
        names say so.

    Raises:
        ImageError: the video cannot be read, or the output cannot be written.
        ConfigError: the settings cannot be used, or PyAV or OpenCV is not installed.
    """
    settings = VideoSettings() if settings is None else settings
    settings.check()
    output = Path(output)
    _prepare_output(source, output)
    stop = threading.Event() if stop is None else stop
    packets: deque[Any] = deque()
    with VideoReader(source, on_audio=packets.append if settings.audio else None) as reader:
        if settings.audio and reader.audio is None:
            raise ConfigError(f"{os.fspath(source)!r} has no audio")
        estimator.processor.target_size(*reader.size)  # raises if the network cannot take this size
        frames = _until(reader, settings.seconds, stop)
        depths = depth_of_frames(estimator, frames, smooth=settings.smooth)
        on_start(reader.expected)
        report = VideoReport()
        report.limits, first = _limits(estimator, reader, depths, settings)
        writers = _Writers(reader, output, settings, estimator, model, report.limits)
        try:
            try:
                for frame, depth in chain(first, depths):
                    while packets:
                        writers.audio(packets.popleft())
                    writers.write(frame, depth)
                    report.frames += 1
                    on_frame()
                report.problem = reader.problem or ("interrupted" if stop.is_set() and not reader.is_live else "")
            except (ImageError, MemoryError) as error:
                report.problem = str(error)
            if not report.frames:
                raise _no_frame(source, report.problem)
            writers.close(report, packets)
        except BaseException:
            writers.abandon()
            raise
        report.notes = sorted(reader.notes)
    if older := remove_older(output, report.written, partial=bool(report.problem)):
        report.notes.append(f"raw depth of an earlier run was removed: {', '.join(map(str, older))}")
    return report


def _prepare_output(source: str | os.PathLike[str], output: Path) -> None:
    check_video_name(output)
    if os.path.exists(source) and output.exists() and os.path.samefile(source, output):
        raise ConfigError(f"{str(output)!r} is the video itself: choose another name for the output")
    if problem := in_the_way_of(output.parent):
        raise ImageError(problem)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{str(output.parent)!r}: the output folder cannot be made ({error.strerror})") from error


def _limits(
    estimator: DepthEstimator, reader: VideoReader, depths: Iterator[tuple[Frame, np.ndarray]], settings: VideoSettings
) -> tuple[tuple[float, float], list[tuple[Frame, np.ndarray]]]:
    """Return the depths at the ends of the colours, and the pairs that this has already taken from `depths`."""
    if settings.limits is not None:
        return settings.limits, []
    samples = [DecodedImage(frame.pixels) for frame in reader.samples(_SAMPLES, settings.seconds)]
    seen = list(estimator.stream(samples, source_size=False))
    first: list[tuple[Frame, np.ndarray]] = []
    if not seen:
        first = list(islice(depths, _FIRST))
        seen = [depth for _, depth in first]
    if not seen:
        raise _no_frame(reader.source, reader.problem)
    low, high = np.percentile(np.concatenate([depth.ravel() for depth in seen]), _PERCENTILES)
    return (float(low), float(high)), first


def _no_frame(source: str | os.PathLike[str], problem: str) -> ImageError:
    return ImageError(f"{os.fspath(source)!r}: no frame could be written ({problem or 'stopped'})")


class _Writers:
    """All files that are written for a video."""

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
                if self._kind == "metric":  # the whole range of the model
                    low, high = 0.0, float(estimator.model.config.max_depth or high)
                else:  # with room on both sides for frames that were not sampled
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
        """Finish the files with the rest of the audio. If one cannot be finished, the report's problem says why."""
        files: list[Path] = []
        # The raw depth comes first: a coloured video without the raw depth that was asked for would look finished.
        if self._raw is not None:
            try:
                files = self._raw.close(partial=bool(report.problem))
            except ImageError as error:
                self._raw.abandon()  # on a full disk this makes room for the end of the coloured video
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
