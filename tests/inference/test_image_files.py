"""Image files in, depth files out: names that never meet, and images that cannot be done."""

import base64
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from seeded import make_image, write_checkpoint
from tiny import tiny_config, tiny_metric_config
from web import answer, serve

import dajax
from dajax.depth_maps import encode
from dajax.depth_maps.colormap import colorize
from dajax.depth_maps.write import read_png16
from dajax.errors import ConfigError, ImageError
from dajax.geometry.cloud import Cloud
from dajax.inference import image_files as files_module
from dajax.inference.image_files import find_inputs, output_names, predict_files, url_as_path

SHAPES = json.loads((Path(__file__).parents[1] / "references" / "data" / "shapes.json").read_text())


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return dajax.DepthEstimator(
        write_checkpoint(folder, tiny_config().to_dict(), SHAPES["tiny"]), input_size=70, batch_size=2
    )


@pytest.fixture
def quick(estimator, monkeypatch):
    """An estimator whose network is a sum: nothing is compiled, and batches change no bit."""
    monkeypatch.setattr(estimator, "predict", lambda pixels: np.asarray(pixels).sum(-1, dtype=np.float32))
    return estimator


def save(path, height=60, width=80) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_image(height, width)).save(path, "PNG")
    return path


def contents(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


# --- names ---------------------------------------------------------------------------------------------------------


def names(*images) -> list[str]:
    return [str(name) for name in output_names([Path(p) for p in images])]


def test_the_stem_where_that_is_enough():
    assert names("a.jpg") == ["a"]
    assert names("x/a.jpg", "y/b.png", "c.d.jpg") == ["a", "b", "c.d"]
    assert names() == []


def test_equal_stems_keep_their_suffix_and_equal_names_their_folder():
    assert names("a.jpg", "a.png", "b.png") == ["a.jpg", "a.png", "b"]
    assert names("x/a.jpg", "y/a.jpg", "b.jpg") == ["x/a.jpg", "y/a.jpg", "b"]
    assert names("p/x/a.jpg", "p/y/z/a.jpg") == ["x/a.jpg", "y/z/a.jpg"]
    # A stem that is another's whole name.
    assert len({*names("a.jpg", "a.png", "a.jpg.png"), "a.jpg"}) == 3


def test_case_and_unicode_forms_are_told_apart():
    composed = unicodedata.normalize("NFC", "é.jpg")
    for images in (
        ("A.jpg", "a.jpg"),
        ("x/a.jpg", "X/a.jpg", "x/A.jpg"),
        (composed, unicodedata.normalize("NFD", composed)),
        (composed, unicodedata.normalize("NFD", composed.upper())),
        ("straße.jpg", "STRASSE.jpg"),
    ):
        found = names(*images)
        folded = {unicodedata.normalize("NFD", name).casefold() for name in found}
        assert len(folded) == len(images), found


def test_many_images_have_as_many_names():
    images = [
        f"{folder}{name}{suffix}"
        for folder in ("", "x/", "x/y/")
        for name in "aAb"
        for suffix in (".jpg", ".JPG", ".png", "")
    ]
    found = names(*images)
    assert len({name.casefold() for name in found}) == len(images)
    assert not any(Path(name).is_absolute() or ".." in Path(name).parts for name in found)


@pytest.mark.parametrize(
    "name",
    [
        "n" * 251 + ".png",
        "é" * 125 + ".png",
        "-rf.png",
        "new\nline.png",
        "\udcff\udcfe.png",
        "\udcff" * 251 + ".png",
        ".png",
        " .png",
    ],
    ids=["long", "long utf-8", "dash", "newline", "not utf-8", "long not utf-8", "hidden", "space"],
)
def test_odd_names_are_written(quick, tmp_path, name):
    path = save(tmp_path / "in" / name)
    report = predict_files(quick, [path], tmp_path / "out", raw="png16")
    assert not report.rejects
    assert len(report.written) == 2
    assert set(report.written) == {tmp_path / "out" / file for file in os.listdir(tmp_path / "out")}
    assert all(len(os.fsencode(written.name)) <= 255 for written in report.written)


def test_long_names_that_differ_at_their_end_only(quick, tmp_path):
    images = [save(tmp_path / "in" / ("n" * 249 + end + ".png")) for end in "ab"]
    report = predict_files(quick, images, tmp_path / "out")
    assert len(set(report.written)) == len(os.listdir(tmp_path / "out")) == 2


# --- which images ------------------------------------------------------------------------------------------------


def test_maps_of_a_former_run_are_not_read_again(quick, tmp_path):
    expected = [save(tmp_path / "a.png"), save(tmp_path / "x" / "b.png")]
    for raw in ("npy", "png16"):
        found = find_inputs([tmp_path], tmp_path)
        assert found == expected
        assert not predict_files(quick, found, tmp_path, raw=raw).rejects
    assert len(contents(tmp_path)) == 10  # .npy has a .json beside it
    assert find_inputs([tmp_path], tmp_path) == expected
    assert find_inputs([str(tmp_path / "**")], tmp_path) == expected


def test_output_inside_the_input_is_not_read(quick, tmp_path):
    expected = [save(tmp_path / "a.png")]
    # Not by their names alone: these images were put there by someone else.
    save(tmp_path / "out" / "b.png")
    assert find_inputs([tmp_path], tmp_path / "out") == expected
    assert find_inputs([str(tmp_path / "**" / "*.png")], tmp_path / "out") == expected
    assert find_inputs([tmp_path, tmp_path / "out" / "b.png"], tmp_path / "out") == [
        *expected,
        tmp_path / "out" / "b.png",
    ]


def test_output_that_holds_the_input(tmp_path, monkeypatch):
    expected = [save(tmp_path / "in" / "a.png")]
    save(tmp_path / "in" / "a_depth.png")
    for output in (tmp_path, tmp_path / "in", tmp_path.parent):
        assert find_inputs([tmp_path / "in"], output) == expected
        assert find_inputs([str(tmp_path / "in" / "*.png")], output) == expected
    monkeypatch.chdir(tmp_path)
    for output in (".", "in", ".."):
        assert find_inputs(["in"], Path(output)) == [Path("in/a.png")]
        assert find_inputs(["in/*.png"], Path(output)) == [Path("in/a.png")]
    monkeypatch.chdir(tmp_path / "in")
    assert find_inputs(["*.png"], Path(".")) == [Path("a.png")]


def test_a_file_that_is_named_is_meant(tmp_path):
    path = save(tmp_path / "a_depth.png")
    other = save(tmp_path / "water_depth.jpg")
    assert find_inputs([path], tmp_path) == [path]
    assert find_inputs([tmp_path], tmp_path) == [other]
    other.unlink()
    with pytest.raises(ImageError, match="nothing but depth maps"):
        find_inputs([tmp_path], tmp_path)


def test_each_file_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("a.png")
    assert len(find_inputs(["a.png", "./a.png", str(tmp_path / "a.png"), ".", "*.png"], Path("out"))) == 1


def test_nothing_to_find(tmp_path):
    with pytest.raises(ImageError, match="no images in this folder"):
        find_inputs([tmp_path], tmp_path / "out")
    with pytest.raises(ImageError, match="no such file"):
        find_inputs([tmp_path / "none.jpg"], tmp_path / "out")
    with pytest.raises(ImageError, match="Download"):
        find_inputs(["https://host/a.jpg"], tmp_path / "out")


# --- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://host/x/room.jpg?key=1#end", "host/room.jpg"),
        ("https://user:pass@Host:8/room", "host/room"),
        ("https://host", "host/image"),
        ("https://host/x/", "host/image"),
        ("https://host/..", "host/image"),
        ("https://host/.bashrc", "host/bashrc"),
        ("https://host/a%2F..%2F..%2Fetc%2Fpasswd", "host/passwd"),
        ("https://host/a%5C..%5Cb.jpg", "host/b.jpg"),
        ("https://host/a%00%0A%1B[2Jb%3A%22c.jpg", "host/a___[2Jb__c.jpg"),
        ("https://host/%FF%C3%A9.jpg", "host/\ufffdé.jpg"),
        ("https://../a.jpg", "host/a.jpg"),
        ("https://[::1]/a.jpg", "__1/a.jpg"),
        ("https://[1:2/a.jpg", "host/image"),
    ],
)
def test_maps_of_urls_are_named_after_the_end_of_their_path(url, path):
    assert str(url_as_path(url)) == path


def test_urls_and_files_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = url_as_path("https://host/room.jpg")
    assert names(url, "attic.jpg") == ["room", "attic"]
    assert names(url, "room.jpg") == ["host/room.jpg", "room.jpg"]
    assert len({*names(url, "host/room.jpg", "HOST/ROOM.JPG", "room.jpg")}) == 4


def test_one_url_may_be_among_the_images(tmp_path):
    path, url = save(tmp_path / "a.png"), "https://host/a.png"
    assert find_inputs([url, path], tmp_path / "out", allow_urls=True) == [path, url]
    assert find_inputs([url], tmp_path / "out", allow_urls=True) == [url]
    with pytest.raises(ImageError, match="2 URLs; one is read at a time"):
        find_inputs([url, path, "http://host/b.png"], tmp_path / "out", allow_urls=True)


def test_urls_are_downloaded_where_that_is_allowed(quick, tmp_path):
    path = save(tmp_path / "in" / "a.png")
    with serve({"/b.png": answer(path.read_bytes())}) as site:
        url, missing = f"{site.url}/b.png", f"{site.url}/c.png"
        report = predict_files(quick, [path, url], tmp_path / "out")
        assert [(image, "allow_urls" in reason) for image, reason in report.rejects] == [(url, True)]
        assert not site.requests
        done = []
        report = predict_files(quick, [path, url, missing], tmp_path / "out", allow_urls=True, on_done=done.append)
    assert [(image, "404" in reason) for image, reason in report.rejects] == [(missing, True)]
    assert sorted(map(str, done)) == sorted([str(path), url, missing])
    maps = contents(tmp_path / "out")
    assert maps.keys() == {"a_depth.png", "b_depth.png"}
    assert len({*maps.values()}) == 1


def test_base64_is_for_pipelines(quick, tmp_path):
    text = base64.b64encode(save(tmp_path / "a.png").read_bytes()).decode()
    report = predict_files(quick, [text[:200]], tmp_path / "out")
    assert "base64" not in report.rejects[0][1]


# --- what is written -----------------------------------------------------------------------------------------------


def test_files_have_what_the_estimator_gives(estimator, tmp_path):
    images = [save(tmp_path / "a.png"), save(tmp_path / "b.png", 61, 80)]
    depths = estimator([make_image(60, 80), make_image(61, 80)])
    done = []
    report = predict_files(estimator, images, tmp_path / "new" / "out", raw="npy", on_done=done.append)
    out = tmp_path / "new" / "out"
    assert done == images
    assert not report.rejects
    assert report.written == [out / f"{name}_depth.{kind}" for name in "ab" for kind in ("png", "npy", "json")]
    for name, depth in zip("ab", depths, strict=True):
        values = np.load(out / f"{name}_depth.npy")
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, depth)
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{name}_depth.png")), colorize(depth, "Spectral_r"))

    report = predict_files(estimator, images, out, raw="png16", colormap="gray", model="tiny")
    assert report.written == [out / f"{name}_depth{kind}" for name in "ab" for kind in (".png", "16.png")]
    for name, depth in zip("ab", depths, strict=True):
        values, entries = read_png16(out / f"{name}_depth16.png")
        assert np.abs(values - depth).max() <= entries["scale"] * 0.51
        assert (entries["kind"], entries["model"]) == ("relative", "tiny")
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{name}_depth.png")), colorize(depth, "gray"))


def test_near_has_the_maps_upper_end_for_metres_too(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model", tiny_metric_config().to_dict(), SHAPES["tiny-metric"])
    estimator = dajax.DepthEstimator(checkpoint, input_size=70)
    predict_files(estimator, [save(tmp_path / "a.png")], tmp_path / "out", raw="png16", colormap="gray")
    depth, entries = read_png16(tmp_path / "out" / "a_depth16.png")
    assert (entries["kind"], entries["units"]) == ("metric", "metres")
    assert 0 < depth.min() < depth.max() < 20
    levels = np.asarray(Image.open(tmp_path / "out" / "a_depth.png"))[:, :, 0]
    assert levels[np.unravel_index(depth.argmin(), depth.shape)] == 255
    assert levels[np.unravel_index(depth.argmax(), depth.shape)] == 0


def test_nothing_to_do(quick, tmp_path):
    report = predict_files(quick, [], tmp_path / "out")
    assert (report.written, report.rejects) == ([], [])


def test_bad_options_are_refused_before_anything_is_read(quick, tmp_path):
    path = save(tmp_path / "a.png")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match="colour map 'foo'"):
        predict_files(quick, [path], tmp_path / "out", colormap="foo")
    with pytest.raises(ImageError, match="output folder cannot be made"):
        predict_files(quick, [path], tmp_path / "file")
    with pytest.raises((ConfigError, TypeError), match="raw"):
        predict_files(quick, [path], tmp_path / "out", raw="jpg")


# --- what cannot be done -------------------------------------------------------------------------------------------


def test_bad_images_are_reported_and_change_nothing_else(quick, tmp_path):
    good = [
        save(tmp_path / "in" / f"{name}.png", *size)
        for name, size in {"a": (60, 80), "c": (60, 80), "e": (80, 60)}.items()
    ]
    predict_files(quick, good, tmp_path / "clean", raw="npy")
    bad = {
        "b.jpg": (b"no image", "not an image"),
        "cut.png": (good[0].read_bytes()[:2000], "damaged|truncated"),
        "empty.png": (b"", "empty"),
        "vanished.png": (None, "No such file"),
    }
    for name, (data, _) in bad.items():
        if data is not None:
            (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in" / "folder.png").mkdir()
    paths = sorted([*good, *(tmp_path / "in" / name for name in [*bad, "folder.png"])])
    done = []
    report = predict_files(quick, paths, tmp_path / "out", raw="npy", on_done=done.append)
    assert sorted(done) == paths
    reasons = {path.name: reason for path, reason in report.rejects}
    assert set(reasons) == {*bad, "folder.png"}
    for name, (_, message) in bad.items():
        assert any(part in reasons[name] for part in message.split("|")), reasons[name]
        assert name in reasons[name]
    assert "folder" in reasons["folder.png"]
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_too_many_patches(estimator, monkeypatch, tmp_path):
    official = dajax.DepthImageProcessor("official", 70)
    monkeypatch.setattr(estimator, "processor", official)
    monkeypatch.setattr(estimator, "predict", lambda pixels: np.asarray(pixels).sum(-1, dtype=np.float32))
    paths = [save(tmp_path / "a.png"), save(tmp_path / "long.png", 1, 20_000), save(tmp_path / "b.png")]
    report = predict_files(estimator, paths, tmp_path / "out")
    assert [path.name for path, _ in report.rejects] == ["long.png"]
    assert "patches" in report.rejects[0][1]
    assert [path.name for path in report.written] == ["a_depth.png", "b_depth.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything: run the tests as another user")
def test_no_permission_to_read(quick, tmp_path):
    paths = [save(tmp_path / "a.png"), save(tmp_path / "b.png")]
    paths[0].chmod(0)
    report = predict_files(quick, paths, tmp_path / "out")
    assert [(path.name, "ermission" in reason) for path, reason in report.rejects] == [("a.png", True)]


def test_depth_that_is_not_finite_is_not_written(quick, monkeypatch, tmp_path):
    def predict(pixels):
        depth = np.asarray(pixels).sum(-1, dtype=np.float32)
        depth[0] = np.nan
        return depth

    monkeypatch.setattr(quick, "predict", predict)
    paths = [save(tmp_path / f"{name}.png") for name in "ab"]
    report = predict_files(quick, paths, tmp_path / "out", raw="npy")
    assert [(path.name, "finite" in reason) for path, reason in report.rejects] == [("a.png", True)]
    assert set(contents(tmp_path / "out")) == {"b_depth.png", "b_depth.npy", "b_depth.json"}


@pytest.mark.parametrize("failing", ["a_depth.png", "a_depth.npy"])
def test_a_failed_write_leaves_nothing_of_its_image(quick, monkeypatch, tmp_path, failing):
    original = files_module.write_atomically

    def write(path, *rest):
        if path.name == failing:
            raise ImageError(f"{path}: cannot be written (No space left on device)")
        original(path, *rest)

    monkeypatch.setattr(files_module, "write_atomically", write)
    paths = [save(tmp_path / f"{name}.png") for name in "ab"]
    report = predict_files(quick, paths, tmp_path / "out", raw="npy")
    assert [(path.name, "No space" in reason) for path, reason in report.rejects] == [("a.png", True)]
    assert [path.name for path in report.written] == ["b_depth.png", "b_depth.npy", "b_depth.json"]
    assert set(contents(tmp_path / "out")) == {"b_depth.png", "b_depth.npy", "b_depth.json"}


def test_an_encoder_that_fails_leaves_no_temporary_file(quick, monkeypatch, tmp_path):
    def broken(self, stream, *rest, **options):
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    paths = [save(tmp_path / "a.png")]
    monkeypatch.setattr(Image.Image, "save", broken)
    report = predict_files(quick, paths, tmp_path / "out", raw="npy")
    assert "No space" in report.rejects[0][1]
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("raw", ["npy", "npz", "png16", "tiff", "pfm", "exr"])
def test_every_format(quick, tmp_path, raw):
    report = predict_files(quick, [save(tmp_path / "a.png")], tmp_path / "out", raw=raw, model="some")
    beside = ["a_depth.json"] if raw in ("npy", "pfm") else []
    assert [path.name for path in report.written] == ["a_depth.png", f"a{encode.ENDINGS[raw]}", *beside]
    assert all(path.stat().st_size for path in report.written)
    if beside:
        about = json.loads((tmp_path / "out" / "a_depth.json").read_text())
        assert (about.pop("version"), about) == (
            encode.described("relative", "")["version"],
            {
                "kind": "relative",
                "units": "affine-invariant inverse depth (bigger is nearer)",
                "model": "some",
                "style": "huggingface",
                "shape": [60, 80],
            },
        )


def test_side_by_side(quick, tmp_path):
    path = save(tmp_path / "a.png")
    (written,) = predict_files(quick, [path], tmp_path / "out", side_by_side=True).written
    with Image.open(written) as image:
        both = np.asarray(image)
        assert image.text["dajax.kind"] == "relative"
    np.testing.assert_array_equal(both[:, :80], make_image(60, 80))
    np.testing.assert_array_equal(both[:, -80:], colorize(quick(path)))


def test_points(quick, tmp_path):
    """Of relative depth by known points; an image whose EXIF data says nothing is left out."""
    path = save(tmp_path / "a.png")
    inverse = quick(path)
    places = [np.unravel_index(at, inverse.shape) for at in (inverse.argmax(), inverse.argmin())]
    known = np.array([[column + 0.5, row + 0.5, metres] for (row, column), metres in zip(places, [1, 4], strict=True)])
    report = predict_files(quick, [path], tmp_path / "out", cloud=Cloud("ply", field_of_view=60, known_points=known))
    assert [path.name for path in report.written] == ["a_depth.png", "a_points.ply"]
    thing = trimesh.load(tmp_path / "out" / "a_points.ply")
    assert len(thing.vertices) == 60 * 80
    assert thing.vertices[:, 2].min() == pytest.approx(1, rel=1e-4)
    report = predict_files(quick, [path], tmp_path / "none", cloud=Cloud("ply", known_points=known), raw="npy")
    assert [(path.name, "no focal length" in reason) for path, reason in report.rejects] == [("a.png", True)]
    assert contents(tmp_path / "none") == {}
    with pytest.raises(ConfigError, match="use a metric model"):
        predict_files(quick, [path], tmp_path / "none", cloud=Cloud("ply"))


def test_flat_images(quick, tmp_path):
    """As arrays, three rows of RGB could be three channels."""
    report = predict_files(quick, [save(tmp_path / f"{height}.png", height) for height in (1, 3)], tmp_path / "out")
    assert not report.rejects
    assert [np.asarray(Image.open(path)).shape[:2] for path in report.written] == [(1, 80), (3, 80)]


def test_a_folder_in_the_way_of_a_map(quick, tmp_path):
    (tmp_path / "out" / "a_depth.png").mkdir(parents=True)
    report = predict_files(quick, [save(tmp_path / "a.png"), save(tmp_path / "b.png")], tmp_path / "out")
    assert [path.name for path, _ in report.rejects] == ["a.png"]
    assert set(contents(tmp_path / "out")) == {"b_depth.png"}


def test_no_image_is_replaced_by_a_map(quick, tmp_path):
    paths = [save(tmp_path / "a.png"), save(tmp_path / "a_depth.png", 61, 80)]
    before = contents(tmp_path)
    report = predict_files(quick, paths, tmp_path)
    assert [(path.name, "replace" in reason) for path, reason in report.rejects] == [("a.png", True)]
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before
    assert [path.name for path in report.written] == ["a_depth_depth.png"]


def test_a_second_run_replaces_the_maps_of_the_first(quick, tmp_path):
    paths = [save(tmp_path / "a.png")]
    predict_files(quick, paths, tmp_path / "out", colormap="gray")
    first = contents(tmp_path / "out")
    predict_files(quick, paths, tmp_path / "out")
    second = contents(tmp_path / "out")
    assert first.keys() == second.keys()
    assert first != second
