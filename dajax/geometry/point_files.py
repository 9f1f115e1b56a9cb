"""Point clouds and surfaces in files that viewers open: PLY and GLB, written a part at a time."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dajax.errors import ConfigError, ImageError
from dajax.files import write_atomically

CloudForm = Literal["ply", "glb", "mesh"]
# What is put behind an image's name.
CLOUD_ENDINGS: dict[str, str] = {"ply": "_points.ply", "glb": "_points.glb", "mesh": "_mesh.glb"}

# (right, down, ahead) to glTF's (right, up, back).
_TO_GLTF = np.array([1, -1, -1], np.float32)
# Points that are converted at a time: files are written in some tens of megabytes, however large they become.
_PART = 1 << 20
# glTF 2.0, section 4.4.2: the length of a GLB file is a 32-bit number.
_MAX_GLB_BYTES = 2**32 - 1
_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125  # glTF 2.0, section 3.6.2.2: component types of accessors
_POINTS, _TRIANGLES = 0, 4  # section 3.7.2.1: topology types


class _Grid(NamedTuple):
    """What a file is made of.

    Attributes:
        points: [n, 3].
        colors: uint8 [n, 3], sRGB.
        kept: bool [n]: which points are written.
        whole: bool [height - 1, width - 1]: from which point on two triangles fill a square of four; None: points only.
    """

    points: np.ndarray
    colors: np.ndarray | None
    kept: np.ndarray
    whole: np.ndarray | None

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield all points that are written, float32 [m, 3], and their colours, some at a time."""
        for start in range(0, len(self.kept), _PART):
            part = slice(start, start + _PART)
            chosen = self.kept[part]
            colors = None if self.colors is None else self.colors[part][chosen]
            yield self.points[part][chosen].astype(np.float32), colors

    def faces(self) -> Iterator[np.ndarray]:
        """Yield the triangles, uint32 [m, 3], some at a time; points are counted in the order of `parts`."""
        if self.whole is None:
            return
        width = self.whole.shape[1] + 1
        kept = self.kept.reshape(-1, width)
        rows, before = max(_PART // width, 1), 0
        for start in range(0, len(self.whole), rows):
            whole, here = self.whole[start : start + rows], kept[start : start + rows + 1]
            number = (np.cumsum(here.ravel(), dtype=np.int64) - 1 + before).reshape(here.shape)
            before += int(np.count_nonzero(here[:rows]))
            corners = (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:])
            a, b, c, d = (corner[whole].astype(np.uint32) for corner in corners)
            # Counterclockwise as seen from the camera.
            yield np.stack([a, c, b, b, c, d], -1).reshape(-1, 3)


def write_points(path: str | os.PathLike[str], points: Any, colors: Any = None, *, mask: Any = None) -> int:
    """Write a point cloud as binary PLY or as GLB; return how many points it has.

    PLY keeps the camera's axes (right, down, ahead), and the bytes of the colours. GLB has the axes of glTF (right, up,
    back), in metres if the depth was, and linear colours, as glTF says (section 3.9.2): viewers show those of the
    image. Places are float32. The memory that this takes beyond the arrays does not depend on their size.

    Args:
        path: a .ply or .glb file.
        points: [..., 3], such as `unproject` gives; what is not finite is left out.
        colors: uint8 [..., 3], sRGB, of the same points.
        mask: bool [...]: which points to write; all if None.

    Raises:
        ConfigError: the suffix is neither .ply nor .glb.
        ImageError: the arrays do not fit each other, no point is left, or a GLB file would have more than 4 GiB.
    """
    points, colors, kept = _checked(path, points, colors, mask)
    grid = _Grid(points.reshape(-1, 3), None if colors is None else colors.reshape(-1, 3), kept.reshape(-1), None)
    return _write(path, grid)[0]


def write_mesh(path: str | os.PathLike[str], points: Any, colors: Any = None, *, mask: Any = None) -> tuple[int, int]:
    """Write a grid of points as a surface, binary PLY or GLB; return how many points and triangles it has.

    Two triangles for each four neighbours that `mask` keeps: with `~depth_edges(depth)` the surface is cut where depth
    jumps. Points that belong to no triangle are left out. Axes and colours are those of `write_points`; in GLB a
    coloured surface is not lit (KHR_materials_unlit), since the image has its light already.

    Args:
        path: a .ply or .glb file.
        points: [height, width, 3], such as `unproject` gives.
        colors: uint8 [height, width, 3], sRGB.
        mask: bool [height, width]: which points may belong to the surface; all if None.

    Raises:
        ConfigError: the suffix is neither .ply nor .glb.
        ImageError: the arrays do not fit each other, no triangle is left, or a GLB file would have more than 4 GiB: 44
            bytes a pixel.
    """
    points, colors, kept = _checked(path, points, colors, mask)
    if points.ndim != 3:
        raise ImageError(f"a surface needs a grid of points [height, width, 3], got {list(points.shape)}")
    whole = kept[:-1, :-1] & kept[1:, :-1] & kept[:-1, 1:] & kept[1:, 1:]
    if not whole.any():
        raise ImageError("no four neighbouring points are left to make a surface of")
    used = np.zeros_like(kept)
    for corner in (used[:-1, :-1], used[1:, :-1], used[:-1, 1:], used[1:, 1:]):
        corner |= whole
    return _write(
        path, _Grid(points.reshape(-1, 3), None if colors is None else colors.reshape(-1, 3), used.ravel(), whole)
    )


def _checked(path: str | os.PathLike[str], points: Any, colors: Any, mask: Any) -> tuple[np.ndarray, Any, np.ndarray]:
    if Path(path).suffix.lower() not in (".ply", ".glb"):
        raise ConfigError(f"{os.fspath(path)!r}: points are written as .ply or .glb")
    points = np.asarray(points)
    if points.ndim < 2 or points.shape[-1] != 3:
        raise ImageError(f"points must be [..., 3], got {list(points.shape)}")
    if colors is not None:
        colors = np.asarray(colors)
        if colors.shape != points.shape or colors.dtype != np.uint8:
            raise ImageError(f"colors must be uint8 {list(points.shape)}, got {colors.dtype} {list(colors.shape)}")
    kept = _finite(points)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != kept.shape or mask.dtype != bool:
            raise ImageError(f"mask must be bool {list(kept.shape)}, got {mask.dtype} {list(mask.shape)}")
        kept &= mask
    if not kept.any():
        raise ImageError("no point is left to write")
    return points, colors, kept


def _finite(points: np.ndarray) -> np.ndarray:
    """Return which points float32 can hold, bool [...]."""
    flat = points.reshape(-1, 3)
    kept = np.empty(len(flat), bool)
    for start in range(0, len(flat), _PART):
        part = slice(start, start + _PART)
        kept[part] = (np.abs(flat[part]) <= np.finfo(np.float32).max).all(-1)
    return kept.reshape(points.shape[:-1])


def _write(path: str | os.PathLike[str], grid: _Grid) -> tuple[int, int]:
    """Write a file, and return how many points and triangles it has."""
    points = int(np.count_nonzero(grid.kept))
    triangles = 0 if grid.whole is None else 2 * int(np.count_nonzero(grid.whole))
    form = _ply if Path(path).suffix.lower() == ".ply" else _glb
    write_atomically(path, form(grid, points, triangles), error=ImageError)
    return points, triangles


def _ply(grid: _Grid, points: int, triangles: int) -> Iterable[bytes]:
    """Return the parts of a binary PLY file.

    By "The PLY Polygon File Format" (Greg Turk, 1994): a header of text names the elements and the types of their
    properties, and the elements follow in that order, without padding; colours are the uchar properties red, green and
    blue.
    """
    channels = () if grid.colors is None else ("red", "green", "blue")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {points}"]
    header += [f"property float {axis}" for axis in "xyz"] + [f"property uchar {name}" for name in channels]
    if grid.whole is not None:
        header += [f"element face {triangles}", "property list uchar int vertex_indices"]
    vertex = np.dtype([("place", "<f4", 3)] + [("color", "u1", 3)] * bool(channels))
    face = np.dtype([("count", "u1"), ("corners", "<i4", 3)])
    vertices = (_records(vertex, *part[: 1 + bool(channels)]) for part in grid.parts())
    faces = (_records(face, np.full(len(corners), 3), corners) for corners in grid.faces())
    return chain([("\n".join([*header, "end_header"]) + "\n").encode("ascii")], vertices, faces)


def _records(kind: np.dtype, *columns: Any) -> bytes:
    table = np.empty(len(columns[0]), kind)
    for name, column in zip(kind.names or (), columns, strict=True):
        table[name] = column
    return table.tobytes()


def _glb(grid: _Grid, points: int, triangles: int) -> Iterable[bytes]:
    """Return the parts of a GLB file.

    By glTF 2.0, section 4.4: twelve bytes of header, a chunk of JSON that is padded with blanks to a multiple of four
    bytes, and a chunk of binary data, which here has places, colours and triangles.

    Raises:
        ImageError: the file would have more than 4 GiB.
    """
    coloured = grid.colors is not None
    sizes = [12 * points, 8 * points * coloured, 12 * triangles]
    text = json.dumps(_description(grid, points, triangles, sizes), separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + sum(sizes)
    if length > _MAX_GLB_BYTES:
        raise ImageError(
            f"{points:,} points and {triangles:,} triangles would take {length / 2**30:.1f} GiB, and a GLB file has at "
            "most 4: write a .ply file (points), or make the image smaller"
        )
    head = struct.pack("<4sII", b"glTF", 2, length) + struct.pack("<I4s", len(text), b"JSON") + text
    linear = _linear()
    places = ((part * _TO_GLTF).astype("<f4").tobytes() for part, _ in grid.parts())
    colors = (linear[_with_alpha(part)].tobytes() for _, part in grid.parts() if part is not None)
    faces = (part.astype("<u4").tobytes() for part in grid.faces())
    return chain([head + struct.pack("<I4s", sum(sizes), b"BIN\0")], places, colors, faces)


def _description(grid: _Grid, points: int, triangles: int, sizes: list[int]) -> dict[str, Any]:
    """Return the JSON of a GLB file with places, colours and triangles of these sizes in bytes."""
    low, high = _bounds(grid)
    places = {"bufferView": 0, "componentType": _FLOAT, "count": points, "type": "VEC3", "min": low, "max": high}
    primitive: dict[str, Any] = {"attributes": {"POSITION": 0}, "material": 0, "mode": _POINTS}
    accessors, views = [places], [{"buffer": 0, "byteLength": sizes[0], "byteStride": 12, "target": 34962}]
    # Section 3.9: a surface without a texture gets its colours only where a material lets it.
    material: dict[str, Any] = {"pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1}}
    about: dict[str, Any] = {"asset": {"version": "2.0", "generator": "dajax"}}
    if grid.colors is not None:
        # Section 3.7.2.1: VEC4 of normalised 16-bit numbers is one of the types that colours may have.
        shape = {"componentType": _UINT16, "normalized": True, "count": points, "type": "VEC4"}
        primitive["attributes"]["COLOR_0"] = len(accessors)
        accessors.append({"bufferView": len(views), **shape})
        views.append({"buffer": 0, "byteOffset": sizes[0], "byteLength": sizes[1], "byteStride": 8, "target": 34962})
        material["extensions"] = {"KHR_materials_unlit": {}}
        about["extensionsUsed"] = ["KHR_materials_unlit"]
    if triangles:
        primitive |= {"indices": len(accessors), "mode": _TRIANGLES}
        shape = {"componentType": _UINT32, "count": 3 * triangles, "type": "SCALAR"}
        accessors.append({"bufferView": len(views), **shape})
        views.append({"buffer": 0, "byteOffset": sum(sizes[:2]), "byteLength": sizes[2], "target": 34963})
    return about | {
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [material],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": sum(sizes)}],
    }


def _bounds(grid: _Grid) -> tuple[list[float], list[float]]:
    """Return the smallest and largest coordinates of what is written (section 3.7.2.1: places have to have both)."""
    low, high = np.full(3, np.inf, np.float32), np.full(3, -np.inf, np.float32)
    for part, _ in grid.parts():
        if len(part):
            places = part * _TO_GLTF
            low, high = np.minimum(low, places.min(0)), np.maximum(high, places.max(0))
    return low.tolist(), high.tolist()


def _linear() -> np.ndarray:
    """Return linear 16-bit values of sRGB bytes, uint16 [256].

    glTF 2.0, section 3.9.2: COLOR_0 is a linear multiplier of the base colour. The curve is that of IEC 61966-2-1.
    """
    byte = np.arange(256) / 255
    linear = np.where(byte <= 0.04045, byte / 12.92, ((byte + 0.055) / 1.055) ** 2.4)
    return np.rint(65535 * linear).astype("<u2")


def _with_alpha(colors: np.ndarray) -> np.ndarray:
    return np.concatenate([colors, np.full((len(colors), 1), 255, np.uint8)], -1)
