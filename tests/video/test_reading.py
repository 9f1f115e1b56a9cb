"""Videos and what is wrong with them."""

import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from videos import TICKS, UNEVEN, frame_image, make_video

from dajax.errors import ConfigError, ImageError
from dajax.video import opening
from dajax.video.ending import is_cut_off
from dajax.video.reading import VideoReader


def read(path, **options):
    with VideoReader(path, **options) as reader:
        return list(reader), reader


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_frames_and_their_exact_times(tmp_path, name):
    frames, reader = read(make_video(tmp_path / name))
    assert [frame.pts * frame.time_base for frame in frames] == [at * TICKS for at in UNEVEN]
    assert (reader.count, reader.size, reader.problem, reader.expected) == (30, (64, 96), "", 30)
    for number, frame in enumerate(frames):
        assert np.abs(frame.pixels.astype(int) - frame_image(number)).mean() < 4
    assert frames[3].seconds == pytest.approx(UNEVEN[3] / 90000)


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.ts", "a.avi"])
def test_other_containers(tmp_path, name):
    codec = {"a.webm": "libvpx-vp9", "a.avi": "mpeg4"}.get(name, "libx264")
    time_base = Fraction(1, 30) if name == "a.avi" else TICKS
    pts = list(range(30)) if name == "a.avi" else [3000 * i for i in range(30)]
    frames, reader = read(make_video(tmp_path / name, codec=codec, pts=pts, time_base=time_base))
    assert (len(frames), reader.problem) == (30, "")
    seconds = np.array([frame.seconds for frame in frames])
    np.testing.assert_allclose(np.diff(seconds), 1 / 30, atol=1.1e-3)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_upright(tmp_path, turn):
    """As QuickTime's matrix says, written and read by nothing of ours."""
    frames, reader = read(make_video(tmp_path / "a.mp4", turn=turn))
    shown = np.rot90(frame_image(0), turn // 90)
    assert frames[0].pixels.shape == shown.shape == (*reader.size, 3)
    assert np.abs(frames[0].pixels.astype(int) - shown).mean() < 4


def test_samples_are_spread_and_move_nothing(tmp_path):
    path = make_video(tmp_path / "a.mp4", pts=[3000 * i for i in range(100)], options={"g": "10"})
    with VideoReader(path) as reader:
        next(reader)
        found = [frame.seconds for frame in reader.samples(5)]
        assert len(found) >= 3
        assert found == sorted(set(found))
        assert found[-1] - found[0] > 1
        assert next(reader).pts == 3000
        assert len(list(reader)) == 98


# --- broken --------------------------------------------------------------------------------------------------------


def test_cut_off(tmp_path):
    steady = [3000 * i for i in range(200)]
    for name, options in (("a.mp4", {"movflags": "faststart"}), ("b.mkv", {}), ("c.mp4", {})):
        data = make_video(tmp_path / name, pts=steady, options=options).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
    frames, reader = read(tmp_path / "a.mp4")
    assert 20 < len(frames) < 180
    assert "cut off" in reader.problem
    frames, reader = read(tmp_path / "b.mkv")
    assert 20 < len(frames) < 180
    assert "cut off" in reader.problem
    # The index stood at the end.
    with pytest.raises(ImageError, match=r"c\.mp4.: cannot be opened as a video"):
        VideoReader(tmp_path / "c.mp4")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"movflags": "faststart"}),
        ("a.mov", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", {}),
        ("a.webm", {}),
        ("a.webm", {"live": "1"}),
        ("a.mkv", {"live": "1"}),
    ],
)
def test_where_a_file_is_cut_off(tmp_path, name, options):
    """Nearly anywhere: nothing shows where a part ends. What follows the end of a whole file is no part of it."""
    codec = "libvpx" if name.endswith("webm") else "libx264"
    whole = make_video(tmp_path / name, pts=[3000 * i for i in range(40)], codec=codec, options=options).read_bytes()
    cut = tmp_path / "cut"
    found = []
    for length in range(60, len(whole), 97):
        cut.write_bytes(whole[:length])
        found.append(is_cut_off(cut))
    assert np.mean(found) > 0.95
    for rest in (b"", bytes(100), b"\xff" * 100, b"text"):
        cut.write_bytes(whole + rest)
        assert not is_cut_off(cut)


def test_lengths_that_lie(tmp_path):
    """The frames are all there, so the video is whole, whatever a tag says."""
    data = make_video(tmp_path / "a.mkv", pts=[3000 * i for i in range(100)], options={"g": "10"}).read_bytes()
    assert data.count(b"00:00:03.333000000") == 1
    for text in (b"00:20:03.333000000", b"00:00:06.600000000", b"00:00:00.400000000"):
        (tmp_path / "b.mkv").write_bytes(data.replace(b"00:00:03.333000000", text))
        with VideoReader(tmp_path / "b.mkv") as reader:
            assert reader.samples(12) == []
            assert len(list(reader)) == 100
            assert (reader.problem, reader.notes) == ("", set())
    with VideoReader(tmp_path / "a.mkv") as reader:
        assert len(reader.samples(12)) == 12
        assert max(frame.seconds for frame in reader.samples(12, seconds=1.0)) < 1.1
    data = bytearray(make_video(tmp_path / "c.mp4", pts=[3000 * i for i in range(100)]).read_bytes())
    at = data.index(b"mdhd") + 20
    assert struct.unpack_from(">I", data, at)[0] == 300_000
    for length in (30_000, 30_000_000):
        struct.pack_into(">I", data, at, length)
        (tmp_path / "c.mp4").write_bytes(data)
        frames, reader = read(tmp_path / "c.mp4")
        assert (len(frames), reader.problem) == (100, "")
        with VideoReader(tmp_path / "c.mp4") as reader:
            seconds = [frame.seconds for frame in reader.samples(12)]
        assert not seconds or max(seconds) > 2.7


def test_no_length(tmp_path):
    """As browsers record: no length, no index, and the samples would all be the first frame."""
    path = make_video(tmp_path / "a.webm", codec="libvpx", pts=[3000 * i for i in range(60)], options={"live": "1"})
    with VideoReader(path) as reader:
        assert reader.samples(12) == []
        assert (len(list(reader)), reader.problem, reader.expected) == (60, "", 0)


def test_damaged_inside(tmp_path):
    path = make_video(tmp_path / "a.mp4", pts=[3000 * i for i in range(100)], options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(data)
    frames, reader = read(path)
    assert 50 < len(frames) <= 100
    assert "of its frames are damaged" in reader.problem


def test_a_frame_count_that_lies(tmp_path):
    """Of an AVI: 30 frames that say they are 3,000,000."""
    path = make_video(tmp_path / "a.avi", codec="mpeg4", pts=list(range(30)), time_base=Fraction(1, 30))
    data = bytearray(path.read_bytes())
    at = data.index(b"avih") + 8 + 16
    assert struct.unpack_from("<I", data, at)[0] == 30
    struct.pack_into("<I", data, at, 3_000_000)
    path.write_bytes(data)
    frames, reader = read(path)
    assert (len(frames), reader.problem) == (30, "")


def test_another_size_midway(tmp_path):
    """Two raw streams one after the other, as recordings of a screen have them."""
    first = make_video(tmp_path / "a.h264", pts=[3000 * i for i in range(10)])
    second = make_video(tmp_path / "b.h264", pts=[3000 * i for i in range(10)], size=(96, 64))
    (tmp_path / "c.h264").write_bytes(first.read_bytes() + second.read_bytes())
    frames, reader = read(tmp_path / "c.h264")
    assert {frame.pixels.shape for frame in frames} == {(64, 96, 3)}
    assert len(frames) <= 10
    assert "frames are 96x64 (height x width), not 64x96" in reader.problem


def test_no_frames(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    (tmp_path / "a.wav").rename(tmp_path / "a.mp4")
    with pytest.raises(ImageError, match="cannot be opened"):
        VideoReader(tmp_path / "a.mp4")
    make_video(tmp_path / "b.mkv", pts=[], audio="aac")
    with pytest.raises(ImageError, match=r"b\.mkv.*(has no frames|has no video|cannot be opened)"):
        VideoReader(tmp_path / "b.mkv")


def test_titles_that_are_not_utf8(tmp_path):
    """As old programs wrote them."""
    pts, base = list(range(5)), Fraction(1, 30)
    path = make_video(tmp_path / "a.avi", codec="mpeg4", pts=pts, time_base=base, metadata={"title": "xGrusse"})
    path.write_bytes(path.read_bytes().replace(b"xGrusse", b"Gr\xfc\xdfe!!"))
    frames, reader = read(path)
    assert (len(frames), reader.problem) == (5, "")
    assert len(reader.samples(2)) == 2


def test_playlists_open_nothing(tmp_path):
    make_video(tmp_path / "a.mp4")
    for name, text in {
        "list.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.mp4\n#EXT-X-ENDLIST\n",
        "cat.mp4": "ffconcat version 1.0\nfile a.mp4\n",
        "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "text.mp4": "nothing of the kind",
        "empty.mp4": "",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ImageError, match="cannot be opened as a video"):
            VideoReader(tmp_path / name)
    (tmp_path / "list.m3u8").write_bytes((tmp_path / "list.mp4").read_bytes())
    for name in ("list.m3u8", "cat.mp4"):
        with pytest.raises(ImageError, match=r"none of the formats that are read, which are MP4, MOV, .*playlists"):
            VideoReader(tmp_path / name)


def test_what_is_no_video(tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.mp4. does not exist"):
        VideoReader(tmp_path / "nothing.mp4")
    with pytest.raises(ImageError, match="is not a file"):
        VideoReader(tmp_path)
    for address in ("https://example.com/a.mp4", "http://127.0.0.1/a.mp4"):
        with pytest.raises(ImageError, match="download it first"):
            VideoReader(address)
    for name in ("concat:a.mp4", "data:video/mp4;base64,AAAA", "pipe:0", "-"):
        with pytest.raises(ImageError, match="does not exist"):
            VideoReader(name)
    Path(tmp_path / "webcam:0").write_bytes(b"")  # a camera is meant all the same


def test_without_pyav(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[video\]'"):
        VideoReader(tmp_path / "a.mp4")


# --- clocks --------------------------------------------------------------------------------------------------------

HOURS = 10 * 3600 * 90_000


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_clock_that_begins_late(tmp_path, name):
    steady = [3000 * i for i in range(30)]
    frames, reader = read(make_video(tmp_path / name, pts=[HOURS + at for at in steady]))
    seconds = [frame.seconds for frame in frames]
    assert seconds[0] == 0
    np.testing.assert_allclose(seconds, np.array(steady) / 90_000, atol=1.1e-3)
    (note,) = reader.notes
    assert note.startswith("its clock begins at 3600")
    with VideoReader(tmp_path / name) as reader:
        found = [frame.seconds for frame in reader.samples(4)]
        assert 0 <= min(found, default=0) <= max(found, default=0) < 1


def test_a_clock_that_is_set_back(tmp_path):
    """Two recordings one after the other."""
    steady = [3000 * i for i in range(90)]
    data = make_video(tmp_path / "a.ts", pts=steady, options={"bf": "0"}, audio="aac").read_bytes()
    (tmp_path / "b.ts").write_bytes(2 * data)
    heard = []
    frames, reader = read(tmp_path / "b.ts", on_audio=heard.append)
    assert len(heard) > 80
    at = np.array([float(packet.dts * packet.time_base) for packet in heard])
    (joint,) = np.flatnonzero(np.diff(at) > 0.1)
    second = at[joint + 1 :]
    np.testing.assert_allclose(second - 3, at[: len(second)], atol=0.05)  # as the frames, which last three seconds
    assert len(frames) == 180
    seconds = np.array([frame.seconds for frame in frames])
    np.testing.assert_allclose(seconds, np.arange(180) / 30 + seconds[0], atol=0.04)
    assert "its clock was set back, and the times go on from there" in reader.notes


def test_audio_that_begins_before_the_frames(tmp_path):
    """A clock of ten hours for both, and audio first: it is the audio that begins at 0."""
    path = make_video(tmp_path / "a.mkv", pts=[45_000 + 3000 * i for i in range(30)], audio="pcm_s16le", codec="libvpx")
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as target:
        streams = {stream: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            packet.pts, packet.dts = packet.pts + 36_000_000, packet.dts + 36_000_000
            packet.stream = streams[packet.stream]
            target.mux(packet)
    heard = []
    frames, _ = read(tmp_path / "b.mkv", on_audio=heard.append)
    assert heard[0].pts == 0
    assert frames[0].seconds == pytest.approx(0.5, abs=1.1e-3)
    assert read(tmp_path / "b.mkv")[0][0].seconds == 0


# --- cameras -------------------------------------------------------------------------------------------------------


def test_a_camera(monkeypatch):
    """FFmpeg's test image in its place: there is none here."""
    monkeypatch.setattr(
        opening, "camera_device", lambda number: (f"testsrc=size=64x48:rate=10:duration={number}", "lavfi")
    )
    frames, reader = read("webcam:2")
    assert (len(frames), reader.size, reader.is_live, reader.problem) == (20, (48, 64), True, "")
    assert reader.samples(3) == []


def test_cameras_of_systems(monkeypatch):
    for system, expected in {"linux": ("/dev/video1", "v4l2"), "darwin": ("1", "avfoundation")}.items():
        monkeypatch.setattr(sys, "platform", system)
        assert opening.camera_device(1) == expected
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigError, match="Linux and macOS"):
        opening.camera_device(0)


def test_no_camera():
    with pytest.raises(ImageError, match=r"webcam:99.: cannot be opened"):
        VideoReader("webcam:99")
