"""Files of points, reread by libraries that did not write them."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import plyfile
import pygltflib
import pytest
import trimesh

from dajax.errors import ConfigError, ImageError
from dajax.geometry import point_files
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


def srgb(linear):
    """What a viewer shows of a linear colour, by IEC 61966-2-1."""
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * curve).astype(np.uint8)


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
    colors = None
    if primitive.attributes.COLOR_0 is not None:
        linear = array(primitive.attributes.COLOR_0, np.uint16, 4) / 65535
        assert (linear[:, 3] == 1).all()
        colors = srgb(linear[:, :3])
    faces = array(primitive.indices, np.uint32, 1).reshape(-1, 3) if primitive.indices is not None else None
    return places, colors, faces


READ = {".ply": (read_ply, np.ones(3)), ".glb": (read_glb, np.array([1, -1, -1]))}


def test_every_format_has_another_reader():
    assert {Path(ending).suffix for ending in point_files.CLOUD_ENDINGS.values()} == set(READ)


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


def test_colours_of_glb_are_linear(tmp_path):
    """Grey 128 is 0.2158605 of white, and every byte comes back."""
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    write_points(tmp_path / "x.glb", np.ones((256, 3)), grey)
    found = pygltflib.GLTF2().load(str(tmp_path / "x.glb"))
    accessor = found.accessors[found.meshes[0].primitives[0].attributes.COLOR_0]
    assert (accessor.componentType, accessor.normalized, accessor.type) == (pygltflib.UNSIGNED_SHORT, True, "VEC4")
    linear = np.frombuffer(found.binary_blob(), np.uint16, 1024, 256 * 12).reshape(-1, 4) / 65535
    assert linear[128, 0] == pytest.approx(0.2158605, abs=1e-5)
    np.testing.assert_array_equal(srgb(linear[:, :3]), grey)


@pytest.mark.parametrize("write", [write_points, write_mesh])
@pytest.mark.parametrize("coloured", [True, False])
def test_glb_has_a_material_and_what_the_standard_asks_for(tmp_path, write, coloured):
    """Alignment, padding, lengths, and the bounds of the places (glTF 2.0, sections 3.6, 3.7 and 4.4)."""
    _, points, colors = grid()
    write(tmp_path / "x.glb", points, colors if coloured else None)
    data = (tmp_path / "x.glb").read_bytes()
    magic, version, length, size, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, length, kind, size % 4) == (b"glTF", 2, len(data), b"JSON", 0)
    size, kind = struct.unpack("<I4s", data[20 + size : 28 + size])
    found = pygltflib.GLTF2().load(str(tmp_path / "x.glb"))
    assert (size, kind) == (found.buffers[0].byteLength, b"BIN\0")
    (primitive,) = found.meshes[0].primitives
    material = found.materials[primitive.material]
    assert ("KHR_materials_unlit" in material.extensions) is coloured
    assert found.extensionsUsed == (["KHR_materials_unlit"] if coloured else [])
    assert (primitive.mode, primitive.indices is None) == ((0, True) if write is write_points else (4, False))
    places, _, _ = read_glb(tmp_path / "x.glb")
    bounds = found.accessors[primitive.attributes.POSITION]
    assert (bounds.min, bounds.max) == (places.min(0).tolist(), places.max(0).tolist())
    assert all((view.byteOffset or 0) % 4 == 0 for view in found.bufferViews)


@pytest.mark.parametrize("suffix", READ)
def test_parts_of_a_file_make_the_whole(tmp_path, monkeypatch, suffix):
    """Files are written some points at a time, and no part shows."""
    depth, points, colors = grid()
    mask = ~depth_edges(depth)
    mask[:3] = mask[7, 5] = False
    for name, size in (("whole", 1 << 20), ("parts", 64), ("rows", 1)):
        monkeypatch.setattr(point_files, "_PART", size)
        write_mesh(tmp_path / f"{name}{suffix}", points, colors, mask=mask)
        write_points(tmp_path / f"{name}-points{suffix}", points, colors, mask=mask)
    for name in ("parts", "rows"):
        for end in (suffix, f"-points{suffix}"):
            assert (tmp_path / f"{name}{end}").read_bytes() == (tmp_path / f"whole{end}").read_bytes()


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    """Beyond masks of a byte a pixel: trimesh took 120 bytes a pixel."""
    monkeypatch.setattr(point_files, "_PART", 1 << 14)
    points = unproject(np.full((1000, 1000), 2.0, np.float32), Intrinsics.of_focal_length((1000, 1000), 900.0))
    colors = np.zeros((1000, 1000, 3), np.uint8)
    for suffix in READ:
        tracemalloc.start()
        write_mesh(tmp_path / f"x{suffix}", points, colors)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10 * 1000 * 1000


def test_a_glb_holds_at_most_four_gibibytes(tmp_path, monkeypatch):
    monkeypatch.setattr(point_files, "_MAX_GLB_BYTES", 50_000)
    _, points, colors = grid()
    with pytest.raises(ImageError, match=r"1,200 points and 2,262 triangles would take .* write a \.ply file"):
        write_mesh(tmp_path / "x.glb", points, colors)
    write_mesh(tmp_path / "x.ply", points, colors)
    assert [path.name for path in tmp_path.iterdir()] == ["x.ply"]


def test_trimesh_reads_the_same(tmp_path):
    """A second reader, of both formats."""
    depth, points, colors = grid()
    for suffix, (_, axes) in READ.items():
        write_mesh(tmp_path / f"x{suffix}", points, colors, mask=~depth_edges(depth))
        found = trimesh.load(tmp_path / f"x{suffix}", force="mesh", process=False)
        places, _, faces = READ[suffix][0](tmp_path / f"x{suffix}")
        np.testing.assert_array_equal(np.asarray(found.faces), faces)
        np.testing.assert_array_equal(np.asarray(found.vertices, np.float32), places)
        assert ((found.face_normals * axes)[:, 2] < 0).all()
