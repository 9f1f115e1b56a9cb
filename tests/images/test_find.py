"""Which files `find_images` lists."""

import os
from pathlib import Path

import pytest

from dajax.errors import ImageError
from dajax.images.find import find_images, passed_over_text, search_images


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


@pytest.fixture
def unreadable(folder, monkeypatch):
    """Return a folder of which the folder `sub` cannot be listed; root may list everything."""
    real = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return folder


@pytest.mark.parametrize(("pattern", "found"), [("", True), ("**/*.*", True), ("*/*.*", False)])
def test_folders_that_cannot_be_listed_are_named(unreadable, pattern, found):
    source = f"{unreadable}/{pattern}".rstrip("/")
    searched = search_images(source)
    assert (unreadable / "a.PNG" in searched.paths) == found
    assert list(searched.unlisted) == [str(unreadable / "sub")]
    with pytest.raises(ImageError, match=r"sub': the folder cannot be listed \(Permission denied\)"):
        find_images(source)


def test_a_named_folder_that_cannot_be_listed_is_an_error(unreadable):
    with pytest.raises(ImageError, match=r"the folder cannot be listed \(Permission denied\)"):
        search_images(unreadable / "sub")


SYSTEM = (
    *("._a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "sub/.thumbnails/1.jpg", "@Recycle/x.jpg", "#recycle/y.jpg"),
    *("$RECYCLE.BIN/S-1-5-18/$RABC.jpg", ".Trash-1000/files/t.jpg", "__MACOSX/sub/._c.jpg", "Thumbs.db", ".DS_Store"),
)


@pytest.fixture
def storage(tmp_path):
    """Return a folder as it lies on network storage, on which several systems write."""
    for name in ("a.jpg", "sub/b.HIF", *SYSTEM, "c.jp2", "d.tga", "e.TGA", ".jpg", "sub/.PNG", "noext", "sub/a.xmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    return tmp_path


def test_system_files_are_left_out_and_the_rest_is_counted(storage):
    found = search_images(storage)
    assert names(storage, found.paths) == ["a.jpg", "sub/b.HIF"]
    system = found.passed_over.pop("system files (._*, @eaDir, #recycle and the like)")
    assert system == len(SYSTEM)  # a folder counts as one
    counts = {".jp2": 1, ".tga": 2, ".xmp": 1, "files named .jpg": 1, "files named .png": 1, "linked folders": 1}
    assert found.passed_over == {**counts, "files without a suffix": 1}
    assert passed_over_text(found.passed_over).startswith("2 .tga, 1 .jp2, 1 .xmp, ")


def test_system_files_match_no_pattern(storage):
    for pattern in ("**/*.jpg", "**/*", "**", "*/*/*.jpg", "*"):
        try:
            found = names(storage, search_images(f"{storage}/{pattern}").paths)
        except ImageError:
            found = []
        assert not set(found) & set(SYSTEM)
    # Who names them means them.
    for source in (f"{storage}/@eaDir/**/*.jpg", storage / "@eaDir"):
        assert names(storage, find_images(source)) == ["@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg"]
    assert find_images(storage / "._a.jpg") == [storage / "._a.jpg"]


def test_what_was_passed_over_explains_an_empty_folder(tmp_path):
    for name in ("a.jp2", "b.JP2"):
        (tmp_path / name).touch()
    with pytest.raises(ImageError, match=r"no images in this folder \(passed over: 2 \.jp2\)"):
        find_images(tmp_path)


def test_many_kinds_are_cut_short():
    kinds = {f".k{i}": i for i in range(1, 12)} | {"linked folders": 1200}
    assert passed_over_text(kinds) == (
        "1,200 linked folders, 11 .k11, 10 .k10, 9 .k9, 8 .k8, 7 .k7, 6 .k6, 5 .k5, 10 of 4 other kinds"
    )


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"new\nline.png", b"qu'ot\"e.png", b"-rf.png", b"a" * 251 + b".png"])
def test_odd_names(tmp_path, name):
    path = Path(os.path.join(tmp_path, os.fsdecode(name)))
    path.touch()
    assert find_images(tmp_path) == find_images(path) == [path]


def test_urls_are_not_listed():
    with pytest.raises(ImageError, match="Download") as caught:
        find_images(["https://user:secret@host/a.jpg?key=secret"])
    assert "secret" not in str(caught.value)
