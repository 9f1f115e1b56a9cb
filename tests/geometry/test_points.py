"""Points, normals and edges, against closed forms and synthetic scenes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dajax.errors import ImageError
from dajax.geometry.camera import Intrinsics
from dajax.geometry.points import depth_edges, normals, project, unproject
from dajax.training.data.synthetic import render_scenes

CAMERA = Intrinsics(50.0, 70.0, 21.0, 13.0)  # pixels that are not square, a principal point beside the middle


def some_depth(dtype=np.float64):
    return np.random.default_rng(0).uniform(1, 9, (30, 40)).astype(dtype)


def middles(shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    return np.stack([columns, rows], -1)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_there_and_back(array):
    depth = array(some_depth(np.float32))
    points = unproject(depth, CAMERA)
    assert points.shape == (30, 40, 3)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points[..., 2], depth)
    np.testing.assert_allclose(project(points, CAMERA), middles(depth.shape), atol=1e-4)


def test_by_hand():
    points = unproject(np.full((30, 40), 2.0), CAMERA)
    np.testing.assert_allclose(points[0, 0], [2 * (0.5 - 21) / 50, 2 * (0.5 - 13) / 70, 2])


def test_synthetic_scenes():
    """Where the generator says a pixel is, and back: within 1e-4 px."""
    taken = render_scenes(3, range(6), (70, 98))
    for depth, valid, matrix in zip(taken.depth, taken.valid, taken.intrinsics, strict=True):
        camera = Intrinsics(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
        points = unproject(np.where(valid, depth, 1), camera)
        assert np.abs(project(points, camera) - middles(depth.shape)).max() <= 1e-4


def test_batches_and_vmap():
    depth = jnp.asarray(np.stack([some_depth(), 2 * some_depth()]), jnp.float32)
    together = unproject(depth, CAMERA)
    np.testing.assert_allclose(together, jax.vmap(lambda d: unproject(d, CAMERA))(depth), rtol=1e-6)


def test_gradients():
    """Of depth and of the camera: differentiable where it is JAX."""
    depth = jnp.asarray(some_depth(), jnp.float32)
    camera = Intrinsics(*(jnp.float32(value) for value in CAMERA))

    def total(depth, camera):
        points = unproject(depth, camera)
        return normals(points).sum() + (project(points + 0.1, camera) ** 2).mean()

    by_depth, by_camera = jax.jit(jax.grad(total, (0, 1)))(depth, camera)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_depth, by_camera)))
    assert float(by_camera.fx) != 0


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_no_place_in_space(value):
    depth = some_depth()
    depth[3, 5] = value
    with pytest.raises(ImageError, match=r"positive and finite.* 1 of 1200 .*\[3, 5\]"):
        unproject(depth, CAMERA)


def test_behind_the_camera_is_seen_nowhere():
    seen = project(np.array([[1.0, 1, -1], [1, 1, 0], [1, 1, 1]]), CAMERA)
    assert np.isnan(seen).all(-1).tolist() == [True, True, False]


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.3, -0.2, -1), (0, -1, -0.4)])
def test_normals_of_a_plane(normal):
    """A plane n . p = d has its own normal everywhere, towards the camera."""
    normal = np.array(normal) / np.linalg.norm(normal)
    rays = unproject(np.ones((30, 40)), CAMERA)
    points = rays * (-3 / (rays @ normal))[..., None]
    kept = points[..., 2].min(axis=1) > 0  # rows in which the plane is ahead
    found = normals(points[kept])
    np.testing.assert_allclose(found, np.broadcast_to(normal, found.shape), atol=1e-9)


def test_normals_of_a_point_are_zero():
    assert not normals(np.ones((4, 4, 3))).any()
    with pytest.raises(ImageError, match="at least 2x2"):
        normals(np.ones((1, 4, 3)))


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_edges(array):
    depth = np.ones((5, 6))
    depth[:, 3:] = 2
    edge = np.asarray(depth_edges(array(depth.astype(np.float32))))
    assert edge.any(0).tolist() == [False, False, True, True, False, False]
    assert edge[:, 2:4].all()
    assert not np.asarray(depth_edges(array(depth.astype(np.float32)), ratio=2.5)).any()
