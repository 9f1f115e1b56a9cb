"""Jobs: every item has a row in the manifest, and every output is whole."""

import json
import os
import shutil
import subprocess
import sys
import threading

import cv2
import fsspec
import numpy as np
import pytest
from batch_jobs import BAD, FORMATS, GOOD, PlainEstimator, assert_same_job, do, leftovers, make_images, outputs, rows
from PIL import Image
from tiny import tiny_config, tiny_metric_config

from dajax.batch import engine
from dajax.batch.engine import run_batch
from dajax.batch.job_plan import plan_batch
from dajax.batch.job_settings import BatchSettings
from dajax.batch.manifest import Manifest, read_manifest, read_rejects
from dajax.batch.storage_kinds import open_storage
from dajax.batch.verification import verify
from dajax.depth_maps.colormap import colorize
from dajax.depth_maps.read_back import read_png16
from dajax.errors import ConfigError, DajaxError, JobError
from dajax.images.read import read_image
from dajax.preprocessing.buckets import Buckets


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_every_item_is_accounted_for(images, undisturbed):
    found = read_manifest(undisturbed)
    assert len(found) == GOOD + BAD
    assert set(outputs(undisturbed)) == {name for row in found.values() for name in row.output}
    assert not leftovers(undisturbed)
    estimator = PlainEstimator()
    for key, row in found.items():
        if "bad" in key:
            assert (row.status, row.output, row.shape) == ("rejected", [], [])
            assert row.reason
            continue
        assert row.status == "done"
        assert row.output == [key[:-4] + "_depth.npy", key[:-4] + "_depth.png"]
        assert row.sha256 == [outputs(undisturbed)[name] for name in row.output]
        taken = Buckets(estimator.processor, None).process(read_image(images / key))
        expected = estimator.processor.post_process_depth_estimation(taken.pixels.mean(-1)[None], [taken.source_size])
        depth = np.load(undisturbed / row.output[0])
        np.testing.assert_array_equal(depth, expected[0]["predicted_depth"])
        assert row.shape == list(depth.shape) == list(size_of(images / key)[::-1])


def test_a_second_run_has_nothing_to_do(images, undisturbed, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*_depth*")}
    report = do(images, undisturbed)
    assert (report.done, report.rejected, report.earlier, report.items) == (0, 0, GOOD + BAD, GOOD + BAD)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*_depth*")} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": "model"}, "size was .source. and is .model."),
        ({"batch_size": 3}, "batch_size was 2 and is 3"),
        (
            {"formats": ("npy",)},
            r"colormap was .Spectral_r. and is null; formats was \[.npy., .color.\] and is \[.npy.\]",
        ),
        ({"buckets": 2}, "buckets was null and is 2; policy was null and is .resize."),
        ({"shards": 3}, "shard_format was null and is .tar.; shards was null and is 3"),
        ({"values": "float16"}, "values was .float32. and is .float16."),
        ({"colormap": "turbo"}, "colormap"),
    ],
)
def test_other_parameters_are_refused(images, undisturbed, change, said):
    with pytest.raises(JobError, match=f"begun with other parameters: {said}"):
        do(images, undisturbed, **change)


def test_other_weights_and_another_source_are_refused(images, undisturbed, tmp_path):
    with pytest.raises(JobError, match="weights was"):
        do(images, undisturbed, PlainEstimator(2.0))
    with pytest.raises(JobError, match="source was"):
        do(f"{images}/*/*", undisturbed)


def test_what_does_not_change_outputs_may_differ(images, undisturbed):
    do(images, undisturbed, workers=1, max_rejects=100, decode_timeout=5.0)


@pytest.mark.parametrize(("config", "units"), [(tiny_config(), "affine-inv"), (tiny_metric_config(), "metres")])
def test_files_say_what_they_are(tmp_path, config, units):
    source = make_images(tmp_path / "images", good=1, bad=0)
    settings = BatchSettings(formats=("npz", "npy", "color"), colormap="gray", workers=1)
    run_batch(PlainEstimator(config=config), source, tmp_path / "out", settings, model="some", progress=False)
    (row,) = rows(tmp_path / "out")
    npz, npy, png = (tmp_path / "out" / name for name in row.output)
    depth = np.load(npy)
    with np.load(npz) as stored:
        assert (str(stored["kind"]), str(stored["model"])) == (config.depth_estimation_type, "some")
        assert str(stored["style"]) == config.style
        assert str(stored["units"]).startswith(units)
    with Image.open(png) as coloured:
        # Near is bright, for metres too.
        expected = colorize(-depth if config.is_metric else depth, "gray")
        np.testing.assert_array_equal(np.asarray(coloured), expected)


def test_what_the_reader_says_is_in_the_manifest_and_in_output_shards(tmp_path):
    import tarfile

    source = tmp_path / "images"
    source.mkdir()
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "b.gif"):
        frames[0].save(source / name, save_all=True, append_images=frames[1:])
    (tmp_path / "files" / "b_depth.npy").mkdir(parents=True)  # so that b.gif is left out
    do(source, tmp_path / "files", formats=("npy",))
    do(source, tmp_path / "shards", formats=("npy",), shards=2)
    notes = [row.notes for row in [*rows(tmp_path / "files"), *rows(tmp_path / "shards")]]
    assert [row.status for row in rows(tmp_path / "files")] == ["done", "rejected"]
    assert len(notes) == 4
    assert all("several frames" in note for (note,) in notes)
    with tarfile.open(tmp_path / "shards" / "depth-000000.tar") as archive:
        assert json.load(archive.extractfile("a.json"))["notes"] == notes[0]


def test_what_the_readers_and_the_network_are_asked_for(images, tmp_path, monkeypatch):
    asked = {}

    class Recording(engine.Decoders):
        def __init__(self, count, options, **more):
            asked.update(more, count=count, buckets=options["count"])
            super().__init__(count, options, **more)

    monkeypatch.setattr(engine, "Decoders", Recording)
    estimator = PlainEstimator()
    do(images, tmp_path, estimator, workers=1, decode_timeout=7.0, batch_size=3, buckets=2, value_range="auto")
    reading = {"value_range": "auto", "allow_truncated": False}
    assert asked == {"count": 1, "timeout": 7.0, "ahead": 6, "buckets": 2, "reading": reading}
    assert estimator.asked_batch_size == 3


def test_no_process_is_left(images, tmp_path, monkeypatch):
    started = []
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **options: started.append(real(*a, **options)) or started[-1])
    do(images, tmp_path)
    assert started
    assert all(process.poll() is not None for process in started)


def test_what_killed_runs_left_is_removed_at_the_start(images, tmp_path):
    """A run that is killed every time would otherwise fill the disk."""
    left = tmp_path / ".dajax" / "unfinished" / "left"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of an output")
    seen = []

    class Looking(PlainEstimator):
        def stream(self, images, **options):
            for depth in super().stream(images, **options):
                seen.append(left.exists())
                yield depth

    do(images, tmp_path, Looking())
    assert seen == [False] * GOOD


def test_short_device_memory_is_recorded(images, tmp_path):
    class Short(PlainEstimator):
        def stream(self, images, **options):
            for depth in super().stream(images, **options):
                if options["on_smaller_batch"]:
                    options["on_smaller_batch"](1)
                yield depth

    do(images, tmp_path, Short())
    progress = json.loads((tmp_path / ".dajax" / "progress.json").read_text())
    assert progress["notes"][0] == "out of device memory: batches of 1 from here on"


def test_rows_are_written_on_the_way(images, tmp_path, monkeypatch):
    """After a while, though there are less than a group."""
    monkeypatch.setattr("dajax.batch.commit.GROUP_SECONDS", 0.0)
    seen = []

    class Looking(PlainEstimator):
        def stream(self, images, **options):
            for depth in super().stream(images, **options):
                seen.append(len(read_manifest(tmp_path)))
                yield depth

    do(images, tmp_path, Looking(), batch_size=1, workers=1)
    assert 0 < seen[-1] < GOOD + BAD


def test_all_formats(images, tmp_path):
    do(images, tmp_path, formats=("npy", "npz", "png16", "tiff", "color"))
    row = next(row for row in read_manifest(tmp_path).values() if row.status == "done")
    exact = np.load(tmp_path / row.output[0])
    with np.load(tmp_path / row.output[1]) as stored:
        np.testing.assert_array_equal(stored["depth"], exact)
        assert str(stored["kind"]) == "relative"
        assert str(stored["units"]).startswith("affine-invariant")
    steps, about = read_png16(tmp_path / row.output[2])
    assert np.abs(steps - exact).max() <= about["scale"] * 0.51
    with Image.open(tmp_path / row.output[3]) as tiff:
        assert "kind: relative" in tiff.tag_v2[270]
        np.testing.assert_array_equal(np.asarray(tiff), exact)
    assert size_of(tmp_path / row.output[4]) == exact.shape[::-1]


def test_float16_and_model_size(images, tmp_path):
    do(images, tmp_path, formats=("npy",), values="float16", size="model")
    for row in read_manifest(tmp_path).values():
        if row.status == "done":
            depth = np.load(tmp_path / row.output[0])
            assert depth.dtype == np.float16
            assert min(depth.shape) == 28


def test_values_that_do_not_fit_are_rejected_not_saved(images, tmp_path):
    do(images, tmp_path, PlainEstimator(1e7), formats=("npy",), values="float16")
    reasons = {row.reason for row in read_rejects(tmp_path) if "bad" not in row.key}
    assert all("does not fit into float16" in reason for reason in reasons)
    assert not outputs(tmp_path)
    other = tmp_path / "not finite"
    do(images, other, PlainEstimator(np.nan))
    assert not outputs(other)
    assert len(read_rejects(other)) == GOOD + BAD


def test_millimetres_in_png16(tmp_path):
    """What does not fit is 0, is counted in the manifest, and in the report; another scale is another job."""
    source = make_images(tmp_path / "images", good=2, bad=0)
    metric = PlainEstimator(100.0, tiny_metric_config())
    settings = {"formats": ("npy", "png16"), "png_scale": 0.001}
    report = do(source, tmp_path / "out", metric, **settings)
    assert report.noted == 2
    for row in rows(tmp_path / "out"):
        depth = np.load(tmp_path / "out" / row.output[0]).astype(np.float64)
        stored = cv2.imread(str(tmp_path / "out" / row.output[1]), cv2.IMREAD_UNCHANGED)
        fits = (depth >= 0.0005) & (depth < 65.5355)
        assert 0 < fits.mean() < 1
        np.testing.assert_array_equal(stored[~fits], 0)
        assert np.abs(stored[fits] - 1000 * depth[fits]).max() <= 0.5 + 1e-6
        count = f"{(~fits).sum():,} of {depth.size:,}"
        said = (
            f"{count} values do not fit into the 16-bit PNG, which holds 0.001 to 65.535 metres: they are stored as 0"
        )
        assert row.notes == [f"{said}, no value"]
    with pytest.raises(JobError, match=r"png_scale was 0\.001 and is 0\.01"):
        do(source, tmp_path / "out", metric, **{**settings, "png_scale": 0.01})


@pytest.mark.parametrize("shards", [1, 4, 100])
def test_tar_shards(images, undisturbed, tmp_path, shards):
    import tarfile

    do(images, tmp_path, shards=shards)
    found = {}
    for name in sorted(outputs(tmp_path)):
        with tarfile.open(tmp_path / name) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}
        for member, data in members.items():
            stem, _, field = member.partition(".")
            found.setdefault(stem, {})[field] = data
    assert len(found) == GOOD
    files = read_manifest(undisturbed)
    for stem, sample in found.items():
        assert list(sample) == ["depth.npy", "depth.png", "json"]
        about = json.loads(sample["json"])
        row = files[about["key"]]
        assert stem == about["key"][:-4]
        assert (about["shape"], about["notes"]) == (row.shape, row.notes)
        assert [sample["depth.npy"], sample["depth.png"]] == [(undisturbed / name).read_bytes() for name in row.output]
    assert len(outputs(tmp_path)) == -(-(GOOD + BAD) // shards)
    report = do(images, tmp_path, shards=shards)
    assert report.earlier == GOOD + BAD


@pytest.mark.parametrize("shards", [1, 4])
def test_parquet_shards(images, undisturbed, tmp_path, shards):
    """With 1, a shard has exactly one image, good or bad."""
    import pyarrow.parquet as pq

    do(images, tmp_path, shards=shards, shard_format="parquet")
    kept = [row for row in rows(tmp_path) if row.status == "done"]
    tables = [pq.read_table(tmp_path / name).to_pylist() for name in sorted(outputs(tmp_path))]
    assert len(tables) == -(-(GOOD + BAD) // shards)
    table = [row for rows in tables for row in rows]
    assert [row["key"] for row in table] == [row.key for row in kept]
    files = read_manifest(undisturbed)
    for row in table:
        assert [row["height"], row["width"]] == files[row["key"]].shape
        npy, png = ((undisturbed / name).read_bytes() for name in files[row["key"]].output)
        assert (row["depth_npy"], row["depth_png"]) == (npy, png)
    assert (verify(tmp_path).whole, verify(tmp_path).lost) == (GOOD, {})


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the program tar")
def test_tar_reads_output_shards(sharded, undisturbed, tmp_path):
    for name in sorted(outputs(sharded)):
        subprocess.run(["tar", "-xf", sharded / name, "-C", tmp_path], check=True, capture_output=True, timeout=60)
    done = [row for row in rows(undisturbed) if row.status == "done"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3 * len(done)
    for row in done:
        npy = tmp_path / f"{row.key[:-4]}.depth.npy"
        assert npy.read_bytes() == (undisturbed / row.output[0]).read_bytes()


def test_duckdb_reads_parquet_shards(images, undisturbed, tmp_path):
    import duckdb

    do(images, tmp_path, shards=4, shard_format="parquet")
    wanted = f"select key, height, width, depth_npy from read_parquet('{tmp_path}/*.parquet') order by key"
    found = duckdb.sql(wanted).fetchall()
    expected = [row for row in rows(undisturbed) if row.status == "done"]
    assert found == [
        (row.key, *row.shape, (undisturbed / row.output[0]).read_bytes())
        for row in sorted(expected, key=lambda r: r.key)
    ]


def test_parquet_without_pyarrow(images, tmp_path, monkeypatch):
    """Nothing is known of the outputs then: they are not lost."""
    do(images, tmp_path / "out", shards=4, shard_format="parquet")
    before = rows(tmp_path / "out")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[parquet\]'"):
        verify(tmp_path / "out")
    assert rows(tmp_path / "out") == before
    with pytest.raises(ConfigError, match=r"pip install '\.\[parquet\]'"):
        do(images, tmp_path / "new", shards=4, shard_format="parquet")
    assert not (tmp_path / "new").exists()


def test_output_shards_are_in_the_order_of_the_source(images, sharded, tmp_path):
    """Rejects are known before the images ahead of them come out of the network."""

    class ReadingAhead(PlainEstimator):
        def stream(self, images, **options):
            yield from list(super().stream(images, **options))

    do(images, tmp_path, ReadingAhead(), shards=4)
    assert_same_job(tmp_path, sharded)
    found = [row.key for row in Manifest(open_storage(tmp_path)).rows()]
    assert found == sorted(found)


def test_names_with_dots_in_tar_files(tmp_path):
    """The first dot ends a sample's name for readers of WebDataset."""
    import tarfile

    image = make_images(tmp_path / "one", good=1, bad=0) / "set0" / "image 0.jpg"
    names = ["a.b.jpg", "a_b.jpg", "x.y/a.b.jpg", "a.b_c.jpg", "a_b.c.jpg"]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(image.read_bytes())
    do(tmp_path / "images", tmp_path / "out", formats=("npy",), shards=10)
    with tarfile.open(tmp_path / "out" / "depth-000000.tar") as archive:
        members = archive.getnames()
        keys = [json.load(archive.extractfile(name))["key"] for name in members if name.endswith(".json")]
    assert sorted(keys) == sorted(names)
    stems = {}
    for member in members:
        folder, _, last = member.rpartition("/")
        stem, _, field = last.partition(".")
        stems.setdefault((folder, stem), []).append(field)
    assert list(stems.values()) == [["depth.npy", "json"]] * len(names)


def test_a_key_that_is_no_unicode_in_parquet(tmp_path):
    import pyarrow.parquet as pq

    image = make_images(tmp_path / "one", good=1, bad=0) / "set0" / "image 0.jpg"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(image.read_bytes())
    do(tmp_path / "images", tmp_path / "out", shards=1, shard_format="parquet")
    assert pq.read_table(tmp_path / "out" / "depth-000000.parquet")["key"].to_pylist() == [r"caf\udce9.jpg"]


def test_an_output_shard_whose_name_is_taken_stops_the_job(images, tmp_path):
    (tmp_path / "depth-000000.tar" / "x").mkdir(parents=True)
    with pytest.raises(JobError, match=r"depth-000000\.tar. cannot be written"):
        do(images, tmp_path, shards=100)
    assert not read_manifest(tmp_path)


def test_an_output_shard_that_lacks_a_row_is_made_again(images, sharded, tmp_path):
    do(images, tmp_path, shards=4)
    (part,) = (tmp_path / ".dajax" / "manifest").iterdir()
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:-1]))
    assert len(read_manifest(tmp_path)) == GOOD + BAD - 1
    report = do(images, tmp_path, shards=4)
    assert report.done + report.rejected == min(4, (GOOD + BAD) % 4 or 4)
    assert_same_job(tmp_path, sharded)


def test_shards_need_the_same_items(images, tmp_path):
    import shutil

    source = tmp_path / "images"
    shutil.copytree(images, source)
    do(source, tmp_path / "out", shards=4)
    shutil.copy(source / "set0" / "image 0.jpg", source / "new.jpg")
    with pytest.raises(JobError, match="has not the items that it had"):
        do(source, tmp_path / "out", shards=4)


def test_new_images_are_done_and_old_ones_keep_their_names(tmp_path):
    source, output = tmp_path / "images", tmp_path / "out"
    make_images(source, good=2, bad=0)
    do(source, output)
    before = outputs(output)
    # Its name without suffix is that of an image which is done.
    Image.new("RGB", (40, 40)).save(source / "set0" / "image 0.png")
    report = do(source, output)
    assert (report.earlier, report.done) == (2, 1)
    assert before.items() <= outputs(output).items()
    assert set(outputs(output)) - set(before) == {"set0/image 0.png_depth.npy", "set0/image 0.png_depth.png"}


def test_an_image_of_a_later_run_takes_no_name_of_an_earlier_one(tmp_path):
    """x.jpg was done and is gone; x.png alone would have its output's name."""
    source, output = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    Image.new("RGB", (40, 40), "red").save(source / "x.jpg")
    do(source, output)
    before = outputs(output)
    (source / "x.jpg").unlink()
    Image.new("RGB", (60, 40), "blue").save(source / "x.png")
    assert do(source, output).done == 1
    assert before.items() <= outputs(output).items()
    assert set(outputs(output)) - set(before) == {"x.png_depth.npy", "x.png_depth.png"}
    assert (verify(output).whole, verify(output).lost) == (2, {})


def test_rejects_are_tried_again_if_asked(tmp_path):
    source, output = tmp_path / "images", tmp_path / "out"
    make_images(source, good=2, bad=1)
    do(source, output)
    Image.new("RGB", (40, 40)).save(source / "set1" / "bad 0.jpg")
    assert do(source, output).done == 0
    assert do(source, output, retry_rejects=True).done == 1
    assert not read_rejects(output)


def test_max_rejects(images, tmp_path):
    said = r"stopped: \d images had to be left out, and max_rejects is 0. The last: 'set1/bad"
    with pytest.raises(JobError, match=said):
        do(images, tmp_path, max_rejects=0)
    do(images, tmp_path / "as many", max_rejects=BAD)


def test_an_image_that_vanishes(tmp_path):
    source = make_images(tmp_path / "images", good=6, bad=0)

    class Removing(PlainEstimator):
        def stream(self, images, **options):
            for place, depth in enumerate(super().stream(images, **options)):
                if place == 0:
                    (source / "set2" / "image 5.png").unlink()
                yield depth

    do(source, tmp_path / "out", Removing(), workers=1, batch_size=1)
    (row,) = read_rejects(tmp_path / "out")
    assert row.key == "set2/image 5.png"
    assert "no such file" in row.reason.lower()


def test_names_of_all_kinds(tmp_path):
    source, output = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    image = make_images(tmp_path / "one", good=1, bad=0) / "set0" / "image 0.jpg"
    names = [
        b"-dash.jpg",
        b'quote".jpg',
        b"new\nline.jpg",
        b"caf\xe9.jpg",
        b"x" * 251 + b".jpg",
        b"A.jpg",
        b"a.jpg",
        b"a.PNG",
    ]
    for name in names:
        (source / os.fsdecode(name)).write_bytes(image.read_bytes())
    os.symlink(source / "nothing", source / "dangling.jpg")
    os.symlink("loop.jpg", source / "loop.jpg")
    os.mkfifo(source / "pipe.jpg")
    do(source, output)
    found = read_manifest(output)
    assert set(found) == {os.fsdecode(name) for name in [*names, b"dangling.jpg", b"loop.jpg", b"pipe.jpg"]}
    assert {row.key for row in found.values() if row.status == "rejected"} == {"dangling.jpg", "loop.jpg", "pipe.jpg"}
    done = [row.output[0] for row in found.values() if row.status == "done"]
    assert len({name.casefold() for name in done}) == len(names)


def test_an_output_that_cannot_be(tmp_path):
    """There is a folder where the file should be: only this image is left out."""
    source = make_images(tmp_path / "images", good=3, bad=0)
    output = tmp_path / "out"
    (output / "set0" / "image 0_depth.png").mkdir(parents=True)
    do(source, output)
    (row,) = read_rejects(output)
    assert row.key == "set0/image 0.jpg"
    # All of its files or none.
    assert not (output / "set0" / "image 0_depth.npy").exists()
    assert len(outputs(output)) == 4


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_remote(images, undisturbed, request, kind):
    if kind == "memory":
        system = fsspec.filesystem("memory")
        system.store.clear()
        out = "memory://out"
    else:
        out = request.getfixturevalue("s3") + "/out"  # skips if there is no s3fs
        system = fsspec.filesystem("s3")
        # Sources, too.
        system.put(f"{images}/", "bucket/images/", recursive=True)
        images = "s3://bucket/images"
    report = do(images, out)
    assert report.done == GOOD
    found = read_manifest(out)
    for row in found.values():
        for name, digest in zip(row.output, row.sha256, strict=True):
            assert digest == outputs(undisturbed)[name]
            assert system.isfile(f"{out}/{name}")
    assert do(images, out).earlier == GOOD + BAD
    system.rm_file(f"{out}/" + next(row for row in found.values() if row.output).output[0])
    assert len(verify(out).lost) == 1
    assert do(images, out).done == 1


def test_verify(images, undisturbed, tmp_path):
    with pytest.raises(JobError, match="no job has written here"):
        verify(tmp_path)
    do(images, tmp_path)
    assert (verify(tmp_path).whole, verify(tmp_path).rejected, verify(tmp_path).lost) == (GOOD, BAD, {})
    first, second, *_ = [row for row in rows(tmp_path) if row.output]
    (tmp_path / first.output[0]).unlink()
    with (tmp_path / second.output[1]).open("r+b") as file:
        file.write(b"x")
    found = verify(tmp_path)
    assert found.lost == {
        first.key: f"{first.output[0]} is missing",
        second.key: f"{second.output[1]} has changed",
    }
    # The manifest has it now; looking again finds the same.
    assert {row.key: row.reason for row in rows(tmp_path) if row.status == "lost"} == found.lost
    again = verify(tmp_path)
    assert (again.whole, again.lost) == (GOOD - 2, found.lost)
    assert do(images, tmp_path).done == 2
    assert_same_job(tmp_path, undisturbed)
    assert verify(tmp_path).lost == {}


def test_verify_shards(images, sharded, tmp_path):
    do(images, tmp_path, shards=4)
    assert verify(tmp_path).whole == GOOD
    (tmp_path / "depth-000001.tar").write_bytes(b"x")
    lost = verify(tmp_path).lost
    assert 1 <= len(lost) <= 4
    assert all("depth-000001.tar cannot be read" in reason for reason in lost.values())
    do(images, tmp_path, shards=4)
    assert_same_job(tmp_path, sharded)
    # A whole file, but with other images; and one that is gone.
    (tmp_path / "depth-000001.tar").write_bytes((tmp_path / "depth-000000.tar").read_bytes())
    (tmp_path / "depth-000000.tar").unlink()
    assert set(verify(tmp_path).lost.values()) == {"depth-000000.tar is missing", "depth-000001.tar has changed"}
    do(images, tmp_path, shards=4)
    assert_same_job(tmp_path, sharded)


def test_plan_writes_nothing(images, undisturbed, tmp_path):
    output = tmp_path / "out"
    plan = plan_batch(images, output, BatchSettings())
    assert len(plan.left) == GOOD + BAD
    assert not output.exists()
    assert plan_batch(images, undisturbed, BatchSettings()).left == []


@pytest.mark.parametrize(
    "settings",
    [
        {"formats": ()}, {"formats": ("jpg",)}, {"formats": ("npy", "npy")}, {"values": "float64"}, {"size": "half"},
        {"formats": ("color",), "values": "float16"}, {"colormap": "no such map"}, {"shards": 0}, {"buckets": 0},
        {"batch_size": 0}, {"workers": 0}, {"decode_timeout": 0.0}, {"max_rejects": -1},
        {"policy": "crop", "buckets": 2}, {"shards": 2, "shard_format": "zip"}, {"shards": 2, "retry_rejects": True},
        {"column": "file"}, {"png_scale": 0.001}, {"formats": ("png16",), "png_scale": 0.001},
        {"formats": ("png16",), "png_scale": 0.0}, {"formats": ("png16",), "png_scale": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings_write_nothing(images, tmp_path, settings):
    with pytest.raises(DajaxError):
        do(images, tmp_path / "out", **settings)
    assert not outputs(tmp_path)


def test_a_format_whose_library_is_missing_writes_nothing(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[exr\]'"):
        do(images, tmp_path / "out", formats=("npy", "exr"))
    assert not (tmp_path / "out").exists()


def test_output_and_source_apart(images):
    for output in (images, images.parent):
        with pytest.raises(ConfigError, match="is or holds the source folder"):
            do(images, output)
        assert not (output / ".dajax").exists()


def test_output_inside_the_source(tmp_path):
    source = make_images(tmp_path, good=2, bad=0)
    for _ in range(2):
        report = do(source, source / "depth")
        assert report.items == 2


def test_asked_to_stop(images, undisturbed, tmp_path):
    stop = threading.Event()

    class Stopping(PlainEstimator):
        def stream(self, images, **options):
            for place, depth in enumerate(super().stream(images, **options)):
                if place == 3:
                    stop.set()
                yield depth

    report = do(images, tmp_path, Stopping(), stop=stop)
    assert report.interrupted
    assert 3 <= report.done < GOOD
    assert not leftovers(tmp_path)
    do(images, tmp_path)
    assert_same_job(tmp_path, undisturbed)


def test_asked_to_stop_while_no_image_can_be_read(tmp_path):
    source = make_images(tmp_path / "images", good=0, bad=30)
    stop = threading.Event()
    stop.set()
    report = do(source, tmp_path / "out", stop=stop)
    assert (report.interrupted, report.done, report.rejected) == (True, 0, 0)


def test_without_standard_error(images, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    report = run_batch(PlainEstimator(), images, tmp_path, BatchSettings(formats=FORMATS, workers=2))
    assert report.done == GOOD


def test_buckets_are_compiled_while_images_are_read(images, tmp_path):
    estimator = PlainEstimator()
    do(images, tmp_path / "a", estimator, buckets=2)
    assert estimator.compiled == (2, 2)
    without = PlainEstimator()
    do(images, tmp_path / "b", without)
    assert not hasattr(without, "compiled")


def test_an_error_of_the_compilation_shows(images, tmp_path):
    class Broken(PlainEstimator):
        message = "the compiler is broken"

        def compile(self, **options):
            raise RuntimeError(self.message)

    with pytest.raises(RuntimeError, match="the compiler is broken"):
        do(images, tmp_path / "a", Broken(), buckets=2)
    short = Broken()  # a batch that does not fit is halved where it runs
    short.message = "RESOURCE_EXHAUSTED: Out of memory"
    assert do(images, tmp_path / "b", short, buckets=2).done == GOOD
