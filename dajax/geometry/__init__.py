"""Cameras, points in space, and metres from relative depth. Nothing in this room knows the model."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.geometry.camera import Intrinsics as Intrinsics
    from dajax.geometry.point_files import write_mesh as write_mesh
    from dajax.geometry.point_files import write_points as write_points
    from dajax.geometry.points import depth_edges as depth_edges
    from dajax.geometry.points import normals as normals
    from dajax.geometry.points import project as project
    from dajax.geometry.points import unproject as unproject
    from dajax.geometry.scale import Fit as Fit
    from dajax.geometry.scale import depth_of_inverse as depth_of_inverse
    from dajax.geometry.scale import fit_scale_and_shift as fit_scale_and_shift
    from dajax.geometry.scale import inverse_of_depth as inverse_of_depth
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "camera": ["Intrinsics"],
            "point_files": ["write_mesh", "write_points"],
            "points": ["depth_edges", "normals", "project", "unproject"],
            "scale": ["Fit", "depth_of_inverse", "fit_scale_and_shift", "inverse_of_depth"],
        },
    )
