"""Image files in, depth files out: names that never meet, and images that cannot be done."""

import base64
import json
import os
from pathlib import Path

import cv2
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
from dajax.depth_maps.read_back import read_png16
from dajax.errors import ConfigError, ImageError
from dajax.geometry.cloud import Cloud
from dajax.inference import image_files as files_module
from dajax.inference.image_files import predict_files
from dajax.inference.inputs import ImageInput, find_inputs

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


def written(report, folder) -> list[str]:
    assert not report.rejects
    return [path.relative_to(folder).as_posix() for path in report.written]


def test_outputs_have_the_name_of_their_image_as_far_as_that_tells_them_apart(quick, tmp_path):
    images = [save(tmp_path / "in" / name) for name in ("a.jpg", "a.png", "b.png")]
    report = predict_files(quick, images, tmp_path / "out")
    assert written(report, tmp_path / "out") == ["a.jpg_depth.png", "a.png_depth.png", "b_depth.png"]


def test_paths_below_a_folder_are_kept(quick, tmp_path):
    for name in ("x.png", "attic/x.png", "attic/deep/y.png"):
        save(tmp_path / "in" / name)
    found = find_inputs([tmp_path / "in"], tmp_path / "out").images
    report = predict_files(quick, found, tmp_path / "out")
    expected = {"attic/deep/y_depth.png", "attic/x_depth.png", "x_depth.png"}
    assert set(written(report, tmp_path / "out")) == set(contents(tmp_path / "out")) == expected
    found = find_inputs([str(tmp_path / "in" / "**" / "*.png")], tmp_path / "pattern").images
    assert set(written(predict_files(quick, found, tmp_path / "pattern"), tmp_path / "pattern")) == expected


@pytest.mark.parametrize("second", ["in/x.png", "other/x.jpg"])
def test_outputs_of_another_image_from_an_earlier_run_are_kept(quick, tmp_path, second):
    """Of an image whose name differs in its suffix, or in nothing."""
    first, second = save(tmp_path / "in" / "x.jpg"), save(tmp_path / second, 61)
    out = tmp_path / "out"
    assert written(predict_files(quick, [first], out, raw="npy"), out)[0] == "x_depth.png"
    before = contents(out)
    names = [written(predict_files(quick, [second], out, raw="npy"), out) for _ in range(2)]
    assert names[0] == names[1] == [f"{second.name}_depth{ending}" for ending in (".png", ".npy", ".json")]
    # Together, too, they replace nothing of each other.
    both = written(predict_files(quick, [second, first], out), out)
    assert len(set(both)) == 2
    assert {name: data for name, data in contents(out).items() if name in before} == before


def test_other_files_are_kept(quick, tmp_path):
    path, out = save(tmp_path / "x.png"), tmp_path / "out"
    for name in ("x_depth.npy", "x.png_depth.png"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"mine")
    (name, *_) = written(predict_files(quick, [path], out, raw="npy"), out)
    assert name.startswith("x.png-")
    assert (out / "x_depth.npy").read_bytes() == (out / "x.png_depth.png").read_bytes() == b"mine"


def test_an_image_without_a_free_name_is_left_out(quick, tmp_path):
    """The fourth image of one name, each in a run and a folder of its own."""
    reports = [predict_files(quick, [save(tmp_path / f / "x.png")], tmp_path / "out") for f in "abcd"]
    assert [len(report.written) for report in reports] == [1, 1, 1, 0]
    assert "choose another folder" in reports[3].rejects[0][1]
    assert len(contents(tmp_path / "out")) == 3


def test_images_and_outputs_may_move_together(quick, tmp_path):
    path = save(tmp_path / "before" / "x.png")
    predict_files(quick, [path], path.parent)
    path.parent.rename(tmp_path / "after")
    report = predict_files(quick, [tmp_path / "after" / "x.png"], tmp_path / "after")
    assert written(report, tmp_path / "after") == ["x_depth.png"]


def test_an_identity_takes_the_place_of_the_path(quick, tmp_path):
    for folder in "ab":
        one = ImageInput(save(tmp_path / folder / "stdin"), identity="-")
        assert written(predict_files(quick, [one], tmp_path / "out"), tmp_path / "out") == ["stdin_depth.png"]


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


def found_files(*arguments, **options):
    return [one.source for one in find_inputs(*arguments, **options).images]


def test_depth_maps_of_an_earlier_run_are_not_read_again(quick, tmp_path):
    expected = [save(tmp_path / "a.png"), save(tmp_path / "x" / "b.png")]
    for raw in ("npy", "png16"):
        found = found_files([tmp_path], tmp_path)
        assert found == expected
        assert not predict_files(quick, found, tmp_path, raw=raw).rejects
    assert len(contents(tmp_path)) == 10  # .npy has a .json beside it
    assert found_files([tmp_path], tmp_path) == expected
    assert found_files([str(tmp_path / "**")], tmp_path) == expected


def test_output_inside_the_input_is_not_read(quick, tmp_path):
    expected = [save(tmp_path / "a.png")]
    # Not by their names alone: these images were put there by someone else.
    save(tmp_path / "out" / "b.png")
    assert found_files([tmp_path], tmp_path / "out") == expected
    assert found_files([str(tmp_path / "**" / "*.png")], tmp_path / "out") == expected
    assert found_files([tmp_path, tmp_path / "out" / "b.png"], tmp_path / "out") == [
        *expected,
        tmp_path / "out" / "b.png",
    ]


def test_output_that_holds_the_input(tmp_path, monkeypatch):
    expected = [save(tmp_path / "in" / "a.png")]
    save(tmp_path / "in" / "a_depth.png")
    for output in (tmp_path, tmp_path / "in", tmp_path.parent):
        assert found_files([tmp_path / "in"], output) == expected
        assert found_files([str(tmp_path / "in" / "*.png")], output) == expected
    monkeypatch.chdir(tmp_path)
    for output in (".", "in", ".."):
        assert found_files(["in"], Path(output)) == [Path("in/a.png")]
        assert found_files(["in/*.png"], Path(output)) == [Path("in/a.png")]
    monkeypatch.chdir(tmp_path / "in")
    assert found_files(["*.png"], Path(".")) == [Path("a.png")]


def test_a_file_that_is_named_is_meant(tmp_path):
    path = save(tmp_path / "a_depth.png")
    other = save(tmp_path / "water_depth.jpg")
    assert found_files([path], tmp_path) == [path]
    assert found_files([tmp_path], tmp_path) == [other]
    other.unlink()
    with pytest.raises(ImageError, match="only depth maps of an earlier run"):
        found_files([tmp_path], tmp_path)


def test_each_file_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("a.png")
    assert len(found_files(["a.png", "./a.png", str(tmp_path / "a.png"), ".", "*.png"], Path("out"))) == 1


def test_nothing_to_find(tmp_path):
    with pytest.raises(ImageError, match="no images in this folder"):
        found_files([tmp_path], tmp_path / "out")
    with pytest.raises(ImageError, match="no such file"):
        found_files([tmp_path / "none.jpg"], tmp_path / "out")
    with pytest.raises(ImageError, match="Download"):
        found_files(["https://host/a.jpg"], tmp_path / "out")


# --- URLs ----------------------------------------------------------------------------------------------------------


def test_one_url_may_be_among_the_images(tmp_path):
    path, url = save(tmp_path / "a.png"), "https://host/a.png"
    assert found_files([url, path], tmp_path / "out", allow_urls=True) == [path, url]
    assert found_files([url], tmp_path / "out", allow_urls=True) == [url]
    with pytest.raises(ImageError, match="2 URLs, but only one is read at a time"):
        found_files([url, path, "http://host/b.png"], tmp_path / "out", allow_urls=True)


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
    a, b = (np.asarray(Image.open(tmp_path / "out" / f"{name}_depth.png")) for name in "ab")
    np.testing.assert_array_equal(a, b)


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
    with pytest.raises(ImageError, match="is a file: name another folder"):
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

    def write(path, *rest, **options):
        if path.name == failing:
            raise ImageError(f"{path}: cannot be written (No space left on device)")
        original(path, *rest, **options)

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
    assert report.notes == []
    report = predict_files(quick, [path], tmp_path / "none", cloud=Cloud("ply", known_points=known), raw="npy")
    assert [(path.name, "no focal length" in reason) for path, reason in report.rejects] == [("a.png", True)]
    assert contents(tmp_path / "none") == {}
    with pytest.raises(ConfigError, match="use a metric model"):
        predict_files(quick, [path], tmp_path / "none", cloud=Cloud("ply"))


@pytest.mark.parametrize("raw", ["npy", "png16"])
def test_known_points_make_metres_of_the_depth_file_too(quick, tmp_path, raw):
    """As far as they go; what became of the rest is said. By the formula: 1 / metres = scale * inverse + shift."""
    path = save(tmp_path / "a.png")
    inverse = quick(path).astype(np.float64)
    # The nearest pixel is at 1 metre, and the median one at 100, so that half of all lie beyond 80.
    order = np.argsort(inverse, axis=None)
    places = [np.unravel_index(order[at], inverse.shape) for at in (-1, order.size // 2)]
    known = np.array(
        [[column + 0.5, row + 0.5, metres] for (row, column), metres in zip(places, [1, 100], strict=True)]
    )
    scale = (1 - 1 / 100) / (inverse[places[0]] - inverse[places[1]])
    aligned = 1 + scale * (inverse - inverse[places[0]])
    expected = np.where(aligned > 1 / 80, 1 / np.where(aligned > 0, aligned, 1), 80)
    png_scale = 0.001 if raw == "png16" else None
    cloud = Cloud("ply", field_of_view=60, known_points=known)
    report = predict_files(quick, [path], tmp_path, raw=raw, cloud=cloud, png_scale=png_scale)
    left, nowhere = int((expected >= 80).sum()), int((aligned <= 0).sum())
    said = [f"{left:,} of 4,800 pixels get no point: {nowhere:,} without a finite place, "]
    if raw == "npy":
        np.testing.assert_allclose(np.load(tmp_path / "a_depth.npy"), expected, rtol=1e-3)
        about = json.loads((tmp_path / "a_depth.json").read_text())
    else:
        stored = cv2.imread(str(tmp_path / "a_depth16.png"), cv2.IMREAD_UNCHANGED)
        fits = expected < 65.535
        np.testing.assert_allclose(stored, np.where(fits, 1000 * expected, 0), rtol=1e-3, atol=0.51)
        said.append(
            f"{(~fits).sum():,} of 4,800 values do not fit into the 16-bit PNG, which holds 0.001 to 65.535 metres"
        )
        about = read_png16(tmp_path / "a_depth16.png")[1]
    assert (about["kind"], about["units"]) == ("metric", "metres")
    assert [str(source) for source, _ in report.notes] == [str(path)] * len(said)
    assert all(note.startswith(start) for (_, note), start in zip(report.notes, said, strict=True))
    # The coloured depth map is still what the model gives.
    with Image.open(tmp_path / "a_depth.png") as image:
        assert image.text["dajax.kind"] == "relative"


def test_a_fixed_scale_goes_with_metres_and_png(quick, tmp_path):
    path = save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="this depth has none"):
        predict_files(quick, [path], tmp_path / "out", raw="png16", png_scale=0.001)
    with pytest.raises(ConfigError, match="goes with the raw format png16, got npy"):
        predict_files(quick, [path], tmp_path / "out", raw="npy", png_scale=0.001)
    assert not (tmp_path / "out").exists() or contents(tmp_path / "out") == {}


def test_flat_images(quick, tmp_path):
    """As arrays, three rows of RGB could be three channels."""
    report = predict_files(quick, [save(tmp_path / f"{height}.png", height) for height in (1, 3)], tmp_path / "out")
    assert not report.rejects
    assert [np.asarray(Image.open(path)).shape[:2] for path in report.written] == [(1, 80), (3, 80)]


def test_a_folder_in_the_way_of_an_output(quick, tmp_path):
    (tmp_path / "out" / "a_depth.png").mkdir(parents=True)
    report = predict_files(quick, [save(tmp_path / "a.png"), save(tmp_path / "b.png")], tmp_path / "out")
    assert written(report, tmp_path / "out") == ["a.png_depth.png", "b_depth.png"]


def test_no_image_is_replaced_by_a_depth_map(quick, tmp_path):
    """Also if the image is the depth map of an earlier run."""
    paths = [save(tmp_path / "a.png"), save(tmp_path / "a_depth.png", 61, 80)]
    before = contents(tmp_path)
    assert written(predict_files(quick, paths, tmp_path), tmp_path) == ["a.png_depth.png", "a_depth_depth.png"]
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before
    own = save(tmp_path / "own" / "b.png")
    (made,) = predict_files(quick, [own], own.parent).written
    data = made.read_bytes()
    names = written(predict_files(quick, [own, made], own.parent), own.parent)
    assert names == ["b.png_depth.png", "b_depth_depth.png"]
    assert made.read_bytes() == data


def test_a_second_run_replaces_the_outputs_of_the_first(quick, tmp_path):
    paths = [save(tmp_path / "a.png")]
    predict_files(quick, paths, tmp_path / "out", colormap="gray")
    first = contents(tmp_path / "out")
    (name,) = written(predict_files(quick, paths, tmp_path / "out"), tmp_path / "out")
    assert name == "a_depth.png"
    second = contents(tmp_path / "out")
    assert first.keys() == second.keys()
    assert first != second
