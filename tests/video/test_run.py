"""A video in, a video of depth out."""

import resource
import subprocess
import sys
import threading
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from videos import TICKS, UNEVEN, frame_image, make_images, make_video, times, write_frames

import dajax
from dajax.depth_maps.colormap import colorize
from dajax.errors import ConfigError, ImageError
from dajax.video import run as module
from dajax.video.raw import read_depth_video, read_depth_video_index
from dajax.video.reading import VideoReader
from dajax.video.run import VideoSettings, depth_of_frames, depth_video

STEADY = [3000 * i for i in range(100)]


@pytest.fixture
def estimator(monkeypatch):
    """Tiny, whose network is a sum: nothing is compiled."""
    estimator = dajax.DepthEstimator("tiny", batch_size=4, input_size=42)
    monkeypatch.setattr(estimator, "predict", lambda pixels: np.asarray(pixels).sum(-1, dtype=np.float32))
    return estimator


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("turn", [0, 90])
def test_frames_and_times_are_those_of_the_video(estimator, tmp_path, smooth, turn):
    source = make_video(tmp_path / "a.mp4", turn=turn)
    seen = []
    report = depth_video(
        estimator, source, tmp_path / "new" / "b.mp4", VideoSettings(smooth=smooth), on_start=seen.append,
        on_frame=lambda: seen.append("frame"),
    )  # fmt: skip
    assert (report.frames, report.problem, report.written) == (30, "", [tmp_path / "new" / "b.mp4"])
    assert seen == [30] + ["frame"] * 30
    assert times(tmp_path / "new" / "b.mp4") == times(source) == [at * TICKS for at in UNEVEN]
    shown = make_images(tmp_path / "new" / "b.mp4")
    assert {image.shape for image in shown} == {(64, 96, 3) if turn == 0 else (96, 64, 3)}


def test_one_range_for_all_frames(estimator, tmp_path):
    """Frames get brighter: the same depth has the same colour in every one."""
    source = make_video(tmp_path / "a.mp4")
    settings = VideoSettings(smooth=False, colormap="gray", raw="npz")
    report = depth_video(estimator, source, tmp_path / "b.mp4", settings)
    depths = np.stack([depth for _, depth in read_depth_video(tmp_path / "b_depth.npz")])
    low, high = report.limits
    assert low == pytest.approx(np.percentile(depths, 0.5), abs=0.2)
    assert high == pytest.approx(np.percentile(depths, 99.5), abs=0.2)
    shown = np.stack(make_images(tmp_path / "b.mp4"))[..., 0]
    expected = np.stack([colorize(depth, "gray", low, high)[..., 0] for depth in depths])
    assert np.abs(shown.astype(int) - expected).mean() < 4
    given = depth_video(estimator, source, tmp_path / "c.mp4", VideoSettings(limits=(0.0, 9.0)))
    assert given.limits == (0.0, 9.0)


@pytest.mark.parametrize("raw_size", ["source", "model"])
@pytest.mark.parametrize("raw", ["ffv1", "npz"])
def test_raw_depth(estimator, tmp_path, raw, raw_size):
    source = make_video(tmp_path / "a.mp4")
    settings = VideoSettings(raw=raw, raw_size=raw_size, smooth=False)
    report = depth_video(estimator, source, tmp_path / "b.mp4", settings, model="tiny")
    name = {"ffv1": "b_depth.mkv", "npz": "b_depth.npz"}[raw]
    assert report.written[1] == tmp_path / name
    found = list(read_depth_video(tmp_path / name))
    assert [seconds for seconds, _ in found] == [float(at * TICKS) for at in UNEVEN]
    with VideoReader(source) as reader:
        expected = [depth for _, depth in depth_of_frames(estimator, reader, smooth=False)]
    if raw_size == "source":
        resize = estimator.processor.post_process_depth_estimation
        expected = [resize(depth[None], [(64, 96)])[0]["predicted_depth"] for depth in expected]
    step = read_depth_video_index(tmp_path / name)["scales"][-1]["step"] if raw == "ffv1" else 0
    for (_, ours), depth in zip(found, expected, strict=True):
        assert np.abs(ours - depth).max() <= 0.51 * step
    if raw == "ffv1":
        assert read_depth_video_index(tmp_path / name)["style"] == "huggingface"


def test_beside_the_image_with_sound(estimator, tmp_path):
    source = make_video(tmp_path / "a.mp4", audio="aac")
    settings = VideoSettings(side_by_side=True, audio=True)
    depth_video(estimator, source, tmp_path / "b.mp4", settings)
    shown = make_images(tmp_path / "b.mp4")
    assert shown[0].shape == (64, 2 * 96 + 12, 3)
    assert np.abs(shown[5][:, :96].astype(int) - frame_image(5)).mean() < 8
    sound = []
    for path in (source, tmp_path / "b.mp4"):
        with av.open(str(path)) as video:
            packets = [packet for packet in video.demux(audio=0) if packet.dts is not None]
            sound.append([(packet.pts * packet.time_base, bytes(packet)) for packet in packets])
    assert sound[0] == sound[1]


def test_the_shape_that_is_shown(estimator, tmp_path):
    """Pixels of 4:3, turned by a quarter: both raw depth and colours have the shape that players show."""
    frame = av.VideoFrame.from_ndarray(frame_image(3), format="rgb24").reformat(format="yuv420p")
    quarter = [0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30]
    source = write_frames(tmp_path / "a.mp4", [frame] * 3, "libx264", aspect=Fraction(4, 3), matrix=quarter)
    with VideoReader(source) as reader:
        seen = [depth.shape for _, depth in depth_of_frames(estimator, reader, smooth=False)]
    assert seen == [(84, 42)] * 3  # two to one, as 128x64 is
    report = depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(raw="npz", smooth=False))
    assert report.frames == 3
    assert {image.shape for image in make_images(tmp_path / "b.mp4")} == {(128, 64, 3)}
    assert {depth.shape for _, depth in read_depth_video(tmp_path / "b_depth.npz")} == {(128, 64)}


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv"])
def test_a_clock_of_ten_hours(estimator, tmp_path, name):
    late = [10 * 3600 * 90_000 + at for at in UNEVEN]
    source = make_video(tmp_path / "a.mp4", pts=late, audio="aac")
    report = depth_video(estimator, source, tmp_path / name, VideoSettings(raw="ffv1"))
    (note,) = report.notes
    assert note == "its clock begins at 36000.053 s, and times are counted from there"
    expected = [(at - UNEVEN[0]) * TICKS for at in UNEVEN]
    found = times(tmp_path / name)
    assert max(abs(ours - at) for ours, at in zip(found, expected, strict=True)) <= Fraction(1, 1000)
    raw = [seconds for seconds, _ in read_depth_video(tmp_path / "b_depth.mkv")]
    assert raw == [float(at) for at in expected]
    with av.open(str(tmp_path / name)) as video:
        assert video.duration < 2e6


def test_colours_of_a_recording_of_a_browser(estimator, tmp_path):
    """It has no length, and its first frame is black: the range is not that of the black frame alone."""
    images = [np.zeros((64, 96, 3), np.uint8)] + [frame_image(number) for number in range(40)]
    frames = [av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p") for image in images]
    source = write_frames(tmp_path / "a.webm", frames, "libvpx", options={"b": "2M"}, container={"live": "1"})
    report = depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(smooth=False, raw="npz"))
    depths = np.stack([depth for _, depth in read_depth_video(tmp_path / "b_depth.npz")])[:16]
    assert report.limits == pytest.approx(np.percentile(depths, (0.5, 99.5)), abs=0.2)
    assert report.limits[1] - report.limits[0] > 3
    assert report.problem == ""


def test_the_first_seconds(estimator, tmp_path):
    source = make_video(tmp_path / "a.mp4", pts=STEADY)
    report = depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(seconds=1.0))
    assert (report.frames, report.problem) == (30, "")


def test_a_camera_until_it_is_stopped(estimator, tmp_path, monkeypatch):
    monkeypatch.setattr("dajax.video.opening.camera_device", lambda number: ("testsrc=size=64x48:rate=10", "lavfi"))
    stop = threading.Event()
    done = []
    report = depth_video(
        estimator, "webcam:0", tmp_path / "b.mp4", stop=stop,
        on_frame=lambda: (done.append(1), stop.set() if len(done) == 20 else None),
    )  # fmt: skip
    assert report.problem == ""
    assert report.frames >= 20
    assert len(times(tmp_path / "b.mp4")) == report.frames


def test_raw_depth_of_an_earlier_run_goes(estimator, tmp_path):
    source = make_video(tmp_path / "a.mp4", pts=STEADY[:40])
    (tmp_path / "c_depth.mkv").write_bytes(b"not ours")
    (tmp_path / "c_depth.npz").write_bytes(b"not ours")
    (tmp_path / "c_depth.json").write_text("{}")
    others = {"a.mp4", "c_depth.mkv", "c_depth.npz", "c_depth.json"}
    for raw in ("ffv1", "npz"):
        depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(raw=raw, smooth=False))
    assert names(tmp_path) == others | {"b.mp4", "b_depth.npz"}
    depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(raw="ffv1", smooth=False))
    assert names(tmp_path) == others | {"b.mp4", "b_depth.mkv", "b_depth.json"}
    # A run that ends early writes other names, and leaves the whole files alone.
    stop = threading.Event()
    settings = VideoSettings(raw="ffv1", smooth=False)
    depth_video(estimator, source, tmp_path / "b.mp4", settings, on_frame=stop.set, stop=stop)
    partial = {"b.partial.mp4", "b_depth.partial.mkv", "b_depth.partial.json"}
    assert names(tmp_path) == others | {"b.mp4", "b_depth.mkv", "b_depth.json"} | partial
    report = depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(seconds=0.5))
    assert names(tmp_path) == others | {"b.mp4"}
    (note,) = report.notes
    assert note.startswith("raw depth of an earlier run was removed: ")
    assert all(f"b_depth{middle}.{end}" in note for middle in ("", ".partial") for end in ("mkv", "json"))
    report = depth_video(estimator, source, tmp_path / "c.mp4", VideoSettings(seconds=0.5))
    assert report.notes == []
    assert names(tmp_path) == others | {"b.mp4", "c.mp4"}


def test_raw_depth_that_may_belong_to_another_video_stays(estimator, tmp_path):
    source = make_video(tmp_path / "a.mp4", pts=STEADY[:10])
    depth_video(estimator, source, tmp_path / "b.mkv", VideoSettings(raw="npz"))
    depth_video(estimator, source, tmp_path / "b.mp4")
    assert names(tmp_path) == {"a.mp4", "b.mkv", "b_depth.npz", "b.mp4"}


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_what_there_was_is_kept_and_called_partial(estimator, tmp_path):
    data = make_video(tmp_path / "a.mkv", pts=STEADY).read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
    report = depth_video(estimator, tmp_path / "a.mkv", tmp_path / "b.mp4", VideoSettings(raw="ffv1"))
    assert "the file is cut off" in report.problem
    assert names(tmp_path) == {"a.mkv", "b.partial.mp4", "b_depth.partial.mkv", "b_depth.partial.json"}
    assert len(times(tmp_path / "b.partial.mp4")) == report.frames < 100


def test_stopped(estimator, tmp_path):
    source = make_video(tmp_path / "a.mp4", pts=STEADY)
    stop = threading.Event()
    report = depth_video(estimator, source, tmp_path / "b.mp4", on_frame=stop.set, stop=stop)
    assert report.problem == "interrupted"
    assert names(tmp_path) == {"a.mp4", "b.partial.mp4"}
    # Whole afterwards: the partial one goes.
    depth_video(estimator, source, tmp_path / "b.mp4")
    assert names(tmp_path) == {"a.mp4", "b.mp4"}


def test_depth_that_is_not_finite(estimator, tmp_path, monkeypatch):
    source = make_video(tmp_path / "a.mp4", pts=STEADY)
    calls = []

    def predict(pixels):
        calls.append(1)
        depth = np.asarray(pixels).sum(-1, dtype=np.float32)
        return np.full_like(depth, np.nan) if len(calls) > 15 else depth

    monkeypatch.setattr(estimator, "predict", predict)
    report = depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(smooth=False))
    assert "is not finite" in report.problem
    assert names(tmp_path) == {"a.mp4", "b.partial.mp4"}


def test_a_full_disk(estimator, tmp_path, monkeypatch):
    source = make_video(tmp_path / "a.mp4", pts=STEADY)

    def write(self, depth, frame):
        raise ImageError("no space left")

    monkeypatch.setattr(module.NpzWriter, "write", write)
    with pytest.raises(ImageError, match=r"no frame could be written \(no space left\)"):
        depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(raw="npz"))
    assert names(tmp_path) == {"a.mp4"}


def test_refused(estimator, tmp_path):
    source = make_video(tmp_path / "a.mp4")
    before = source.read_bytes()
    with pytest.raises(ConfigError, match="is the video itself"):
        depth_video(estimator, source, source)
    with pytest.raises(ConfigError, match="has no audio"):
        depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(audio=True))
    with pytest.raises(ConfigError, match="videos are written as"):
        depth_video(estimator, source, tmp_path / "b.gif")
    for options, message in (
        ({"limits": (2.0, 1.0)}, "smaller first"),
        ({"limits": (0.0, float("nan"))}, "finite"),
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"raw": "png"}, "raw must be one of"),
        ({"raw_size": "half"}, "raw_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(**options))
    with pytest.raises(ImageError, match="no such map"):
        depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(colormap="no such map"))
    assert names(tmp_path) == {"a.mp4"}
    assert source.read_bytes() == before


# --- long ----------------------------------------------------------------------------------------------------------

LONG = """
import resource, sys, threading
sys.path[:0] = {paths!r}
import dajax
from dajax.video.run import VideoSettings, depth_video
estimator = dajax.DepthEstimator("tiny", batch_size=8)
marks, count = [], 0
def done():
    global count
    count += 1
    if count % 1000 == 0:
        marks.append(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize())
report = depth_video(estimator, {source!r}, {output!r}, VideoSettings(raw="ffv1", raw_size="model"), on_frame=done)
print(report.frames, *marks)
"""


@pytest.mark.very_slow
def test_ten_minutes_of_720p_in_constant_memory(tmp_path):
    """18,000 frames, about half an hour on two cores. Run with: make slow, or pytest -m very_slow tests/video"""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 720, 1280, "yuv420p"
        scene = np.zeros((720, 1280, 3), np.uint8)
        scene[..., 2] = np.linspace(0, 255, 1280)
        for number in range(18_000):
            image = np.roll(scene, 3 * number, axis=1)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    root = Path(dajax.__file__).parents[1]
    code = LONG.format(paths=[str(root)], source=str(tmp_path / "a.mp4"), output=str(tmp_path / "b.mp4"))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frames, *marks = (int(word) for word in result.stdout.split())
    assert frames == 18_000
    assert len(times(tmp_path / "b.mp4")) == 18_000
    assert max(marks[3:]) < 1.05 * marks[2], marks
    assert max(marks) < 3e9


@pytest.mark.parametrize("raw", ["none", "ffv1", "npz"])
@pytest.mark.parametrize("size", [0, 1000, 3000])
def test_a_file_that_cannot_grow(estimator, tmp_path, raw, size):
    """No file may be longer than `size`: what is left behind has a name that says what it is."""
    source = make_video(tmp_path / "a.mp4", pts=STEADY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with suppress(ImageError):
            assert (
                "cannot be written"
                in depth_video(estimator, source, tmp_path / "b.mp4", VideoSettings(raw=raw, smooth=False)).problem
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in tmp_path.iterdir()} <= {
        "a.mp4", "b.partial.mp4", "b_depth.partial.mkv", "b_depth.partial.json", "b_depth.partial.npz",
    }  # fmt: skip
