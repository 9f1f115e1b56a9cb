"""Files of points, reread by libraries that did not write them."""

import numpy as np
import plyfile
import pygltflib
import pytest

from dajax.errors import ConfigError, ImageError
from dajax.geometry.camera import Intrinsics
from dajax.geometry.point_files import write_mesh, write_points
from dajax.geometry.points import depth_edges, unproject

CAMERA = Intrinsics(50.0, 50.0, 20.0, 15.0)


def grid():
    depth = np.full((30, 40), 3.0, np.float32) + np.random.default_rng(0).uniform(0, 0.1, (30, 40)).astype(np.float32)
    depth[10:20, 10:20] -= 1.5
    colors = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
    return depth, unproject(depth, CAMERA), colors


def read_ply(path):
    found = plyfile.PlyData.read(path)
    assert not found.text
    vertex = found["vertex"]
    places = np.stack([vertex[axis] for axis in "xyz"], -1)
    colors = np.stack([vertex[name] for name in ("red", "green", "blue")], -1) if "red" in vertex else None
    faces = np.stack(found["face"]["vertex_indices"]) if "face" in found else None
    return places, colors, faces


def read_glb(path):
    found = pygltflib.GLTF2().load(str(path))
    (primitive,) = found.meshes[0].primitives
    blob = found.binary_blob()

    def array(number, dtype, width):
        accessor = found.accessors[number]
        view = found.bufferViews[accessor.bufferView]
        start = (view.byteOffset or 0) + (accessor.byteOffset or 0)
        return np.frombuffer(blob, dtype, accessor.count * width, start).reshape(accessor.count, width)

    places = array(primitive.attributes.POSITION, np.float32, 3)
    colors = (
        array(primitive.attributes.COLOR_0, np.uint8, 4)[:, :3] if primitive.attributes.COLOR_0 is not None else None
    )
    faces = array(primitive.indices, np.uint32, 1).reshape(-1, 3) if primitive.indices is not None else None
    return places, colors, faces


READ = {".ply": (read_ply, np.ones(3)), ".glb": (read_glb, np.array([1, -1, -1]))}


@pytest.mark.parametrize("suffix", READ)
@pytest.mark.parametrize("coloured", [True, False])
def test_points_come_back(tmp_path, suffix, coloured):
    _, points, colors = grid()
    read, axes = READ[suffix]
    assert write_points(tmp_path / f"x{suffix}", points, colors if coloured else None) == 1200
    places, found, faces = read(tmp_path / f"x{suffix}")
    assert places.dtype.itemsize in (4, 8)
    np.testing.assert_allclose(places * axes, points.reshape(-1, 3), rtol=1e-6)
    assert faces is None
    if coloured:
        np.testing.assert_array_equal(found, colors.reshape(-1, 3))


@pytest.mark.parametrize("suffix", READ)
def test_masked_points(tmp_path, suffix):
    _, points, colors = grid()
    points = points.copy()
    points[0, 0] = np.nan
    mask = np.zeros((30, 40), bool)
    mask[:2] = True
    read, axes = READ[suffix]
    assert write_points(tmp_path / f"x{suffix}", points, colors, mask=mask) == 79
    places, found, _ = read(tmp_path / f"x{suffix}")
    np.testing.assert_allclose(places * axes, points[:2].reshape(-1, 3)[1:], rtol=1e-6)
    np.testing.assert_array_equal(found, colors[:2].reshape(-1, 3)[1:])


@pytest.mark.parametrize("suffix", READ)
def test_a_surface_is_cut_at_edges(tmp_path, suffix):
    depth, points, colors = grid()
    read, axes = READ[suffix]
    whole = write_mesh(tmp_path / f"whole{suffix}", points, colors)
    assert whole == (1200, 2 * 29 * 39)
    count, triangles = write_mesh(tmp_path / f"cut{suffix}", points, colors, mask=~depth_edges(depth))
    places, found, faces = read(tmp_path / f"cut{suffix}")
    places = places * axes
    assert (len(places), len(faces)) == (count, triangles)
    assert triangles < whole[1]
    # No triangle reaches from the box to the wall behind it.
    corners = places[faces][..., 2]
    assert (corners.max(1) - corners.min(1)).max() < 0.2
    # Seen from the camera they are counterclockwise: their normals come towards it.
    a, b, c = (places[faces][:, i] for i in range(3))
    assert ((np.cross(b - a, c - a) * a).sum(-1) < 0).all()
    where = {tuple(place): tuple(color) for place, color in zip(places.round(4), found, strict=True)}
    kept = dict(
        zip(
            map(tuple, points.reshape(-1, 3).astype(places.dtype).round(4)),
            map(tuple, colors.reshape(-1, 3)),
            strict=True,
        )
    )
    assert all(kept[place] == color for place, color in where.items())


@pytest.mark.parametrize("write", [write_points, write_mesh])
def test_refused(tmp_path, write):
    _, points, colors = grid()
    with pytest.raises(ConfigError, match=r"\.ply or \.glb"):
        write(tmp_path / "x.obj", points)
    with pytest.raises(ImageError, match="colors must be uint8"):
        write(tmp_path / "x.ply", points, colors[:5])
    with pytest.raises(ImageError, match="mask must be bool"):
        write(tmp_path / "x.ply", points, mask=np.ones((30, 40)))
    with pytest.raises(ImageError, match=r"points must be \[\.\.\., 3\]"):
        write(tmp_path / "x.ply", points[..., :2])
    with pytest.raises(ImageError, match="no point is left"):
        write(tmp_path / "x.ply", np.full_like(points, np.nan))
    with pytest.raises(ImageError, match="cannot be written"):
        write(tmp_path / "nowhere" / "x.ply", points)
    assert not list(tmp_path.iterdir())


def test_surfaces_need_neighbours(tmp_path):
    _, points, _ = grid()
    with pytest.raises(ImageError, match="grid of points"):
        write_mesh(tmp_path / "x.ply", points.reshape(-1, 3))
    mask = np.zeros((30, 40), bool)
    mask[::2, ::2] = True
    with pytest.raises(ImageError, match="no four neighbouring points"):
        write_mesh(tmp_path / "x.ply", points, mask=mask)


def test_without_trimesh(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[points\]'"):
        write_points(tmp_path / "x.ply", grid()[1])
