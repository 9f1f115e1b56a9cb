"""Videos that are written, read by PyAV alone; raw depth, read back."""

import json
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from videos import TICKS, UNEVEN, frame_image, make_images, make_video, times

from dajax.errors import ConfigError, ImageError
from dajax.video.raw import Ffv1Writer, NpzWriter, read_depth_video, read_depth_video_index
from dajax.video.reading import Frame
from dajax.video.writing import VideoWriter, partial_name

RATE = Fraction(30)
ABOUT = {"kind": "relative", "units": "some", "model": "tiny", "style": "huggingface", "version": "1"}


def frames_of(pts=UNEVEN):
    return [Frame(np.zeros((4, 6, 3), np.uint8), at, TICKS) for at in pts]


def maps(count=30, size=(4, 6), spread=1.0):
    rng = np.random.default_rng(0)
    return [(5 + spread * rng.standard_normal(size)).astype(np.float32) for _ in range(count)]


# --- colours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.MP4"])
def test_times_are_exact(tmp_path, name):
    writer = VideoWriter(tmp_path / name, (64, 96), TICKS, RATE)
    for number, at in enumerate(UNEVEN):
        writer.write(frame_image(number), at)
    assert writer.close() == tmp_path / name
    assert times(tmp_path / name) == [at * TICKS for at in UNEVEN]
    for number, shown in enumerate(make_images(tmp_path / name)):
        assert np.abs(shown.astype(int) - frame_image(number)).mean() < 6
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_matroska_counts_milliseconds(tmp_path, name):
    writer = VideoWriter(tmp_path / name, (64, 96), TICKS, RATE)
    for number, at in enumerate(UNEVEN):
        writer.write(frame_image(number), at)
    writer.close()
    found = times(tmp_path / name)
    assert len(found) == 30
    assert max(abs(ours - at * TICKS) for ours, at in zip(found, UNEVEN, strict=True)) <= Fraction(1, 1000)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
@pytest.mark.parametrize("rate", [Fraction(1, 1000), Fraction(1000)])
@pytest.mark.parametrize("time_base", [Fraction(1, 14), Fraction(1, 12345678)])
def test_rates_that_no_encoder_takes(tmp_path, name, rate, time_base):
    writer = VideoWriter(tmp_path / name, (64, 96), time_base, rate)
    ticks = [0, round(1 / time_base), round(2 / time_base)]
    for number, pts in enumerate(ticks):
        writer.write(frame_image(number), pts)
    writer.close()
    assert times(tmp_path / name) == [0, 1, 2]


@pytest.mark.parametrize("time_base", [Fraction(1, 30), Fraction(1001, 30000), Fraction(1, 1000), Fraction(1, 24)])
def test_other_clocks(tmp_path, time_base):
    writer = VideoWriter(tmp_path / "a.mp4", (64, 96), time_base, RATE)
    for number in range(20):
        writer.write(frame_image(number), 7 + 2 * number)
    writer.close()
    assert times(tmp_path / "a.mp4") == [(7 + 2 * number) * time_base for number in range(20)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm"])
@pytest.mark.parametrize(
    ("size", "number", "red", "blue"), [((64, 96), 6, 0.299, 0.114), ((64, 1280), 1, 0.2126, 0.0722)]
)
def test_the_file_says_how_its_colours_are_stored(tmp_path, name, size, number, red, blue):
    """ITU-R BT.601 or BT.709, and the numbers of ITU-T H.273: 6 or 1 for matrix, primaries and curve; limited range."""
    colour = np.array([200, 30, 90], np.uint8)
    writer = VideoWriter(tmp_path / name, size, TICKS, RATE)
    writer.write(np.broadcast_to(colour, (*size, 3)).copy(), 0)
    writer.close()
    with av.open(str(tmp_path / name)) as video:
        stream = video.streams.video[0].codec_context
        frame = next(video.decode(video=0))
    for tagged in (stream, frame):
        tags = tagged.colorspace, tagged.color_primaries, tagged.color_trc, tagged.color_range
        assert tags == (number, number, number, 1)
    r, g, b = colour / 255
    y = red * r + (1 - red - blue) * g + blue * b
    expected = 16 + 219 * y, 128 + 112 * (b - y) / (1 - blue), 128 + 112 * (r - y) / (1 - red)
    stored = [np.frombuffer(plane, np.uint8)[0] for plane in frame.planes]
    assert np.abs(np.subtract(stored, expected)).max() <= 2
    if name in ("a.mp4", "a.mov"):  # ISO/IEC 14496-12, 12.1.5: for players that do not look into the frames
        data = (tmp_path / name).read_bytes()
        at = data.index(b"colrncl") + 8
        assert struct.unpack_from(">3H", data, at) == (number, number, number)


def test_colours_as_opencv_reads_them(tmp_path):
    """OpenCV 5 converts by the tags: the colours that were written come back in SD and in HD. 4 knows BT.601 alone."""
    for size in ((64, 96), (720, 1280)) if cv2.__version__ >= "5" else ((64, 96),):
        image = np.broadcast_to(np.array([200, 30, 90], np.uint8), (*size, 3)).copy()
        writer = VideoWriter(tmp_path / "a.mp4", size, TICKS, RATE)
        writer.write(image, 0)
        writer.close()
        video = cv2.VideoCapture(str(tmp_path / "a.mp4"))
        assert np.abs(video.read()[1][..., ::-1].astype(int) - image).max() <= 3
        video.release()


def test_odd_sides_get_one_pixel_more(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", (63, 95), TICKS, RATE)
    writer.write(frame_image(0, (63, 95)), 0)
    writer.close()
    (shown,) = make_images(tmp_path / "a.mp4")
    assert shown.shape == (64, 96, 3)
    assert np.abs(shown[:63, :95].astype(int) - frame_image(0, (63, 95))).mean() < 6


def test_a_video_without_its_end_says_so(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", (64, 96), TICKS, RATE)
    writer.write(frame_image(0), 0)
    assert writer.close(partial=True) == tmp_path / "a.partial.mp4"
    assert len(times(tmp_path / "a.partial.mp4")) == 1
    writer = VideoWriter(tmp_path / "a.mp4", (64, 96), TICKS, RATE)
    writer.write(frame_image(0), 0)
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_nothing_is_left_of_what_is_given_up(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", (64, 96), TICKS, RATE)
    writer.write(frame_image(0), 0)
    writer.abandon()
    VideoWriter(tmp_path / "b.mp4", (64, 96), TICKS, RATE).abandon()
    for writer in (NpzWriter(tmp_path / "a.npz", ABOUT), Ffv1Writer(tmp_path / "a.mkv", ABOUT, lo=0, hi=1, rate=RATE)):
        writer.write(maps()[0], frames_of()[0])
        writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    for name in ("a.avi", "a.gif", "a"):
        with pytest.raises(ConfigError, match=r"videos are written as \.mp4, \.mov, \.mkv, \.webm"):
            VideoWriter(tmp_path / name, (64, 96), TICKS, RATE)
    with pytest.raises(ImageError, match="cannot be written"):
        VideoWriter(tmp_path / "nowhere" / "a.mp4", (64, 96), TICKS, RATE)
    make_video(tmp_path / "in.mp4", audio="aac")
    with (
        av.open(str(tmp_path / "in.mp4")) as video,
        pytest.raises(ConfigError, match=r"\.webm cannot hold this audio \(aac\)"),
    ):
        VideoWriter(tmp_path / "a.webm", (64, 96), TICKS, RATE, video.streams.audio[0])
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_audio_is_copied(tmp_path):
    with av.open(str(make_video(tmp_path / "in.mp4", audio="aac"))) as video:
        writer = VideoWriter(tmp_path / "a.mp4", (64, 96), TICKS, RATE, video.streams.audio[0])
        said = [packet for packet in video.demux(audio=0) if packet.dts is not None]
        data = [bytes(packet) for packet in said]
        for packet in said:
            writer.write_audio(packet)
        for number, at in enumerate(UNEVEN):
            writer.write(frame_image(number), at)
        writer.close()
    with av.open(str(tmp_path / "a.mp4")) as video:
        assert [bytes(packet) for packet in video.demux(audio=0) if packet.dts is not None] == data
    assert times(tmp_path / "a.mp4") == [at * TICKS for at in UNEVEN]


# --- depth ---------------------------------------------------------------------------------------------------------


def test_ffv1_is_within_half_a_step(tmp_path):
    writer = Ffv1Writer(tmp_path / "a.mkv", ABOUT, lo=0.0, hi=10.0, rate=RATE)
    for depth, frame in zip(maps(), frames_of(), strict=True):
        writer.write(depth, frame)
    assert [path.name for path in writer.close()] == ["a.mkv", "a.json"]
    found = list(read_depth_video(tmp_path / "a.mkv"))
    assert [seconds for seconds, _ in found] == [float(at * TICKS) for at in UNEVEN]
    for (_, ours), depth in zip(found, maps(), strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - depth).max() <= 0.51 * 10 / 65535
    index = read_depth_video_index(tmp_path / "a.mkv")
    assert {key: index[key] for key in ABOUT} == ABOUT
    assert (index["frames"], index["whole"], len(index["scales"])) == (30, True, 1)
    with av.open(str(tmp_path / "a.mkv")) as video:
        assert video.streams.video[0].codec_context.name == "ffv1"
        assert video.streams.video[0].codec_context.pix_fmt == "gray16le"


def test_ffv1_grows_where_depth_leaves_its_range(tmp_path):
    writer = Ffv1Writer(tmp_path / "a.mkv", ABOUT, lo=4.5, hi=5.5, rate=RATE)
    several = [scale * depth for scale, depth in zip(np.linspace(0.1, 4, 30), maps(), strict=True)]
    for depth, frame in zip(several, frames_of(), strict=True):
        writer.write(depth, frame)
    writer.close()
    scales = read_depth_video_index(tmp_path / "a.mkv")["scales"]
    assert len(scales) > 3
    largest = max(scale["step"] for scale in scales)
    for (_, ours), depth in zip(read_depth_video(tmp_path / "a.mkv"), several, strict=True):
        assert np.abs(ours - depth).max() <= 0.51 * largest


@pytest.mark.parametrize("depth", [np.full((4, 6), 3.0), np.zeros((1, 1)), np.array([[-1e30, 1e30]])])
def test_ffv1_of_odd_maps(tmp_path, depth):
    writer = Ffv1Writer(tmp_path / "a.mkv", ABOUT, lo=3.0, hi=3.0, rate=RATE)
    writer.write(depth.astype(np.float32), frames_of()[0])
    writer.close()
    ((_, ours),) = read_depth_video(tmp_path / "a.mkv")
    assert np.abs(ours - depth).max() <= 1e-4 * max(np.abs(depth).max(), 1)


def test_npz_is_exact(tmp_path):
    writer = NpzWriter(tmp_path / "a.npz", ABOUT)
    for depth, frame in zip(maps(), frames_of(), strict=True):
        writer.write(depth, frame)
    assert writer.close() == [tmp_path / "a.npz"]
    for (seconds, ours), depth, at in zip(read_depth_video(tmp_path / "a.npz"), maps(), UNEVEN, strict=True):
        np.testing.assert_array_equal(ours, depth)
        assert seconds == float(at * TICKS)
    with np.load(tmp_path / "a.npz") as archive:
        assert {key: str(archive[key]) for key in ABOUT} == ABOUT
        assert bool(archive["whole"])


def test_partial_depth(tmp_path):
    for writer in (NpzWriter(tmp_path / "a.npz", ABOUT), Ffv1Writer(tmp_path / "b.mkv", ABOUT, lo=0, hi=9, rate=RATE)):
        for depth, frame in zip(maps(5), frames_of()[:5], strict=True):
            writer.write(depth, frame)
        for path in writer.close(partial=True):
            assert ".partial." in path.name
    assert len(list(read_depth_video(partial_name(tmp_path / "a.npz")))) == 5
    assert len(list(read_depth_video(partial_name(tmp_path / "b.mkv")))) == 5
    assert json.loads((tmp_path / "b.partial.json").read_text())["whole"] is False


def test_depth_without_its_index(tmp_path):
    make_video(tmp_path / "a.mkv")
    with pytest.raises(ImageError, match=r"a\.json.*must contain the scale of the levels of a\.mkv"):
        list(read_depth_video(tmp_path / "a.mkv"))
    for text in ("{}", "[]", "no json", '{"format": "another"}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ImageError, match="must contain"):
            list(read_depth_video(tmp_path / "a.mkv"))


def test_depth_that_is_damaged_or_foreign(tmp_path):
    np.savez(tmp_path / "foreign.npz", depth=np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    for writer in (NpzWriter(tmp_path / "a.npz", ABOUT), Ffv1Writer(tmp_path / "b.mkv", ABOUT, lo=0, hi=9, rate=RATE)):
        for depth, frame in zip(maps(5), frames_of()[:5], strict=True):
            writer.write(depth, frame)
        writer.close()
    for name in ("a.npz", "b.mkv"):  # the index says more frames than there are
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    for name in ("foreign.npz", "text.npz", "none.npz", "a.npz", "b.mkv"):
        with pytest.raises(ImageError, match=rf"{name[:-4]}\.{name[-3:]}.: cannot be read as depth that `dajax video"):
            list(read_depth_video(tmp_path / name))


def test_a_folder_with_a_colon(tmp_path, monkeypatch):
    """For FFmpeg what stands before the first colon of a relative path is a protocol."""
    monkeypatch.chdir(tmp_path)
    Path("12:30").mkdir()
    writer = VideoWriter(Path("12:30/out.mp4"), (16, 16), Fraction(1, 30), Fraction(30))
    writer.write(np.zeros((16, 16, 3), np.uint8), 0)
    writer.close()
    assert Path("12:30/out.mp4").stat().st_size > 0


def test_never_a_new_video_beside_an_old_index(tmp_path, monkeypatch):
    def writer():
        writer = Ffv1Writer(tmp_path / "d.mkv", {}, lo=0, hi=1, rate=Fraction(30))
        writer.write(np.ones((4, 4), np.float32), Frame(np.zeros((4, 4, 3), np.uint8), 0, Fraction(1, 30)))
        return writer

    writer().close()
    second, real = writer(), os.replace

    def dies(source, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        second.close()
    with pytest.raises(ImageError, match="must contain the scale of the levels"):
        list(read_depth_video(tmp_path / "d.mkv"))
