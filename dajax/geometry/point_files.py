"""Point clouds and surfaces in files that viewers open: PLY and GLB, by trimesh."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dajax.errors import ConfigError, ImageError, missing_extra
from dajax.files import write_atomically

CloudForm = Literal["ply", "glb", "mesh"]
# What is put behind an image's name.
CLOUD_ENDINGS: dict[str, str] = {"ply": "_points.ply", "glb": "_points.glb", "mesh": "_mesh.glb"}

# (right, down, ahead) to glTF's (right, up, back).
_TO_GLTF = np.array([1.0, -1.0, -1.0])


def write_points(path: str | os.PathLike[str], points: Any, colors: Any = None, *, mask: Any = None) -> int:
    """Write a point cloud as binary PLY or as GLB; return how many points it has.

    PLY keeps the camera's axes (right, down, ahead). GLB has those of glTF (right, up, back), in metres if the depth
    was.

    Args:
        path: a .ply or .glb file.
        points: [..., 3], such as `unproject` gives; what is not finite is left out.
        colors: uint8 [..., 3], of the same points.
        mask: bool [...]: which points to write; all if None.

    Raises:
        ConfigError: the suffix is neither .ply nor .glb, or trimesh is not installed.
        ImageError: the arrays do not fit each other, or no point is left.
    """
    trimesh = _trimesh()
    points, colors, kept = _checked(path, points, colors, mask)
    kept = kept.reshape(-1)
    cloud = trimesh.PointCloud(
        _axes(path, points.reshape(-1, 3)[kept]), None if colors is None else colors.reshape(-1, 3)[kept]
    )
    _write(path, cloud)
    return int(kept.sum())


def write_mesh(path: str | os.PathLike[str], points: Any, colors: Any = None, *, mask: Any = None) -> tuple[int, int]:
    """Write a grid of points as a surface, binary PLY or GLB; return how many points and triangles it has.

    Two triangles for each four neighbours that `mask` keeps: with `~depth_edges(depth)` the surface is cut where depth
    jumps. Points that belong to no triangle are left out.

    Args:
        path: a .ply or .glb file.
        points: [height, width, 3], such as `unproject` gives.
        colors: uint8 [height, width, 3].
        mask: bool [height, width]: which points may belong to the surface; all if None.

    Raises:
        ConfigError: the suffix is neither .ply nor .glb, or trimesh is not installed.
        ImageError: the arrays do not fit each other, or no triangle is left.
    """
    trimesh = _trimesh()
    points, colors, kept = _checked(path, points, colors, mask)
    if points.ndim != 3:
        raise ImageError(f"a surface needs a grid of points [height, width, 3], got {list(points.shape)}")
    number = np.arange(kept.size).reshape(kept.shape)
    whole = kept[:-1, :-1] & kept[1:, :-1] & kept[:-1, 1:] & kept[1:, 1:]
    a, b, c, d = (part[whole] for part in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]))
    # Counterclockwise as seen from the camera.
    faces = np.concatenate([np.stack([a, c, b], -1), np.stack([b, c, d], -1)])
    if not len(faces):
        raise ImageError("no four neighbouring points are left to make a surface of")
    used = np.unique(faces)
    surface = trimesh.Trimesh(
        _axes(path, points.reshape(-1, 3)[used]),
        np.searchsorted(used, faces),
        vertex_colors=None if colors is None else colors.reshape(-1, 3)[used],
        process=False,
    )
    _write(path, surface)
    return len(used), len(faces)


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
    kept = np.isfinite(points).all(-1)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != kept.shape or mask.dtype != bool:
            raise ImageError(f"mask must be bool {list(kept.shape)}, got {mask.dtype} {list(mask.shape)}")
        kept &= mask
    if not kept.any():
        raise ImageError("no point is left to write")
    return points, colors, kept


def _axes(path: str | os.PathLike[str], points: np.ndarray) -> np.ndarray:
    return points * _TO_GLTF if Path(path).suffix.lower() == ".glb" else points


def _write(path: str | os.PathLike[str], thing: Any) -> None:
    data = thing.export(file_type=Path(path).suffix.lower()[1:])
    write_atomically(path, data, error=ImageError)


def check_available() -> None:
    """Raise ConfigError where trimesh is not installed."""
    _trimesh()


def _trimesh() -> Any:
    try:
        import trimesh
    except ImportError as error:
        raise ConfigError(missing_extra("points", "points and surfaces need trimesh")) from error
    return trimesh
