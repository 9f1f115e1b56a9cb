"""How files are opened, recognised and written; `put_no_file` has what is no regular file."""

import os
import stat
from pathlib import Path

import pytest

from dajax.errors import ConfigError, ImageError, JobError, WeightsError
from dajax.files import (
    flush_to_disk,
    in_the_way_of,
    open_regular,
    replacing,
    temporary_path,
    write_atomically,
    wrong_download,
)
from tests.refusal import put_no_file

# --- reading


def test_what_is_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "good").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for name, said in {
        "file": "'{}/file' is a file: name another folder",
        "file/x/y": "'{0}/file' is a file, so '{0}/file/x/y' cannot be a folder: name another folder",
        "link": "'{}/link' is a link to nothing: name another folder",
        "pipe": "'{}/pipe' is no folder: name another folder",
        "good/new": "",
        "new/x": "",
        "": "",
    }.items():
        assert in_the_way_of(tmp_path / name) == said.format(tmp_path)
    assert in_the_way_of(Path("new")) == in_the_way_of(Path(".")) == in_the_way_of(Path("a\0b")) == ""


def test_a_file_is_read_to_its_end(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    with open_regular(tmp_path / "a", error=ImageError) as file:
        assert file.read() == bytes(range(256)) * 1000
    (tmp_path / "link").symlink_to("a")
    with open_regular(str(tmp_path / "link"), error=ImageError) as file:
        assert file.read(3) == b"\0\1\2"


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "endless device", "loop", "dangling"])
@pytest.mark.parametrize("error", [ImageError, WeightsError])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind, error):
    path = tmp_path / "model.safetensors"
    put_no_file(path, kind)
    expected = {"folder": "it is a folder", "pipe": "it is a pipe, socket or device"}.get(kind, "")
    with pytest.raises(error, match=f"^{path} cannot be read: {expected}") as caught:
        open_regular(path, error=error)
    assert type(caught.value) is error


def test_a_path_that_becomes_a_pipe_is_refused(tmp_path, monkeypatch):
    """Between the look at it and the opening; a plain open would wait for a writer for ever."""
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_bytes(b"x")
    os.mkfifo(pipe)
    seen = os.stat(file)
    monkeypatch.setattr(os, "stat", lambda path: seen)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match="it is a pipe, socket or device"):
        open_regular(pipe, error=ConfigError)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_message_has_the_name_and_what_to_try(tmp_path):
    with pytest.raises(ImageError) as caught:
        open_regular(tmp_path / "a", error=ImageError, name="'a'", hint="Look again")
    assert str(caught.value) == "'a' cannot be read: No such file or directory. Look again"
    with pytest.raises(ImageError, match=r"cannot be read: .*embedded null"):
        open_regular("a\0b", error=ImageError)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n", "git-LFS pointer, not weights"),
        (b"<!DOCTYPE html><title>Sign in</title>", "HTML or XML page, not weights"),
        (b"\r\n\t <HTML><head>", "HTML or XML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "HTML or XML page"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg">', ""),
        (b"version 2", ""),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"", ""),
    ],
)
def test_downloads_that_went_wrong_are_recognised(head, what):
    assert what in wrong_download(head, "weights")
    assert bool(wrong_download(head, "weights")) == bool(what)


# --- writing


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / ("n" * 255)  # the longest name that file systems allow
    write_atomically(path, b"old", error=ImageError)

    def interrupted():
        with replacing(path) as file:
            file.write(b"half")
            flush_to_disk(file)
            assert path.read_bytes() == b"old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new", error=ImageError)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_that_write_at_once_do_not_mix(tmp_path):
    """Two containers may both be process 1."""
    path = tmp_path / "weights"
    with replacing(path) as mine:
        mine.write(b"mine, first half; ")
        with replacing(path) as theirs:
            theirs.write(b"theirs")
        assert path.read_bytes() == b"theirs"
        mine.write(b"second half")
    assert path.read_bytes() == b"mine, first half; second half"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["none/a", "file/a", "a\0b"])
def test_what_cannot_be_written_is_the_callers_error(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JobError, match=r"cannot be written \(.+\)\. Does the folder exist\?"):
        write_atomically(tmp_path / place, b"data", error=JobError)


def test_flushed_means_on_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_size))
    with (tmp_path / "a").open("wb") as file:
        file.write(b"12345")
        flush_to_disk(file)
    assert flushed == [5]


def test_temporary_names_are_hidden_new_and_end_as_asked(tmp_path):
    names = {temporary_path(tmp_path / "video.mp4", ".mp4") for _ in range(100)}
    assert len(names) == 100
    assert all(p.parent == tmp_path and p.name.startswith(".") and p.suffix == ".mp4" for p in names)


def test_files_have_the_usual_permissions(tmp_path):
    write_atomically(tmp_path / "a", b"", error=ImageError)
    (tmp_path / "plain").write_bytes(b"")
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("a", "plain")]
    assert modes[0] == modes[1]
