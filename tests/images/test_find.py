"""Which files `find_images` lists."""

import os
from pathlib import Path

import pytest

from dajax.errors import ImageError
from dajax.images.find import find_images


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "sub/.hidden.png", "notes.txt", "[x].png", "odd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "back").symlink_to(tmp_path)
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    return tmp_path


def names(folder, paths):
    return [str(path.relative_to(folder)) for path in paths]


def test_find_images(folder):
    everything = ["[x].png", "a.PNG", "b.jpg", "dangling.png", "sub/.hidden.png", "sub/c.webp"]
    assert names(folder, find_images(folder)) == everything
    assert names(folder, find_images([folder / "odd", folder / "b.jpg", folder])) == [
        "odd",
        "b.jpg",
        *(name for name in everything if name != "b.jpg"),
    ]
    assert names(folder, find_images(str(folder / "*.jpg"))) == ["b.jpg"]
    (folder / "sub" / "again").symlink_to(folder)  # two links upwards: following them never ends
    assert names(folder, find_images(f"{folder}/**/*.webp")) == ["sub/c.webp"]
    assert names(folder, find_images(f"{folder}/sub/**")) == ["sub/.hidden.png", "sub/c.webp"]
    assert names(folder, find_images(folder / "[x].png")) == ["[x].png"]
    assert names(folder, find_images([folder / "b.jpg", f"{folder}/./b.jpg"])) == ["b.jpg"]
    assert find_images([]) == []


def test_find_images_finds_nothing(folder):
    (folder / "empty").mkdir()
    for path, message in {"empty": "no images", "*.bmp": "no file matches", "missing.jpg": "no such file"}.items():
        with pytest.raises(ImageError, match=message):
            find_images([folder / path])


def test_unreadable_folders_are_not_passed_over(folder, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ImageError, match="cannot be listed"):
        find_images(folder)


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"new\nline.png", b"qu'ot\"e.png", b"-rf.png", b"a" * 251 + b".png"])
def test_odd_names(tmp_path, name):
    path = Path(os.path.join(tmp_path, os.fsdecode(name)))
    path.touch()
    assert find_images(tmp_path) == find_images(path) == [path]


def test_urls_are_not_listed():
    with pytest.raises(ImageError, match="Download") as caught:
        find_images(["https://user:secret@host/a.jpg?key=secret"])
    assert "secret" not in str(caught.value)
