"""Videos made here: any times, rotation, audio, container."""

from fractions import Fraction

import av
import numpy as np

TICKS = Fraction(1, 90000)
# Of a variable rate: 11 to 100 ms.
UNEVEN = np.cumsum(np.random.default_rng(1).integers(1000, 9000, 30)).tolist()


def frame_image(number: int, size=(64, 96)) -> np.ndarray:
    """An image with a red corner at the top left, brighter from frame to frame."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 1] = 4 * number % 256
    image[..., 2] = np.linspace(0, 255, size[1])
    image[: size[0] // 3, : size[1] // 3] = [255, 0, 0]
    return image


def make_video(
    path, *, pts=UNEVEN, size=(64, 96), time_base=TICKS, turn=0, audio=None, codec="libx264", options=None,
    metadata=None,
):  # fmt: skip
    """Write a video with a frame at each of `pts`; `turn`: degrees counterclockwise that players turn it by."""
    options = {"movie_timescale": "90000"} | (options or {}) if str(path).endswith((".mp4", ".mov")) else options or {}
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=30, options={"crf": "5"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        if turn:
            # QuickTime's matrix: x right, y down, 16.16 fixed point.
            cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turn // 90 % 4]
            one = 1 << 16
            stream.set_display_matrix([cos * one, -sin * one, 0, sin * one, cos * one, 0, 0, 0, 1 << 30])
        sound = None
        if audio:
            sound = container.add_stream(audio, rate=48000)
            sound.layout = "mono"
        for number, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(frame_image(number, size), format="rgb24")
            frame.pts, frame.time_base = at, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            tone = (np.sin(np.arange(48000) / 20) * 8000).astype(np.int16)
            for start in range(0, 48000, 1024):
                part = tone[None, start : start + 1024]
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def times(path) -> list[Fraction]:
    """The exact times of a video's frames, as PyAV gives them."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def make_images(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def write_frames(
    path, frames, codec, *, pts=None, matrix=None, aspect=None, options=None, container=None,
    time_base=Fraction(1, 30),
):  # fmt: skip
    """Write frames as they are, with the colour tags of the first; `matrix`: the nine numbers of a display matrix."""
    first = frames[0]
    with av.open(str(path), "w", options=container or {}) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width, stream.pix_fmt = first.height, first.width, first.format.name
        for tag in ("colorspace", "color_range", "color_primaries", "color_trc"):
            setattr(stream.codec_context, tag, getattr(first, tag))
        stream.time_base = stream.codec_context.time_base = time_base
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number if pts is None else pts[number], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def yuv_frame(values, form="yuv444p", **tags) -> av.VideoFrame:
    """A frame of which the planes are given, [planes, height, width], in all formats with planes of one size."""
    frame = av.VideoFrame(values.shape[2], values.shape[1], form)
    for plane, image in zip(frame.planes, values, strict=True):
        kind = np.uint8 if image.dtype == np.uint8 else np.uint16
        padded = np.zeros((plane.height, plane.line_size // np.dtype(kind).itemsize), kind)
        padded[:, : plane.width] = image
        plane.update(padded.tobytes())
    for tag, number in tags.items():
        setattr(frame, tag, number)
    return frame
