"""Three hundred odd videos, drawn from a seed: each is shown as the formulas say, or refused with its kind."""

import itertools
import time
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pytest
from test_displayed import placed, tone_mapped_colours
from videos import write_frames

import dajax
from dajax.errors import DajaxError
from dajax.video.reading import VideoReader
from dajax.video.run import VideoSettings, depth_video

ONE = 1 << 16
# Name, codec, format of pixels, options, and how many levels of 255 flat colours may be off.
KINDS = [
    ("a.mp4", "libx264", "yuv420p", {"crf": "4"}, 5),
    ("a.mov", "libx264", "yuv444p", {"crf": "4"}, 5),
    ("a.mkv", "libx264", "yuv422p10le", {"crf": "4"}, 5),
    ("a.mp4", "libx265", "yuv420p10le", {"crf": "4", "x265-params": "log-level=none"}, 5),
    ("a.mkv", "ffv1", "yuv444p10le", {}, 3),
    ("a.mkv", "ffv1", "yuva444p", {}, 3),
    ("a.mkv", "ffv1", "bgra", {}, 3),
    ("a.mkv", "ffv1", "gbrp10le", {}, 3),
    ("a.mkv", "ffv1", "gbrap12le", {}, 3),
    ("a.mov", "qtrle", "argb", {}, 3),
    ("a.mov", "qtrle", "rgb24", {}, 3),
    ("a.mov", "png", "rgba", {}, 3),
    ("a.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}, 5),
    ("a.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "4M"}, 8),
    ("a.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "4M"}, 8),
    ("a.webm", "libvpx-vp9", "yuv420p", {"crf": "4", "b": "4M", "live": "1"}, 8),
    ("a.avi", "mpeg4", "yuv420p", {"b": "8M"}, 10),
    ("a.avi", "huffyuv", "rgb24", {}, 3),
    ("a.ts", "libx264", "yuv420p", {"crf": "4"}, 5),
    ("a.ts", "mpeg2video", "yuv420p", {"b": "8M"}, 10),
    ("a.flv", "libx264", "yuv420p", {"crf": "4"}, 5),
    ("a.nut", "rawvideo", "rgba", {}, 3),
    ("a.mov", "mjpeg", "yuvj444p", {"qmin": "1", "q": "1"}, 10),
]
LIMITED = ("prores_ks", "libvpx", "mpeg4", "mpeg2video")
MATRICES = [
    None,
    *[[a, 0, 0, d] for a, d in itertools.product((ONE, -ONE), repeat=2)],
    *[[0, b, c, 0] for b, c in itertools.product((ONE, -ONE), repeat=2)],
    [0, 0, 0, 0],
    [ONE, 0, ONE, 0],
    [46341, 46341, -46341, 46341],
    [3 * ONE, 2 * ONE, -ONE, ONE],
]
ASPECTS = [None, None, Fraction(4, 3), Fraction(16, 11), Fraction(1, 2), Fraction(12, 1), Fraction(1, 15)]
STARTS = [0, 0, Fraction(14, 10), 36_000, 360_000]
UNKNOWN = (8, 10, 11, 12, 13, 14, 15)


@dataclass
class Odd:
    """A video, and what it should show."""

    name: str
    codec: str
    form: str
    options: dict
    error: float
    size: tuple
    matrix: list | None
    aspect: Fraction | None
    start: Fraction
    tags: dict
    broken: str


def drawn(seed):
    rng = np.random.default_rng(seed)
    name, codec, form, options, error = KINDS[seed % len(KINDS)]
    # x265 damages the heap where an image is narrower than its blocks, and FFmpeg does not know tiny MPEG streams.
    least = 40 if codec in ("libx265", "mpeg2video") else 16
    height, width = (int(2 * rng.integers(least, 70)) for _ in range(2))
    is_rgb = av.VideoFormat(form).is_rgb
    spaces = [2, 2, 2, 1, 5, 6, 7, 9, 3, *(UNKNOWN if seed % 7 == 0 else ())]
    if codec in ("mjpeg", "libvpx", "mpeg4"):  # They know BT.601 alone, or say nothing.
        spaces = [2, 5]
    if codec == "libx265":
        spaces.remove(3)
    tags = {
        "colorspace": 0 if is_rgb else int(rng.choice(spaces)),
        # These codecs have no full range.
        "color_range": 2 if is_rgb or "yuvj" in form else int(rng.choice([1, 1, 0, 1 if codec in LIMITED else 2])),
        "color_trc": int(rng.choice([1, 1, 2, 6, 13, 16, 18, 14, 9, 8])),
        "color_primaries": int(rng.choice([1, 2, 9, 6, 12])),
    }
    return Odd(
        name, codec, form, options, error, (height, width), MATRICES[rng.integers(len(MATRICES))],
        ASPECTS[rng.integers(len(ASPECTS))], Fraction(STARTS[rng.integers(len(STARTS))] * (name != "a.avi")), tags,
        str(rng.choice(["", "", "", "cut", "flipped"])),
    )  # fmt: skip


def image_of(odd, seed):
    """Four flat quarters, RGBA; one hides its colour, and one is half transparent."""
    height, width = odd.size
    colours = np.random.default_rng(seed).integers(20, 236, (2, 2, 4)).astype(np.uint8)
    colours[..., 3] = 255
    if any(part.is_alpha for part in av.VideoFormat(odd.form).components):
        colours[0, 1, 3], colours[1, 1, 3] = 0, 128
    return np.repeat(np.repeat(colours, height // 2, axis=0), width // 2, axis=1)


def write(odd, path, seed):
    swscale = {1: 1, 7: 7, 9: 9}
    image = image_of(odd, seed)
    by_size = 5  # all are small
    frames = []
    for _ in range(4):
        frame = av.VideoFrame.from_ndarray(image, format="rgba").reformat(
            format=odd.form, dst_colorspace=swscale.get(odd.tags["colorspace"], by_size),
            dst_color_range=odd.tags["color_range"] or 1,
        )  # fmt: skip
        for tag, number in odd.tags.items():
            setattr(frame, tag, number)
        frames.append(frame)
    base = Fraction(1, 25) if odd.codec == "mpeg2video" or odd.name == "a.avi" else Fraction(1, 1000)
    pts = [round(odd.start / base) + (number if base > Fraction(1, 100) else 40 * number) for number in range(4)]
    container = {"live": odd.options["live"]} if "live" in odd.options else {}
    options = {key: value for key, value in odd.options.items() if key != "live"}
    matrix = odd.matrix and [*odd.matrix[:2], 0, *odd.matrix[2:], 0, 0, 0, 1 << 30]
    write_frames(
        path, frames, odd.codec, pts=pts, matrix=matrix, aspect=odd.aspect, options=options, container=container,
        time_base=base,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    if odd.broken == "cut":
        data = data[: len(data) * 4 // 5]
    if odd.broken == "flipped":
        for at in np.random.default_rng(seed).integers(0, len(data), 20):
            data[at] ^= 0xFF
    path.write_bytes(data)


def read(path):
    with VideoReader(path) as reader:
        return list(reader), reader


def by_hand(odd, path, seed):
    """The quarters as the formulas show them, with tags, matrix and shape as FFmpeg passes them on."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        curve, primaries = frame.color_trc, frame.color_primaries
        data = frame.side_data.get("DISPLAYMATRIX")
        aspect = stream.sample_aspect_ratio or Fraction(1)
    image = image_of(odd, seed).astype(float)
    colours = image[..., :3]
    if curve in (16, 18) or primaries == 9:
        colours = tone_mapped_colours(colours / 255, curve)
    share = image[..., 3:] / 255
    shown = np.rint(share * colours + (1 - share) * 255).astype(np.uint8)
    turn = (1, 0, 0, 1)
    if data is not None:
        numbers = np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]]
        if odd.matrix in MATRICES[1:9]:
            turn = tuple(np.sign(numbers).astype(int).tolist())
    if not Fraction(1, 10) <= aspect <= 10:
        aspect = Fraction(1)
    height, width = odd.size
    size = (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width)
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, odd.size, strict=True))
    return placed(shown[rows][:, columns], *turn)


@pytest.fixture
def estimator(monkeypatch):
    """Tiny, whose network is a sum: nothing is compiled."""
    estimator = dajax.DepthEstimator("tiny", batch_size=4, input_size=42)
    monkeypatch.setattr(estimator, "predict", lambda pixels: np.asarray(pixels).sum(-1, dtype=np.float32))
    return estimator


def attempt(do):
    """Return a result and "", or None and the message of an error of dajax. Other errors pass."""
    try:
        return do(), ""
    except DajaxError as error:
        return None, str(error)


def check(odd, path, seed, tmp_path, estimator):
    """Read a video and make one of depth; return the kind of its refusal, or ""."""
    found, refusal = attempt(lambda: read(path))
    if found is None:
        assert str(path) in refusal
        unknown = odd.tags["colorspace"] in UNKNOWN
        assert odd.broken or (unknown and "its colour matrix" in refusal), refusal
        return refusal.split(": ", 1)[1]
    frames, reader = found
    if not odd.broken:
        assert (len(frames), reader.problem) == (4, ""), reader.problem
        expected = by_hand(odd, path, seed)
        assert frames[-1].pixels.shape == expected.shape
        height, width = expected.shape[:2]
        for down, across in itertools.product((0.25, 0.75), repeat=2):
            place = int(down * height), int(across * width)
            difference = np.abs(frames[-1].pixels[place].astype(int) - expected[place]).max()
            # HDR enlarges what codecs lose.
            lost = (odd.error > 3 or "10" not in odd.form) and {odd.tags["color_trc"], odd.tags["color_primaries"]} & {
                16,
                18,
                9,
            }
            assert difference <= odd.error or lost, (place, frames[-1].pixels[place], expected[place])
        assert 0 <= frames[0].seconds <= 1
        steps = np.diff([frame.seconds for frame in frames])
        assert np.abs(steps - 0.04).max() < 2e-3
    raw = ("none", "ffv1", "npz")[seed % 3]
    output = tmp_path / f"out{('.mp4', '.mov', '.mkv', '.webm')[seed % 4]}"
    settings = VideoSettings(raw=raw, smooth=False)
    report, refusal = attempt(lambda: depth_video(estimator, path, output, settings))
    if report is None:
        assert odd.broken, refusal
        return refusal
    assert report.frames == len(frames)
    assert bool(report.problem) == bool(reader.problem)
    with av.open(str(report.written[0])) as video:
        assert sum(1 for _ in video.decode(video=0)) == len(frames)
    return ""


@pytest.mark.slow
def test_three_hundred_odd_videos(tmp_path, estimator):
    refused, longest = {}, 0.0
    for seed in range(300):
        folder = tmp_path / str(seed)
        folder.mkdir()
        odd = drawn(seed)
        path = folder / odd.name
        write(odd, path, seed)
        begin = time.perf_counter()
        try:
            kind = check(odd, path, seed, folder, estimator)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {odd}") from error
        longest = max(longest, time.perf_counter() - begin)
        refused[kind] = refused.get(kind, 0) + 1
    print(f"longest {longest:.1f} s", *refused.items(), sep="\n")
    assert longest < 20
    assert refused[""] > 200
