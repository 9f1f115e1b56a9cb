"""Items: complete, in order, with keys that are the same in every run."""

import io
import os
import tarfile

import fsspec
import pytest

from dajax.batch.items import Location, find_items
from dajax.errors import ConfigError, DajaxError, ImageError, JobError


def keys(source, **options):
    return [item.key for item in find_items(source, **options).items]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for name in ("b.jpg", "a.PNG", "x/a.jpg", "y/a.jpg", "y/notes.txt", "y/z/c.tiff"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1")
    return folder


def test_folder(images):
    found = find_items(images)
    assert [item.key for item in found.items] == ["a.PNG", "b.jpg", "x/a.jpg", "y/a.jpg", "y/z/c.tiff"]
    assert found.items[2].location == Location(str(images / "x" / "a.jpg"))
    assert (found.kind, found.repeated) == ("folder", 0)


def test_pattern(images):
    assert keys(f"{images}/**/*.jpg") == ["b.jpg", "x/a.jpg", "y/a.jpg"]
    assert keys(f"{images}/?/a.jpg") == ["x/a.jpg", "y/a.jpg"]


def test_one_file(images):
    assert keys(images / "b.jpg") == ["b.jpg"]


def test_output_inside_the_source_is_no_input(images):
    out = images / "out"
    out.mkdir()
    (out / "b_depth.png").write_bytes(b"1")
    assert "out/b_depth.png" in keys(images)
    assert not [key for key in keys(images, leave_out=out) if key.startswith("out")]
    assert keys(f"{images}/**/*.[pP]*", leave_out=out) == ["a.PNG"]
    # A link to an output is an input.
    (images / "link.png").symlink_to(out / "b_depth.png")
    assert "link.png" in keys(images, leave_out=out)


def test_list(images, tmp_path):
    path = tmp_path / "list.txt"
    strange = os.fsdecode(b"caf\xe9.jpg")
    path.write_bytes(b"/data/b.jpg\r\n\n/data/a b.jpg\n/data/b.jpg\n" + os.fsencode(strange))
    found = find_items(path)
    assert [item.key for item in found.items] == ["/data/a b.jpg", "/data/b.jpg", strange]
    assert found.repeated == 1
    assert found.items[0].location.path == "/data/a b.jpg"


def test_csv(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('id,file\n1,"a, b.jpg"\n2,c.jpg\n3,\n')
    assert keys(path, column="file") == ["a, b.jpg", "c.jpg"]
    with pytest.raises(ConfigError, match="say which column has the paths; there are id, file"):
        find_items(path)
    with pytest.raises(ConfigError, match="no column 'path'; there are id, file"):
        find_items(path, column="path")
    path.write_text("file\nc.jpg\n")
    assert keys(path) == ["c.jpg"]


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "file": ["b.jpg", "a.jpg", None]}), path)
    assert keys(path, column="file") == ["a.jpg", "b.jpg"]
    with pytest.raises(JobError, match="column 'id' has int64, not text"):
        find_items(path, column="id")
    path.write_bytes(b"PAR1")
    with pytest.raises(JobError, match="Parquet"):
        find_items(path, column="file")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pip install '\.\[parquet\]'"):
        find_items(tmp_path / "t.parquet")


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_tar(tmp_path):
    for number in (1, 0):
        write_tar(
            tmp_path / f"s-{number}.tar", {f"{number}1.jpg": b"one", f"{number}1.cls": b"7", f"{number}0.png": b"zero"}
        )
    found = find_items(f"{tmp_path}/s-*.tar")
    assert [item.key for item in found.items] == [
        "s-0.tar/00.png",
        "s-0.tar/01.jpg",
        "s-1.tar/10.png",
        "s-1.tar/11.jpg",
    ]
    with tarfile.open(tmp_path / "s-1.tar", "a") as archive:
        folder, link = tarfile.TarInfo("folder.jpg"), tarfile.TarInfo("link.jpg")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "11.jpg"
        archive.addfile(folder)
        archive.addfile(link)
    assert [item[:2] for item in find_items(f"{tmp_path}/s-*.tar").items] == [item[:2] for item in found.items]
    assert keys(tmp_path / "s-0.tar") == ["s-0.tar/00.png", "s-0.tar/01.jpg"]
    location = found.items[3].location
    with open(location.path, "rb") as file:
        file.seek(location.offset)
        assert file.read(location.size) == b"one"
    (tmp_path / "bad.tar").write_bytes(b"x" * 1000)
    with pytest.raises(JobError, match=r"bad\.tar: cannot be read as an uncompressed tar"):
        find_items(tmp_path / "bad.tar")


def test_system_files_in_tars_and_buckets(tmp_path):
    """macOS's tar puts the metadata of x into ._x."""
    members = dict.fromkeys(("a.jpg", "._a.jpg", "__MACOSX/b.jpg", "a.cls", "b.jp2"), b"1")
    write_tar(tmp_path / "s.tar", members)
    system = fsspec.filesystem("memory")
    for name, data in members.items():
        system.pipe_file(f"/nas/{name}", data)
    counts = {"system files (._*, @eaDir, #recycle and the like)": 2, ".cls": 1, ".jp2": 1}
    for source, key in ((tmp_path / "s.tar", "s.tar/a.jpg"), ("memory://nas", "a.jpg")):
        found = find_items(source)
        assert ([item.key for item in found.items], found.passed_over) == ([key], counts)


def test_tars_of_one_name_in_two_folders(tmp_path):
    for folder in "xy":
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "s.tar", {"a.jpg": folder.encode()})
    found = find_items(f"{tmp_path}/*/s.tar")
    assert ([item.key for item in found.items], found.repeated) == (["x/s.tar/a.jpg", "y/s.tar/a.jpg"], 0)


def test_remote():
    system = fsspec.filesystem("memory")
    for name in ("/bucket/x/a.jpg", "/bucket/b.png", "/bucket/readme.md"):
        system.pipe_file(name, b"1")
    found = find_items("memory://bucket")
    assert [item.key for item in found.items] == ["b.png", "x/a.jpg"]
    assert found.items[1].location.path == "memory:///bucket/x/a.jpg"
    assert keys("memory://bucket/*/*.jpg") == ["x/a.jpg"]
    assert keys("memory://bucket/b.png") == ["b.png"]
    with pytest.raises(ImageError, match="has no images"):
        find_items("memory://nothing")


def test_remote_lists_tables_and_tars(tmp_path):
    system = fsspec.filesystem("memory")
    system.pipe_file("/lists/list.txt", b"b.jpg\na.jpg\n")
    system.pipe_file("/lists/table.csv", b"file\nc.jpg\n")
    for number in (1, 0):
        write_tar(tmp_path / "one.tar", {f"{number}.jpg": f"image {number}".encode()})
        system.pipe_file(f"/tars/s-{number}.tar", (tmp_path / "one.tar").read_bytes())
    assert keys("memory://lists/list.txt") == ["a.jpg", "b.jpg"]
    assert keys("memory://lists/table.csv") == ["c.jpg"]
    assert keys("memory://tars/s-1.tar") == ["s-1.tar/1.jpg"]
    found = find_items("memory://tars/s-*.tar")
    assert [item.key for item in found.items] == ["s-0.tar/0.jpg", "s-1.tar/1.jpg"]
    for number, item in enumerate(found.items):
        location = item.location
        with fsspec.open(location.path) as file:
            assert file.read()[location.offset :][: location.size] == f"image {number}".encode()
    with pytest.raises(ImageError, match="no file matches"):
        find_items("memory://tars/none-*.tar")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("https://example.org/a.jpg", ConfigError, "download the images first"),
        ("nothing", ImageError, "no such file or folder"),
        ("nothing*.jpg", ImageError, "no file matches"),
        ("nothing.txt", JobError, "cannot be opened"),
        ("nothing.csv", JobError, "cannot be opened"),
        ("nonsense://a", ConfigError, "nonsense"),
    ],
)
def test_what_is_not_there(tmp_path, monkeypatch, source, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        find_items(source)


def test_web_pages_in_a_list_are_not_fetched(tmp_path):
    """fsspec would fetch them, if aiohttp is there."""
    (tmp_path / "list.txt").write_text("HTTPS://example.org/a.jpg\n/data/b.jpg\n")
    page, image = find_items(tmp_path / "list.txt").items[::-1]
    page, image = (image, page) if image.key.startswith("HTTPS") else (page, image)
    assert "download the image first" in page.problem
    assert image.problem == ""


def test_column_of_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"goes with a \.csv, \.tsv or \.parquet"):
        find_items(tmp_path, column="file")


def test_empty(tmp_path):
    (tmp_path / "list.txt").write_text("\n\n")
    for source in (tmp_path, tmp_path / "list.txt"):
        with pytest.raises(DajaxError, match=r"no images"):
            find_items(source)
