"""From an image and its depth to a file of points or a surface: what `dajax predict --points` does."""

from __future__ import annotations

import csv
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from dajax.errors import ConfigError
from dajax.geometry.camera import Intrinsics
from dajax.geometry.point_files import CloudForm, write_mesh, write_points
from dajax.geometry.points import depth_edges, unproject
from dajax.geometry.scale import fit_scale_and_shift, sampled

# Neighbours whose depths differ by more than this factor are taken for two surfaces.
_CUT = 1.2
# Metres, the farthest that the released metric models give. Known points put all of the sky's pixels beyond.
MAX_DEPTH = 80.0
# Which difference from its depth, as a share of it, a known point may have where there are enough to judge by.
_TOLERANCE = 0.05


class Metres(NamedTuple):
    """A depth map in metres, and which pixels it gives a place.

    Attributes:
        values: float32 [height, width]. Where the metres come from known points, finite everywhere: what has no finite
            place, or one that is too far, has the largest depth that is allowed.
        placed: bool [height, width]: which pixels have a finite place that is near enough.
        notes: what was left out, in sentences.
    """

    values: np.ndarray
    placed: np.ndarray
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Cloud:
    """How points are made of depth maps.

    Attributes:
        form: "ply" or "glb", points; or "mesh", a surface that is cut where depth jumps, as GLB.
        field_of_view: what the images show from left to right, in degrees.
        focal_length: of the images, in pixels. With neither, each image's EXIF data has to say it.
        known_points: (column, row, metres) of points [n, 3] of the one image, which make metres of relative depth.
        max_depth: in metres. What is farther gets no point. None: 80 where known points make the metres, and no bound
            for a metric model.

    Raises:
        ConfigError: the options contradict each other or cannot be used.
    """

    form: CloudForm
    field_of_view: float | None = None
    focal_length: float | None = None
    known_points: np.ndarray | None = None
    max_depth: float | None = None

    def __post_init__(self) -> None:
        if self.form not in get_args(CloudForm):
            raise ConfigError(f"points are made as {', '.join(get_args(CloudForm))}, got {self.form!r}")
        if self.field_of_view is not None and self.focal_length is not None:
            raise ConfigError("the field of view and the focal length say the same: give one of them")
        if self.field_of_view is not None or self.focal_length is not None:
            with warnings.catch_warnings(action="ignore"):  # each image says for its own size how wide that is
                self.camera("", (1, 1))
        if self.max_depth is not None and not 0 < self.max_depth < math.inf:
            raise ConfigError(f"max_depth must be a positive number of metres, got {self.max_depth}")

    def check(self, kind: str, *, images: int) -> None:
        """See that depth of this kind, of so many images, can become points.

        Raises:
            ConfigError: it is relative and no points are known; or some are, and it is metric or of many images.
        """
        if kind == "relative" and self.known_points is None:
            raise ConfigError(
                "this model gives inverse depth up to a scale and a shift, in which nothing has a place in space: use "
                "a metric model (small-metric-indoor, small-metric-outdoor), or give two points or more whose depth "
                "is known (known_points)"
            )
        if self.known_points is not None and kind == "metric":
            raise ConfigError("points of known depth make metres of relative depth; this model gives metres already")
        if self.known_points is not None and images > 1:
            raise ConfigError(f"points of known depth belong to one image, and there are {images}")

    def camera(self, image_path: str | os.PathLike[str], size: tuple[int, int]) -> Intrinsics:
        """Return the camera of an image of (height, width) `size`.

        Raises:
            ConfigError: angle or length make no camera.
            ImageError: the image has to say it, and does not.
        """
        if self.field_of_view is not None:
            return Intrinsics.of_field_of_view(size, self.field_of_view)
        if self.focal_length is not None:
            return Intrinsics.of_focal_length(size, self.focal_length)
        return Intrinsics.of_exif(image_path)

    def metres(self, depth: np.ndarray, *, kind: str) -> Metres:
        """Return a depth map of `kind` in metres.

        Raises:
            ConfigError: see `check`; or the points do not fit the depth map.
        """
        self.check(kind, images=1)
        known, notes = self.known_points, []
        farthest = self.max_depth or (math.inf if known is None else MAX_DEPTH)
        if known is None:
            values = metres = np.asarray(depth, np.float32)
            finite = np.isfinite(metres) & (metres > 0)
        else:
            fit = fit_scale_and_shift(depth, known[:, :2], known[:, 2], ransac=len(known) > 4, tolerance=_TOLERANCE)
            found = fit.metres(sampled(depth, known[:, :2]))
            agree = np.abs(found - known[:, 2]) <= _TOLERANCE * known[:, 2]
            if not agree.all():
                part = "have no part in them" if len(known) > 4 else "make all metres doubtful"
                notes.append(
                    f"{agree.sum()} of {len(known)} known points agree with the metres of the depth map within "
                    f"{_TOLERANCE:.0%}; the others {part}"
                )
            metres = fit.metres(depth.astype(np.float64))
            finite = np.isfinite(metres)
            values = np.minimum(metres, farthest).astype(np.float32)
        placed = finite & (metres <= farthest)
        if not placed.all():
            notes.append(
                _left_out(finite, placed, farthest)
                + ("" if known is None else f"; depth files have {farthest:g} there")
            )
        return Metres(values, placed, tuple(notes))

    def write(
        self,
        path: str | os.PathLike[str],
        image: np.ndarray,
        metres: Metres,
        *,
        image_path: str | os.PathLike[str] = "",
    ) -> None:
        """Write the points of one image.

        Args:
            path: file to write, with the ending that `CLOUD_ENDINGS` has for `form`.
            image: uint8 [height, width, 3].
            metres: of that image.
            image_path: file of the image. Its EXIF data is read where neither field of view nor focal length is
                given.

        Raises:
            ConfigError, ImageError: see `camera`; or no point is left.
        """
        values, placed = metres.values, metres.placed
        points = unproject(np.where(placed, values, np.float32(1)), self.camera(image_path, values.shape))
        if self.form == "mesh":
            smooth = ~np.asarray(depth_edges(np.where(placed, values, np.float32(1e9)), ratio=_CUT))
            write_mesh(path, points, image, mask=placed & smooth)
        else:
            write_points(path, points, image, mask=placed)


def _left_out(finite: np.ndarray, placed: np.ndarray, farthest: float) -> str:
    nowhere, far = finite.size - np.count_nonzero(finite), np.count_nonzero(finite) - np.count_nonzero(placed)
    beyond = f", {far:,} with one beyond {farthest:g} metres (max_depth)" if farthest < math.inf else ""
    left = f"{nowhere + far:,} of {placed.size:,} pixels get no point"
    return f"{left}: {nowhere:,} without a finite place{beyond}"


def read_known_points(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the points of a CSV file with the columns `column`, `row` (in pixels) and `metres`.

    Commas, semicolons or tabs separate the columns.

    Returns:
        float64 [n, 3].

    Raises:
        ConfigError: the file cannot be read, lacks a column, or has something else than numbers.
    """
    name = repr(os.fspath(path))
    wanted = ("column", "row", "metres")
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            rows = list(csv.DictReader(file, delimiter=delimiter))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{name}: cannot be read as CSV ({getattr(error, 'strerror', None) or error})") from error
    if missing := [key for key in wanted if rows and key not in rows[0]]:
        raise ConfigError(f"{name}: lacks the columns {', '.join(missing)}; expected the columns {', '.join(wanted)}")
    points = np.empty((len(rows), 3))
    for number, row in enumerate(rows):
        try:
            points[number] = [float(_text(row[key])) for key in wanted]
        except ValueError as error:
            raise ConfigError(f"{name}, point {number + 1}: {error}") from error
        if not all(math.isfinite(value) for value in points[number]):
            raise ConfigError(f"{name}, point {number + 1}: {points[number].tolist()} are not all finite")
    if len(rows) < 2:
        raise ConfigError(f"{name}: at least two points are needed, got {len(rows)}")
    return points


def _text(value: Any) -> str:
    if value is None:
        raise ValueError("has fewer columns than the first line")
    return str(value)
