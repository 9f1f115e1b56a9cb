"""Tables in Parquet: paths of images, or the images themselves."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_jobs import do, make_images, outputs, rows

from dajax.batch.items import Location, find_items
from dajax.batch.parquet_tables import ParquetImages
from dajax.errors import DajaxError, JobRefusedError


def keys(source, **options):
    return [item.key for item in find_items(source, **options).items]


# The type of datasets.Image, see the documentation of Hugging Face's library: "struct<bytes: binary, path: string>".
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def images(tmp_path):
    folder = make_images(tmp_path / "images", good=5, bad=0)
    return [folder / f"set{i % 3}" / f"image {i}.{'png' if i % 2 else 'jpg'}" for i in range(5)]


def write_dataset(path, cells, **options):
    labels = pa.array(range(len(cells)))
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE), "label": labels}), path, **options)


@pytest.mark.parametrize("group", [2, 100])
def test_images_in_parquet(tmp_path, images, group):
    """In one column of images there is no need to name it. Rows that have paths alone, or nothing, are among them."""
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in images[:3]]
    cells += [{"bytes": images[3].read_bytes(), "path": None}, {"bytes": None, "path": str(images[4])}, None]
    write_dataset(tmp_path / "train.parquet", cells, row_group_size=group)
    found = find_items(tmp_path / "train.parquet")
    assert [item.key for item in found.items] == sorted(
        [
            str(images[4]),
            "train.parquet/00000000-image 0.jpg",
            "train.parquet/00000001-image 1.png",
            "train.parquet/00000002-image 2.jpg",
            "train.parquet/00000003",
        ]
    )
    assert found.passed_over == {"rows without an entry": 1}
    do(tmp_path / "train.parquet", tmp_path / "out", formats=("npy",))
    do(tmp_path / "images", tmp_path / "expected", formats=("npy",))
    expected = outputs(tmp_path / "expected")
    found = {row.key: row.sha256 for row in rows(tmp_path / "out")}
    for place, image in enumerate(images):
        (key,) = [key for key in found if key == str(image) or key.startswith(f"train.parquet/0000000{place}")]
        assert found[key] == [expected[f"{image.parent.name}/image {place}_depth.npy"]]


def test_equal_paths_are_different_images(tmp_path, images):
    """Many data sets call all of their images alike, and several files make one data set."""
    for part in (0, 1):
        cells = [{"bytes": images[2 * part + i].read_bytes(), "path": "image.jpg"} for i in (0, 1)]
        write_dataset(tmp_path / f"train-{part}.parquet", cells)
    found = find_items(f"{tmp_path}/train-*.parquet")
    assert found.repeated == 0
    assert [item.key for item in found.items] == [
        f"train-{part}.parquet/0000000{row}-image.jpg" for part in (0, 1) for row in (0, 1)
    ]
    do(f"{tmp_path}/train-*.parquet", tmp_path / "out", formats=("npy",))
    assert len(set(outputs(tmp_path / "out").values())) == 4


def test_plain_bytes_in_parquet(tmp_path, images):
    table = pa.table({"id": [7, 8], "jpg": pa.array([images[0].read_bytes(), b"no image"], pa.large_binary())})
    pq.write_table(table, tmp_path / "t.parquet")
    do(tmp_path / "t.parquet", tmp_path / "out", formats=("npy",), column="jpg")
    done, rejected = rows(tmp_path / "out")
    assert (done.status, rejected.status) == ("done", "rejected")
    assert "t.parquet/00000001" in rejected.reason
    # A categorical column of pandas has paths, too.
    pq.write_table(pa.table({"file": pa.array(["b", "a", "b"]).dictionary_encode()}), tmp_path / "c.parquet")
    assert keys(tmp_path / "c.parquet") == ["a", "b"]


def test_rows_are_read_from_any_place(tmp_path):
    cells = [{"bytes": bytes([i]) * 10, "path": None} if i != 30 else None for i in range(100)]
    path = tmp_path / "t.parquet"
    write_dataset(path, cells, row_group_size=7)
    reader = ParquetImages()
    order = [int(row) for row in np.random.default_rng(0).permutation(100) if row != 30]
    for row in [*order, *sorted(order)]:
        assert reader.read(str(path), "image", row) == bytes([row]) * 10
    for row in (30, 100):
        with pytest.raises(ValueError, match="no image in row"):
            reader.read(str(path), "image", row)
    assert reader.read(str(path), "image", 31) == bytes([31]) * 10
    reader.close()


def test_a_damaged_part_costs_its_own_rows(tmp_path, images):
    """The bytes of the second of three row groups are overwritten."""
    path = tmp_path / "t.parquet"
    write_dataset(path, [{"bytes": image.read_bytes(), "path": image.name} for image in images[:3]], row_group_size=1)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    with path.open("r+b") as file:
        file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        file.write(bytes(30))
    do(path, tmp_path / "out", formats=("npy",))
    assert [row.status for row in rows(tmp_path / "out")] == ["done", "rejected", "done"]
    assert "cannot be read out of the Parquet file" in rows(tmp_path / "out")[1].reason


def test_columns_that_have_no_images(tmp_path):
    other = pa.array([{"x": 1}], pa.struct([("x", pa.int64())]))
    pq.write_table(pa.table({"a": [1.5], "b": other}), tmp_path / "t.parquet")
    for column, kind in (("a", "double"), ("b", "struct")):
        with pytest.raises(JobRefusedError, match=f"column '{column}' has {kind}"):
            find_items(tmp_path / "t.parquet", column=column)
    with pytest.raises(DajaxError, match="there are a, b"):
        find_items(tmp_path / "t.parquet")


def test_locations_of_images_in_parquet(tmp_path, images):
    write_dataset(tmp_path / "t.parquet", [{"bytes": images[0].read_bytes(), "path": "x/a.jpg"}])
    (item,) = find_items(tmp_path / "t.parquet").items
    assert item.location == Location(str(tmp_path / "t.parquet"), column="image", row=0)
    assert json.dumps(item.stamp).startswith('"size=')
