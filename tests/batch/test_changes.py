"""Inputs that change, folders that cannot be listed, and what tells good depth maps from bad ones."""

import errno
import json
import os
import tarfile
import time

import fsspec
import numpy as np
import pytest
from batch_jobs import PlainEstimator, do, make_images, outputs, rows
from PIL import Image
from tiny import tiny_config, tiny_metric_config

import dajax
from dajax.batch.job import JOB
from dajax.batch.job_plan import plan_batch
from dajax.batch.job_settings import BatchSettings
from dajax.batch.manifest import Manifest, read_manifest, read_rejects
from dajax.batch.stamps import stamp_of, stamp_of_info
from dajax.batch.storage_kinds import open_storage
from dajax.batch.verification import verify
from dajax.checkpoints import licence_of
from dajax.errors import JobError
from dajax.inference.confidence import flip_disagreement
from dajax.weights.random import random_params

# --- inputs that change ----------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    return make_images(tmp_path / "images", good=4, bad=1)


def change(path, level=7):
    """Write another image, of which size and modification time are not those of the old one."""
    Image.new("RGB", (61, 40), (level, level, level)).save(path)
    os.utime(path, ns=(0, time.time_ns() + 10**9))


def test_the_manifest_has_size_and_time_of_every_input(source, tmp_path):
    do(source, tmp_path / "out")
    for key, row in read_manifest(tmp_path / "out").items():
        about = (source / key).stat()
        assert row.stamp == f"size={about.st_size} mtime_ns={about.st_mtime_ns}"
    assert {row.status for row in rows(tmp_path / "out")} == {"done", "rejected"}


def test_changes_are_seen_when_asked_for_and_remade_when_asked_for(source, tmp_path):
    output = tmp_path / "out"
    do(source, output)
    before = outputs(output)
    change(source / "set0" / "image 0.jpg")
    assert do(source, output).changed == 0  # a listing of a local folder does not say it
    report = do(source, output, check_inputs=True)
    assert (report.changed, report.done, report.earlier) == (1, 0, 5)
    assert plan_batch(source, output, BatchSettings(check_inputs=True)).changed.tolist() == [True] + [False] * 4
    assert outputs(output) == before
    report = do(source, output, check_inputs=True, remake_changed=True)
    assert (report.changed, report.done, report.earlier) == (0, 1, 4)
    after = outputs(output)
    assert {name for name in after if after[name] != before[name]} == {
        "set0/image 0_depth.npy",
        "set0/image 0_depth.png",
    }
    do(source, tmp_path / "fresh")
    assert after == outputs(tmp_path / "fresh")
    assert rows(output) == rows(tmp_path / "fresh")
    assert do(source, output, check_inputs=True).changed == 0
    assert (verify(output).whole, verify(output).lost) == (4, {})


def test_a_remake_that_is_killed_goes_on_by_itself(source, tmp_path):
    """Otherwise an old row might stand for a new output. The tests of faults do it at any step."""

    class Died(BaseException):
        pass

    class Dying(PlainEstimator):
        def stream(self, images, **options):
            yield next(super().stream(images, **options))
            raise Died

    do(source, tmp_path / "out")
    for name in ("set0/image 0.jpg", "set2/image 2.jpg"):
        change(source / name)
    with pytest.raises(Died):
        do(source, tmp_path / "out", Dying(), check_inputs=True, remake_changed=True)
    assert do(source, tmp_path / "out").done == 2
    do(source, tmp_path / "fresh")
    assert outputs(tmp_path / "out") == outputs(tmp_path / "fresh")
    assert rows(tmp_path / "out") == rows(tmp_path / "fresh")


@pytest.mark.parametrize("what", ["time", "size"])
def test_size_and_time_both_count(source, tmp_path, what):
    do(source, tmp_path / "out")
    path = source / "set1" / "image 1.png"
    before = path.stat()
    if what == "size":
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert do(source, tmp_path / "out", check_inputs=True).changed == 1


def test_a_reject_whose_file_was_mended(source, tmp_path):
    do(source, tmp_path / "out")
    change(source / "set1" / "bad 0.jpg")
    assert do(source, tmp_path / "out", check_inputs=True).changed == 1
    assert do(source, tmp_path / "out", check_inputs=True, remake_changed=True).done == 1
    assert not read_rejects(tmp_path / "out")


@pytest.mark.parametrize("cause", ["changed", "lost"])
def test_outputs_of_an_image_that_became_bad_go(source, tmp_path, cause):
    """Otherwise a depth map would lie there of which the manifest says that there is none."""
    output = tmp_path / "out"
    do(source, output)
    (source / "set0" / "image 0.jpg").write_bytes(b"no image any more")
    if cause == "lost":
        (output / "set0" / "image 0_depth.npy").unlink()
        assert len(verify(output).lost) == 1
        do(source, output)
    else:
        do(source, output, check_inputs=True, remake_changed=True)
    assert {row.key for row in read_rejects(output)} == {"set0/image 0.jpg", "set1/bad 0.jpg"}
    assert not list((output / "set0").glob("image 0_depth*"))
    assert (verify(output).whole, verify(output).lost) == (3, {})


def test_an_image_that_is_gone_has_not_changed(source, tmp_path):
    images = sorted(path for path in source.rglob("*.*"))
    (tmp_path / "list.txt").write_text("\n".join(map(str, images)))
    do(tmp_path / "list.txt", tmp_path / "out")
    images[0].unlink()
    assert do(tmp_path / "list.txt", tmp_path / "out", check_inputs=True, remake_changed=True).done == 0


@pytest.mark.parametrize("shard_format", ["tar", "parquet"])
def test_a_changed_image_makes_its_output_shard_anew(source, tmp_path, shard_format):
    settings = {"shards": 2, "shard_format": shard_format, "check_inputs": True}
    do(source, tmp_path / "out", **settings)
    before = outputs(tmp_path / "out")
    change(source / "set0" / "image 0.jpg")
    assert do(source, tmp_path / "out", **settings).changed == 1
    assert do(source, tmp_path / "out", **settings, remake_changed=True).done == 2
    after = outputs(tmp_path / "out")
    assert [name for name in after if after[name] != before[name]] == [f"depth-000000.{shard_format}"]
    do(source, tmp_path / "fresh", **settings)
    assert after == outputs(tmp_path / "fresh")
    assert rows(tmp_path / "out") == rows(tmp_path / "fresh")


def test_listings_of_buckets_say_it_for_nothing(source, tmp_path):
    address = f"file://{source}"
    do(address, tmp_path / "out")
    assert all(row.stamp for row in rows(tmp_path / "out"))
    change(source / "set0" / "image 0.jpg")
    assert do(address, tmp_path / "out").changed == 1
    assert do(address, tmp_path / "out", remake_changed=True).done == 1
    assert do(address, tmp_path / "out").changed == 0


def test_s3_says_etags(s3, source, tmp_path):
    """S3's ETag of an object that was put at once is its MD5 (RFC 1864 names the digest)."""
    import hashlib

    system = fsspec.filesystem("s3")
    data = (source / "set0" / "image 0.jpg").read_bytes()
    system.pipe_file("bucket/changing/a.jpg", data)
    do(f"{s3}/changing", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert row.stamp == f'size={len(data)} etag="{hashlib.md5(data).hexdigest()}"'
    assert stamp_of(f"{s3}/changing/a.jpg") == row.stamp
    system.pipe_file("bucket/changing/a.jpg", (source / "set1" / "image 1.png").read_bytes())
    assert do(f"{s3}/changing", tmp_path / "out").changed == 1


def test_what_tells_changes_on_other_file_systems():
    assert stamp_of_info({"size": 3, "generation": "17", "etag": "x", "updated": "t"}) == "size=3 generation=17"
    assert stamp_of_info({"size": 3, "name": "x"}) == ""
    assert stamp_of("/nothing/here.jpg") == stamp_of("nonsense://a") == stamp_of("a\0b") == ""


def test_images_in_a_tar_change_with_it(source, tmp_path):
    def write(names):
        with tarfile.open(tmp_path / "s.tar", "w") as archive:
            for name in names:
                archive.add(source / name, "a.jpg")

    write(["set0/image 0.jpg"])
    do(tmp_path / "s.tar", tmp_path / "out")
    write(["set1/image 1.png"])
    os.utime(tmp_path / "s.tar", ns=(0, 1))
    assert do(tmp_path / "s.tar", tmp_path / "out").changed == 1
    assert do(tmp_path / "s.tar", tmp_path / "out", remake_changed=True).done == 1


# --- folders that cannot be listed -----------------------------------------------------------------------------------


def locked(monkeypatch, name, number=errno.EACCES):
    real = os.scandir

    def scandir(path):
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("pattern", ["", "/**/*.*"])
def test_an_unreadable_folder_costs_its_own_rows(source, tmp_path, monkeypatch, pattern):
    output, given = tmp_path / "out", f"{source}{pattern}"
    with monkeypatch.context() as patched:
        locked(patched, "set1")
        report = do(given, output)
        assert (report.done, report.rejected) == (3, 1)
        (row,) = read_rejects(output)
        assert (row.key, row.reason) == ("set1/", "the folder cannot be listed (Permission denied)")
        assert do(given, output).earlier == 4
        assert do(given, output, retry_rejects=True).rejected == 1
    report = do(given, output)
    assert (report.done, report.rejected, report.earlier) == (1, 1, 3)
    # The folder itself is no reject any more.
    assert [row.key for row in read_rejects(output)] == ["set1/bad 0.jpg"]
    assert (verify(output).whole, verify(output).lost) == (4, {})
    assert do(given, output).earlier == 5


def test_a_disk_that_does_not_answer_is_no_folders_fault(source, tmp_path, monkeypatch):
    locked(monkeypatch, "set1", errno.ESTALE)
    with pytest.raises(JobError, match="set1': the folder cannot be listed"):
        do(source, tmp_path / "out")


# --- quality and licences --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "end"), [(tiny_config(), None), (tiny_metric_config(), 20.0)])
def test_quality_is_that_of_the_depth_map(source, tmp_path, config, end):
    """Against numpy's own functions, on the files that were written."""
    do(source, tmp_path / "out", PlainEstimator(config=config), formats=("npy",))
    assert end is None or config.max_depth == end
    for row in rows(tmp_path / "out"):
        if row.status == "rejected":
            assert row.quality == {}
            continue
        depth = np.load(tmp_path / "out" / row.output[0]).astype(np.float64)
        high = depth.max() if end is None else end
        expected = {
            "mean": np.mean(depth),
            "spread": np.std(depth),
            "at_low": np.count_nonzero(depth <= high / 1000) / depth.size,
            "at_high": np.count_nonzero(depth >= high * 0.999) / depth.size,
        }
        assert row.quality == pytest.approx(expected, rel=1e-5)


def test_quality_of_maps_that_are_cut_off():
    from dajax.batch.quality import quality

    depth = np.array([[0, 0, 80, 80], [1, 2, 3, 79.99]], np.float32)
    assert quality(depth, 80.0) == {"mean": 30.7487, "spread": 38.1584, "at_low": 0.25, "at_high": 0.375}
    assert quality(depth, 80.0, 0.25)["flip_disagreement"] == 0.25
    nothing = quality(np.zeros((2, 2), np.float32), None)
    assert nothing == {"mean": 0.0, "spread": 0.0, "at_low": 1.0, "at_high": 1.0}


def test_output_shards_say_quality_model_and_licence(source, tmp_path):
    import pyarrow.parquet as pq

    estimator = PlainEstimator()
    estimator.name = "depth-anything/Depth-Anything-V2-Base-hf"
    about = {"model": estimator.name, "licence": "CC-BY-NC-4.0", "kind": "relative"}
    for form in ("tar", "parquet"):
        do(source, tmp_path / form, estimator, shards=10, shard_format=form)
        job = json.loads((tmp_path / form / JOB).read_text())
        assert (job["licence"], job["parameters"]["model"]) == (about["licence"], about["model"])
    kept = {row.key: row for row in rows(tmp_path / "tar") if row.status == "done"}
    with tarfile.open(tmp_path / "tar" / "depth-000000.tar") as archive:
        said = [json.load(archive.extractfile(name)) for name in archive.getnames() if name.endswith(".json")]
    assert {one["key"]: one["quality"] for one in said} == {key: row.quality for key, row in kept.items()}
    assert all(about.items() <= one.items() for one in said)
    table = pq.read_table(tmp_path / "parquet" / "depth-000000.parquet")
    assert about.items() <= {key.decode(): value.decode() for key, value in table.schema.metadata.items()}.items()
    for row in table.to_pylist():
        figures = {name: row[name] for name in ("mean", "spread", "at_low", "at_high")}
        assert (figures, row["flip_disagreement"]) == (kept[row["key"]].quality, None)
    assert verify(tmp_path / "parquet").lost == {}


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("tiny", "Apache-2.0"),
        ("small", "Apache-2.0"),
        ("depth-anything/Depth-Anything-V2-Large", "CC-BY-NC-4.0"),
        ("checkpoints/depth_anything_v2_vitb.pth", "CC-BY-NC-4.0"),
        ("small-metric-indoor", "not stated"),
        ("./my-model", "not known"),
        ("", "not known"),
    ],
)
def test_licences(name, licence):
    assert licence_of(name) == licence


@pytest.mark.parametrize("config", [tiny_config(), pytest.param(tiny_metric_config(), marks=pytest.mark.slow)])
def test_flip_disagreement(source, tmp_path, config):
    """Against the function for notebooks, which mirrors the image itself, before it is resized."""
    estimator = dajax.DepthEstimator((dajax.DepthAnything(config), random_params(config, 0)), input_size=28)
    settings = {"formats": ("npy",), "size": "model", "batch_size": 2}
    do(source, tmp_path / "plain", estimator, **settings)
    do(source, tmp_path / "out", estimator, **settings, flip_disagreement=True)
    # The depth maps are those of a job without it, to the bit.
    assert outputs(tmp_path / "out") == outputs(tmp_path / "plain")
    for row in rows(tmp_path / "out"):
        if row.status == "done":
            _, expected = flip_disagreement(estimator, tmp_path / "images" / row.key)
            assert row.quality["flip_disagreement"] == pytest.approx(float(expected.mean()), rel=0.05)
    assert all("flip_disagreement" not in row.quality for row in rows(tmp_path / "plain"))
    with pytest.raises(JobError, match="flip_disagreement was true and is false"):
        do(source, tmp_path / "out", estimator, **settings)


def test_the_mirror_image_of_a_padded_one_stays_at_its_place():
    from dajax.preprocessing.buckets import ProcessedImage

    pixels = np.zeros((2, 4, 3), np.float32)
    pixels[:2, :3] = np.arange(1, 4)[None, :, None]
    mirrored = ProcessedImage(pixels, (20, 30), (2, 3)).mirrored()
    assert mirrored.pixels[0, :, 0].tolist() == [3, 2, 1, 0]
    assert pixels[0, :, 0].tolist() == [1, 2, 3, 0]


def test_rows_of_folders_are_found_in_the_manifest(source, tmp_path, monkeypatch):
    locked(monkeypatch, "set1")
    do(source, tmp_path / "out")
    assert Manifest(open_storage(tmp_path / "out")).known().unlisted == ["set1/"]
