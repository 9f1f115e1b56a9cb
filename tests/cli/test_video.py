"""`dajax video`."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from videos import make_video, times

import dajax
from dajax.cli import main

ROOT = Path(dajax.__file__).parent.parent


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["video", *map(str, arguments), "--model", "tiny", "--input-size", "42", "--no-cache"])
        return ended.value.code, *capsys.readouterr()

    return run


def test_a_video(run, tmp_path):
    make_video("a.mp4")
    status, out, err = run("a.mp4", "out/b.mp4", "--raw", "ffv1", "--side-by-side")
    assert status == 0
    assert out.startswith("30 frames in ")
    assert "tiny (inverse depth, bigger is nearer), float32 on " in out
    assert out.endswith("wrote out/b.mp4, out/b_depth.mkv, out/b_depth.json\n")
    compiles, *progress = [line for line in err.splitlines() if "programs that were compiled before" not in line]
    assert (
        compiles
        == "dajax video: preparing the network for 42x56 pixels (compiling takes up to a minute, the first time)"
    )
    assert all(" of 30 frames, " in line for line in progress)  # on a slow machine
    assert times("out/b.mp4") == times("a.mp4")


def test_what_of_a_video_is_not_shown(run):
    late = [10 * 3600 * 90_000 + 3000 * i for i in range(5)]
    make_video("a.mp4", pts=late)
    status, _, err = run("a.mp4", "b.mp4", "--no-smooth")
    assert status == 0
    assert "dajax video: its clock begins at 36000.000 s, and times are counted from there\n" in err


def test_a_format_that_is_not_read(run):
    Path("a.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.mp4\n#EXT-X-ENDLIST\n")
    status, _, err = run("a.m3u8", "b.mp4")
    assert status == 2
    assert "It is in none of the formats that are read, which are MP4, MOV, 3GP, Matroska, WebM, AVI" in err


def test_a_video_that_breaks_off(run):
    data = make_video(Path("a.mkv"), pts=[3000 * i for i in range(100)]).read_bytes()
    Path("a.mkv").write_bytes(data[: len(data) // 2])
    status, out, err = run("a.mkv", "b.mp4", "--no-smooth")
    assert status == 3
    assert "wrote b.partial.mp4" in out
    assert "dajax video: the video is not whole: it ends after" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.mp4", "b.mp4"], "'nothing.mp4' does not exist"),
        (["a.mp4", "b.gif"], "videos are written as .mp4"),
        (["a.mp4", "a.mp4"], "is the video itself"),
        (["a.mp4", "b.mp4", "--limits", "2", "1"], "the smaller first"),
        (["a.mp4", "b.mp4", "--colormap", "nothing"], "nothing"),
        (["a.mp4", "b.mp4", "--audio"], "has no audio"),
        (["webcam:99", "b.mp4"], "'webcam:99': cannot be opened as a video"),
    ],
)
def test_bad_usage(run, arguments, message):
    make_video("a.mp4")
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert not Path("b.mp4").exists()


def test_ctrl_c(tmp_path):
    """What was done is kept, and says that it is not all."""
    make_video(tmp_path / "a.mp4", pts=[3000 * i for i in range(3000)], size=(16, 16))
    command = [sys.executable, "-m", "dajax", "video", "a.mp4", "b.mp4", "--model", "tiny", "--input-size", "42"]
    # A terminal, so that there is a progress bar: an interrupt before the first frame leaves nothing to keep.
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    process = subprocess.Popen(
        [*command, "--no-cache", "--limits", "0", "1"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, stderr=stderr,
    )  # fmt: skip
    os.close(stderr)
    err = ""
    with suppress(OSError):  # It is how Linux says that the other end is closed.
        while read := os.read(terminal, 4096).decode(errors="replace"):
            if not re.search(r"[1-9]\d*/3000", err) and re.search(r"[1-9]\d*/3000", err + read):
                process.send_signal(signal.SIGINT)
            err += read
    os.close(terminal)
    process.wait(timeout=60)
    assert process.returncode == 3, err
    assert "the video is not whole: interrupted" in err
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.partial.mp4"}
    assert 0 < len(times(tmp_path / "b.partial.mp4")) < 3000


def test_help(run):
    status, out, _ = run("--help")
    assert status == 0
    for option in ("--smooth", "--raw", "--limits", "--audio", "--side-by-side", "--seconds"):
        assert option in out
