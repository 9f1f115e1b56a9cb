"""What `--points` does: cameras, metres, and what cannot become points."""

import numpy as np
import plyfile
import pytest
import trimesh
from PIL import Image

from dajax.errors import ConfigError, ImageError
from dajax.geometry.camera import Intrinsics
from dajax.geometry.cloud import Cloud, read_known_points
from dajax.geometry.point_files import CLOUD_ENDINGS
from dajax.geometry.points import unproject
from dajax.geometry.scale import fit_scale_and_shift

METRES = np.random.default_rng(0).uniform(2, 2.2, (30, 40)).astype(np.float32)
METRES[10:20, 10:20] -= 1
IMAGE = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
CAMERA = Intrinsics.of_field_of_view((30, 40), 60)


def write(cloud, path, depth, kind="metric", **more):
    metres = cloud.metres(depth, kind=kind)
    cloud.write(path, IMAGE, metres, **more)
    return metres


def opened(path):
    """What trimesh reads: of a GLB a scene with one thing in it."""
    found = trimesh.load(path)
    return next(iter(found.geometry.values())) if hasattr(found, "geometry") else found


@pytest.mark.parametrize("form", CLOUD_ENDINGS)
def test_metric(tmp_path, form):
    path = tmp_path / f"a{CLOUD_ENDINGS[form]}"
    write(Cloud(form, field_of_view=60), path, METRES)
    thing = opened(path)
    axes = [1, 1, 1] if form == "ply" else [1, -1, -1]
    expected = (unproject(METRES, CAMERA) * axes).reshape(-1, 3)
    if form == "mesh":
        # Cut around the near square, whose own border is left out, too.
        assert {round(-z) for z in thing.vertices[:, 2]} == {1, 2}
        lengths = np.abs(thing.vertices[thing.edges][:, 0, 2] - thing.vertices[thing.edges][:, 1, 2])
        assert lengths.max() < 0.3
    else:
        np.testing.assert_allclose(thing.vertices, expected, rtol=1e-6)
        if form == "ply":  # colours of GLB: tests/geometry/test_point_files.py
            np.testing.assert_array_equal(thing.colors[:, :3], IMAGE.reshape(-1, 3))


def test_what_has_no_place_is_left_out(tmp_path):
    depth = METRES.copy()
    depth[0, :3] = [0, -1, 1e-30]
    write(Cloud("ply", focal_length=40), tmp_path / "a.ply", depth)
    thing = opened(tmp_path / "a.ply")
    assert len(thing.vertices) == 30 * 40 - 2


def test_relative_by_known_points(tmp_path):
    inverse = (5 / METRES - 0.3).astype(np.float32)
    rows, columns = np.array([12, 3, 25, 8, 15, 2]), np.array([12, 5, 30, 20, 15, 38])
    known = np.stack([columns + 0.5, rows + 0.5, METRES[rows, columns]], -1)
    known[-1, 2] *= 3  # one of six is wrong
    cloud = Cloud("ply", field_of_view=60, known_points=known)
    cloud.check("relative", images=1)
    metres = write(cloud, tmp_path / "a.ply", inverse, kind="relative")
    np.testing.assert_allclose(metres.values, METRES, rtol=1e-5)
    (note,) = metres.notes
    assert note == (
        "5 of 6 known points agree with the metres of the depth map within 5%; the others have no part in them"
    )
    thing = opened(tmp_path / "a.ply")
    np.testing.assert_allclose(thing.vertices, unproject(METRES, CAMERA).reshape(-1, 3), rtol=1e-4)


def test_few_known_points_that_contradict_each_other():
    """Two points always fit; of three of which one is wrong, which one cannot be known."""
    inverse = (5 / METRES - 0.3).astype(np.float32)
    rows, columns = np.array([12, 3, 25]), np.array([12, 5, 30])
    known = np.stack([columns + 0.5, rows + 0.5, METRES[rows, columns]], -1)
    cloud = Cloud("ply", field_of_view=60, known_points=known)
    assert cloud.metres(inverse, kind="relative").notes == ()
    known[1, 2] *= 1.3  # two that are beside each other in the depth map
    (note,) = Cloud("ply", field_of_view=60, known_points=known).metres(inverse, kind="relative").notes
    assert note.endswith(
        "of 3 known points agree with the metres of the depth map within 5%; the others make all metres doubtful"
    )


@pytest.mark.parametrize(("max_depth", "farthest"), [(None, 80), (3.0, 3)])
def test_what_lies_beyond_is_counted(tmp_path, max_depth, farthest):
    """Known points of 2 and 4 metres at inverse depths of 2 and 1: metres = 4 / inverse, and none at 0 or below."""
    inverse = np.ones((30, 40), np.float32)
    inverse[0, 0], inverse[1], inverse[2, :7], inverse[3, :5] = 2, -1, 0, 0.01
    known = np.array([[0.5, 0.5, 2], [20.5, 20.5, 4]])
    cloud = Cloud("ply", field_of_view=60, known_points=known, max_depth=max_depth)
    if farthest == 3:
        inverse[10:12] = 2
    metres = write(cloud, tmp_path / "a.ply", inverse, kind="relative")
    expected = np.where(inverse > 4 / farthest, 4 / np.where(inverse > 0, inverse, 1), farthest)
    np.testing.assert_allclose(metres.values, expected, rtol=1e-6)
    near = int((expected < farthest).sum())
    far = 1200 - near - 47
    (note,) = metres.notes
    assert note == (
        f"{47 + far:,} of 1,200 pixels get no point: 47 without a finite place, {far:,} with one beyond {farthest} "
        f"metres (max_depth); depth files have {farthest} there"
    )
    points = plyfile.PlyData.read(tmp_path / "a.ply")["vertex"]
    assert (len(points), points["z"].max()) == (near, pytest.approx(4 if farthest == 80 else 2))
    # As in Python.
    fit = fit_scale_and_shift(inverse, known[:, :2], known[:, 2])
    np.testing.assert_allclose(fit.metres(inverse, max_depth=farthest), metres.values, rtol=1e-5)


def test_metric_depth_has_a_bound_only_where_one_is_given(tmp_path):
    depth = METRES.copy()
    depth[0, :3] = [0, -1, 1000]
    metres = Cloud("ply", field_of_view=60).metres(depth, kind="metric")
    np.testing.assert_array_equal(metres.values, depth)
    assert metres.notes == ("2 of 1,200 pixels get no point: 2 without a finite place",)
    metres = Cloud("ply", field_of_view=60, max_depth=100).metres(depth, kind="metric")
    assert metres.notes == (
        "3 of 1,200 pixels get no point: 2 without a finite place, 1 with one beyond 100 metres (max_depth)",
    )
    assert Cloud("ply", field_of_view=60).metres(METRES, kind="metric").notes == ()


def test_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"metric model \(small-metric-indoor.*two points or more"):
        write(Cloud("ply"), tmp_path / "a.ply", METRES, kind="relative")
    points = np.array([[1, 1, 1.0], [2, 2, 2]])
    with pytest.raises(ConfigError, match="belong to one image, and there are 2"):
        Cloud("ply", known_points=points).check("relative", images=2)
    with pytest.raises(ConfigError, match="gives metres already"):
        Cloud("ply", known_points=points).check("metric", images=1)
    with pytest.raises(ConfigError, match="give one of them"):
        Cloud("ply", field_of_view=60, focal_length=40)
    wrong = [{"field_of_view": 180}, {"field_of_view": 0}, {"focal_length": 0}, {"focal_length": -3}]
    wrong += [{"max_depth": value} for value in (0, -1, float("nan"), float("inf"))]
    for options in wrong:
        with pytest.raises(ConfigError, match="must be"):
            Cloud("ply", **options)
    with pytest.raises(ConfigError, match="ply, glb, mesh"):
        Cloud("obj")
    with pytest.raises(ImageError, match="no point is left"):
        write(Cloud("ply", focal_length=40), tmp_path / "a.ply", -METRES)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png.*no focal length"):
        write(Cloud("ply"), tmp_path / "a.ply", METRES, image_path=tmp_path / "a.png")
    assert not list(tmp_path.glob("*.ply"))


def test_the_camera_of_the_image(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 26  # FocalLengthIn35mmFilm
    Image.fromarray(IMAGE).save(tmp_path / "a.jpg", exif=exif)
    assert Cloud("ply").camera(tmp_path / "a.jpg", (30, 40)) == Intrinsics.of_exif(tmp_path / "a.jpg")


def test_known_points(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("\ufeffcolumn,row,metres,name\n3.5,4,1.25,door\n7,8,2e0,wall\n", encoding="utf-8")
    np.testing.assert_array_equal(read_known_points(path), [[3.5, 4, 1.25], [7, 8, 2]])
    for separator in ";\t":
        path.write_text("column,row,metres\n3.5,4,1.25\n7,8,2\n".replace(",", separator))
        np.testing.assert_array_equal(read_known_points(path), [[3.5, 4, 1.25], [7, 8, 2]])
    for text, message in {
        "column,row\n1,2\n": "lacks the columns metres; expected the columns column, row, metres",
        "column,row,metres\n1,2,3\n": "at least two points are needed, got 1",
        "": "at least two points are needed, got 0",
        "column,row,metres\n1,2,3\n1,2,far\n": "point 2: could not convert",
        "column,row,metres\n1,2\n": "point 1: has fewer columns",
        "column,row,metres\n1,2,nan\n": "not all finite",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_known_points(path)
    with pytest.raises(ConfigError, match=r"nothing\.csv.*No such file"):
        read_known_points(tmp_path / "nothing.csv")
