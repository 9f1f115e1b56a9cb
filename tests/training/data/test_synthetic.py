"""Scenes whose depth is known in closed form, and drawn scenes against a plain float64 ray caster."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dajax.errors import ConfigError
from dajax.kernels import Target
from dajax.training.data import synthetic
from dajax.training.data.degrade import degrade_image
from dajax.training.data.furniture import BALL, BOX, CAN, KINDS, PARTS, tables
from dajax.training.data.scene import MAX_SOLIDS, SHELL, Air, Camera, Lights, Materials, Scene, Solids, look

SIZE = (43, 57)  # odd: a ray goes through the middle of the middle pixel
FOCAL = 0.9 * 57
HEIGHT = 1.5  # of hand-made cameras, metres
SHAPES = {"box": BOX, "ball": BALL, "can": CAN}

make_image = jax.jit(partial(synthetic.render_scene, size=SIZE, samples=1))


@cache
def drawn():
    """64 scenes of seed 0 and their images."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(64))
    return jax.device_get(jax.jit(jax.vmap(synthetic.sample_scene))(keys)), synthetic.render_scenes(
        0, range(64), SIZE, 1
    )


def by_hand(*solids, pitch=0.0, roll=0.0, room=None):
    """A scene with grey solids (shape, centre, half, yaw in degrees), sorted by shape, lit by a sun from the left."""
    n = MAX_SOLIDS
    centre, half, axes = np.zeros((n, 3)), np.ones((n, 3)), np.tile(np.eye(3), (n, 1, 1))
    for i, (_, c, h, yaw) in enumerate(solids):
        turned, sine = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
        centre[i], half[i], axes[i] = c, h, [[turned, 0, -sine], [0, 1, 0], [sine, 0, turned]]
    codes = [SHAPES[solid[0]] for solid in solids]
    ends = np.int32([sum(code <= shape for code in codes) for shape in (BOX, BALL, CAN)])
    m = n + len(SHELL)
    angles = np.float32(np.radians([0, pitch, roll]))
    scene = Scene(
        indoor=np.bool_(room is not None),
        low=np.array([-1e4, 0, -1e4] if room is None else [-room[0], 0, -room[2]]),
        high=np.array([1e4, 1e4, 1e4] if room is None else room),
        window=np.array([2.0, 1, -1, 1, -1]),
        solids=Solids(centre, axes, half, ends),
        materials=Materials(
            colours=np.full((m, 2, 3), 0.5),
            pattern=np.zeros(m, np.int32),
            period=np.ones(m),
            angle=np.zeros(m),
            offset=np.zeros((m, 2)),
            grain=np.zeros(m),
            gloss=np.zeros(m),
        ),
        camera=Camera(
            position=np.array([0, HEIGHT, 0]),
            axes=look(*(jnp.asarray(a) for a in angles)),
            focal=np.array(0.9),
            shift=np.zeros(2),
            exposure=np.array(1.0),
            contrast=np.array(0.0),
        ),
        lights=Lights(
            place=np.array([[-1.0, 1, 0, 0], [-1, 1, 0, 0]]),
            colour=np.array([[2.0] * 3, [0.0] * 3]),
            ambient=np.full((2, 3), 0.3),
        ),
        air=Air(np.ones((2, 3)), np.array(0.0), np.array(0.0), np.array(0.0), np.ones(3)),
    )
    return jax.tree.map(lambda a: np.asarray(a, np.float32) if np.asarray(a).dtype == np.float64 else a, scene)


def rays(size=SIZE, focal=FOCAL):
    """Right, down, ahead of each pixel's ray, in float64."""
    height, width = size
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.stack([(columns - width / 2) / focal, (rows - height / 2) / focal, np.ones(size)], -1)


def test_ball_straight_ahead():
    taken = make_image(by_hand(("ball", (0, HEIGHT, 5), (1, 1, 1), 0)))
    assert taken.depth[21, 28] == pytest.approx(4, rel=1e-6)
    d, centre = rays(), np.array([0, 0, 5])
    a, b = (d * d).sum(-1), d @ centre
    inside = b * b - a * 24
    seen = inside > 0
    expected = (b - np.sqrt(np.maximum(inside, 0))) / a
    np.testing.assert_allclose(np.asarray(taken.depth)[seen], expected[seen], rtol=2e-5)
    assert 200 < seen.sum() < 600


@pytest.mark.parametrize(("pitch", "roll"), [(0.0, 0.0), (-35.0, 0.0), (-12.0, 9.0), (8.0, -4.0)])
def test_ground_under_a_tilted_camera(pitch, roll):
    taken = make_image(by_hand(pitch=pitch, roll=roll))
    right, down, ahead = np.moveaxis(rays(), -1, 0)
    p, r = np.radians([pitch, roll])
    # Rolled clockwise, the camera's right side is lower.
    falling = np.cos(p) * (np.cos(r) * down + np.sin(r) * right) - np.sin(p) * ahead
    with np.errstate(divide="ignore"):
        expected = HEIGHT / falling
    seen = (falling > 0) & (expected < synthetic.MAX_DEPTH)
    np.testing.assert_array_equal(taken.valid, seen)
    np.testing.assert_allclose(np.asarray(taken.depth), np.where(seen, expected, 0), rtol=1e-4)
    assert 0.1 < seen.mean() <= 1


def test_box_face_and_edge():
    face = make_image(by_hand(("box", (0, HEIGHT, 4), (1, 0.5, 1), 0)))
    right, down, _ = np.moveaxis(rays(), -1, 0)
    on_face = (abs(right) < 0.33) & (abs(down) < 0.16)
    np.testing.assert_allclose(np.asarray(face.depth)[on_face], 3, rtol=1e-6)
    corner = make_image(by_hand(("box", (0, HEIGHT, 4), (1, 0.5, 1), 45)))
    assert corner.depth[21, 28] == pytest.approx(4 - np.sqrt(2), rel=1e-5)
    # On the right side x + z = 4 - sqrt(2) + 2x: a plane at 45 degrees.
    expected = (4 - np.sqrt(2)) / (1 - right[21, 29:45])
    np.testing.assert_allclose(corner.depth[21, 29:45], expected, rtol=1e-5)


def test_can_side_and_top():
    side = make_image(by_hand(("can", (0, HEIGHT, 4), (0.8, 1, 0.8), 0)))
    right, down, _ = np.moveaxis(rays(), -1, 0)
    a = right**2 + 1
    inside = 16 - a * (16 - 0.64)
    expected = (4 - np.sqrt(np.maximum(inside, 0))) / a
    seen = (inside > 0) & (abs(down) < 0.2)
    np.testing.assert_allclose(np.asarray(side.depth)[seen], expected[seen], rtol=2e-5)
    top = make_image(by_hand(("can", (0, 0.25, 0.9), (0.4, 0.25, 0.4), 0), pitch=-45))
    falling = np.sqrt(0.5) * (down[21:, 28] + 1)
    on_top = abs(np.sqrt(0.5) * (1 - down[21:, 28]) / falling - 0.9) < 0.39
    assert on_top.sum() > 5
    np.testing.assert_allclose(np.asarray(top.depth)[21:, 28][on_top], 1 / falling[on_top], rtol=1e-5)


def test_room_is_closed():
    taken = make_image(by_hand(room=(2.0, 3.0, 4.0)))
    right, down, _ = np.moveaxis(rays(), -1, 0)
    with np.errstate(divide="ignore"):
        expected = np.minimum(4, np.minimum(2 / abs(right), HEIGHT / abs(down)))
    np.testing.assert_allclose(taken.depth, expected, rtol=1e-5)
    assert np.all(taken.valid)


def test_thin_pole_is_seen_from_top_to_bottom():
    pole = ("can", (0, 1.25, 4), (0.05, 1.25, 0.05), 0)
    bare, taken = make_image(by_hand()), make_image(by_hand(pole))
    near = abs(np.asarray(taken.depth) - 3.95) < 0.05
    rows = near.any(1)
    # It reaches from 1.5 m below the camera to 1 m above it.
    first, last = 21.5 - FOCAL * 1.0 / 4, 21.5 + FOCAL * 1.5 / 4
    assert rows[int(np.ceil(first)) : int(last)].all()
    assert near.sum(1).max() <= np.ceil(FOCAL * 0.1 / 3.95) + 1
    changed = abs(np.asarray(taken.image, int) - np.asarray(bare.image)).max(-1) > 20
    assert changed[near].mean() > 0.9


def test_things_throw_shadows():
    ball = ("ball", (0, 1, 6), (0.5, 0.5, 0.5), 0)
    scene, bare = by_hand(ball, pitch=-10), by_hand(pitch=-10)
    shadow = np.array([1, -HEIGHT, 6])  # opposite to the sun, on the ground
    p = np.radians(10)
    right, down, ahead = shadow[0], -shadow[1] * np.cos(p) - shadow[2] * np.sin(p), 6 * np.cos(p) + HEIGHT * np.sin(p)
    row, column = int(21.5 + FOCAL * down / ahead), int(28.5 + FOCAL * right / ahead)
    darker, lighter = (np.asarray(make_image(s).image, int)[row, column].mean() for s in (scene, bare))
    assert darker < 0.7 * lighter


def first_hits(scene, taken):
    """Planar depth in float64, one solid after the other, by the textbook."""
    fx, cx, cy = (float(taken.intrinsics[i]) for i in ((0, 0), (0, 2), (1, 2)))
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    camera = np.stack([(columns - cx) / fx, (rows - cy) / fx, np.ones(SIZE)], -1)
    d = camera @ scene.camera.axes.astype(np.float64)
    origin = scene.camera.position.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        planes = np.where(d > 0, (scene.high - origin) / d, (scene.low - origin) / d)
    t = np.nanmin(planes, -1)
    open_air = ~scene.indoor & ~((planes[..., 1] == t) & (d[..., 1] < 0))
    t = np.where(open_air, np.inf, t)
    solids = jax.tree.map(lambda a: a.astype(np.float64), scene.solids)
    for i in range(int(solids.ends[CAN])):
        o = solids.axes[i] @ (origin - solids.centre[i]) / solids.half[i]
        v = d @ solids.axes[i].T / solids.half[i]
        flat = {BOX: [0, 1, 2], BALL: [], CAN: [1]}[int(np.searchsorted(solids.ends, i, side="right"))]
        curved = [axis for axis in range(3) if axis not in flat]
        near, far = np.full(SIZE, -np.inf), np.full(SIZE, np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            for axis in flat:
                ends = np.sort([(-1 - o[axis]) / v[..., axis], (1 - o[axis]) / v[..., axis]], axis=0)
                near, far = np.maximum(near, ends[0]), np.minimum(far, ends[1])
            if curved:
                a, b = (v[..., curved] ** 2).sum(-1), v[..., curved] @ o[curved]
                root = np.sqrt(b * b - a * ((o[curved] ** 2).sum() - 1))  # NaN: passed by
                near, far = np.maximum(near, (-b - root) / a), np.minimum(far, (-b + root) / a)
        t = np.where((near <= far) & (near > 0), np.minimum(t, near), t)
    return t


@pytest.mark.slow
def test_drawn_scenes_against_a_plain_ray_caster():
    every, taken = drawn()
    wrong = []
    for i in range(32):
        scene, shot = (jax.tree.map(lambda a, i=i: a[i], tree) for tree in (every, taken))
        if scene.window[1] < scene.window[2]:  # windows: see the next test
            continue
        expected = first_hits(scene, shot)
        valid = expected <= synthetic.MAX_DEPTH
        agree = np.where(
            valid & shot.valid, abs(shot.depth / np.where(valid, expected, 1) - 1) < 1e-4, valid == shot.valid
        )
        wrong.append(1 - agree.mean())
    assert len(wrong) > 20
    # Rays that graze an edge, for which rounding decides.
    assert max(wrong) < 3 / (SIZE[0] * SIZE[1])


@pytest.mark.slow
def test_windows_are_the_only_holes_of_rooms():
    every, taken = drawn()
    with_window = every.window[:, 1] < every.window[:, 2]
    assert taken.valid[every.indoor & ~with_window].all()
    seen = (~taken.valid[every.indoor & with_window]).any((1, 2))
    assert 0.2 < seen.mean() < 1


def test_depth_and_intrinsics_lead_to_the_surface():
    every, taken = drawn()
    right, down, ahead = np.moveaxis(every.camera.axes, 1, 0)[..., None, None, :]
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    fx, fy, cx, cy = (taken.intrinsics[:, i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    x, y = (taken.depth * (columns - cx) / fx)[..., None], (taken.depth * (rows - cy) / fy)[..., None]
    points = every.camera.position[:, None, None] + x * right + y * down + taken.depth[..., None] * ahead
    for i in range(64):
        place, there = points[i][taken.valid[i]], int(every.solids.ends[i, CAN])
        gaps = np.abs(np.concatenate([place - every.low[i], place - every.high[i]], 1)).min(1)
        for j in range(there):
            half = every.solids.half[i, j]
            q = (place - every.solids.centre[i, j]) @ every.solids.axes[i, j].T / half
            boxy, around = np.abs(q).max(1), np.hypot(q[:, 0], q[:, 2])
            shape = int(np.searchsorted(every.solids.ends[i], j, side="right"))
            level = {BOX: boxy, BALL: np.linalg.norm(q, axis=1), CAN: np.maximum(around, np.abs(q[:, 1]))}[shape]
            gaps = np.minimum(gaps, np.abs(level - 1) * half.max())
        assert np.all(gaps < 1e-3 + 1e-4 * taken.depth[i][taken.valid[i]])


def test_nothing_floats_or_is_in_the_way():
    every, _ = drawn()
    for i in range(64):
        there = int(every.solids.ends[i, CAN])
        centre, axes, half = (a[i, :there] for a in every.solids[:3])
        reach = np.einsum("naw,na->nw", abs(axes), half)
        assert np.all(centre + reach < every.high[i] + 0.05)
        assert np.all(centre[:, 1] > 0)
        local = np.einsum("naw,nw->na", axes, every.camera.position[i] - centre)
        gap = np.linalg.norm(np.maximum(abs(local) - half, 0), axis=1)
        assert np.all(gap > 0.2), "the camera is in a solid"
        assert np.all(every.camera.position[i] > every.low[i] + 0.2)
        assert np.all(every.camera.position[i] < every.high[i] - 0.2)


def test_furniture_touches_the_ground():
    table = tables()
    for i, kind in enumerate(KINDS):
        assert len(kind.parts) <= PARTS
        half = np.where(table.lying[i, :, None], table.half[i][:, [0, 1, 2]], table.half[i])
        bottom = (table.centre[i] - half)[table.shape[i] < 3, 1].min()
        assert bottom <= 1e-6 or kind.name in ("painting", "pendant"), kind.name


def test_scenes_do_not_depend_on_their_batch():
    whole = drawn()[1]
    for start, count in ((5, 1), (2, 7)):
        part = synthetic.render_scenes(0, range(start, start + count), SIZE, 1)
        for a, b in zip(part, whole, strict=True):
            np.testing.assert_array_equal(a, b[start : start + count])
    other = synthetic.render_scenes(1, range(4), SIZE, 1)
    assert all(np.any(a != b) for a, b in zip(other.image, whole.image[:4], strict=True))
    assert len({image.tobytes() for image in whole.image}) == 64


def assert_alike(some, other):
    """Two programs render the same, but for what they round."""
    np.testing.assert_array_equal(some.valid, other.valid)
    np.testing.assert_allclose(some.depth, other.depth, rtol=1e-5)
    np.testing.assert_allclose(some.intrinsics, other.intrinsics, rtol=1e-6)
    apart = abs(np.asarray(some.image, int) - other.image)
    assert (apart > 1).mean() < 1e-3


@pytest.mark.slow
def test_the_same_under_jit_and_vmap():
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    numbers = jnp.array([6, 1])
    batch = jax.jit(jax.vmap(lambda key: synthetic.render_scene_batch(key, numbers, SIZE, 1)))(keys)
    assert batch.image.shape == (2, 2, *SIZE, 3)
    for seed in (0, 1):
        for place, number in enumerate((6, 1)):
            alone = jax.tree.map(lambda a: a[0], synthetic.render_scenes(seed, [number], SIZE, 1))
            assert_alike(jax.tree.map(lambda a, at=(seed, place): a[at], batch), alone)


@pytest.mark.slow
def test_many_at_once_as_accelerators_do(monkeypatch):
    monkeypatch.setattr(synthetic, "current_target", lambda: Target("tpu"))
    monkeypatch.setattr(synthetic, "_AT_ONCE", 4)
    at_once = synthetic.render_scenes(0, range(6), SIZE, 1)
    assert_alike(at_once, jax.tree.map(lambda a: a[:6], drawn()[1]))
    for one, whole in zip(synthetic.render_scenes(0, [5], SIZE, 1), at_once, strict=True):
        np.testing.assert_array_equal(one, whole[5:])


def test_statistics():
    """The ranges that docs/scenes.md states, with room for 64 small images."""
    every, taken = drawn()
    assert (taken.image.dtype, taken.depth.dtype, taken.valid.dtype) == (np.uint8, np.float32, bool)
    assert 0.35 < every.indoor.mean() < 0.65
    assert 0.05 < 1 - taken.valid.mean() < 0.3
    assert np.all((taken.depth > 0) == taken.valid)
    inside, outside = (taken.depth[which][taken.valid[which]] for which in (every.indoor, ~every.indoor))
    assert 1.5 < np.median(inside) < 4
    assert inside.max() < 14.2  # the diagonal of the largest room
    assert 3 < np.median(outside) < 9
    assert 60 < outside.max() <= 80
    far = np.where(taken.valid, taken.depth, np.inf)
    left, right = far[..., :-1], far[..., 1:]
    with np.errstate(invalid="ignore"):
        edges = np.maximum(left, right) > 1.1 * np.minimum(left, right)
    assert 0.03 < edges.mean() < 0.15
    assert (taken.image.min(), taken.image.max()) == (0, 255)
    brightness = taken.image.mean((1, 2, 3))
    assert brightness.min() > 40
    assert brightness.max() < 215
    assert np.all(taken.image.std((1, 2)).max(-1) > 6)
    solids = every.solids.ends[:, CAN]
    assert 10 < solids.mean() < 45


def test_values_stay_what_the_trained_checkpoint_saw():
    """A generator that draws other scenes is another data set: give it another name, or train again."""
    taken = drawn()[1]
    depth = [taken.depth[i][taken.valid[i]].mean() for i in range(4)]
    np.testing.assert_allclose(depth, FROZEN_DEPTH, rtol=2e-3)
    # Of 255: colours are rounded, and another processor rounds some the other way.
    np.testing.assert_allclose(taken.image[:4].mean((1, 2, 3)), FROZEN_BRIGHTNESS, atol=0.3)


FROZEN_DEPTH = [3.174, 9.109, 2.012, 16.576]
FROZEN_BRIGHTNESS = [162.5, 169.1, 147.1, 156.2]


def test_degraded_images_show_the_same():
    image = drawn()[1].image[3]
    degraded = jax.jit(degrade_image)
    worse = [np.asarray(degraded(jax.random.key(i), image)) for i in range(8)]
    assert all(w.shape == image.shape and w.dtype == np.uint8 for w in worse)
    np.testing.assert_array_equal(worse[0], degraded(jax.random.key(0), image))
    apart = [abs(w.astype(float) - image).mean() for w in worse]
    assert max(apart) < 40
    assert min(apart) > 0.1
    assert len({round(a, 3) for a in apart}) == 8
    assert all(np.corrcoef(w.ravel(), image.ravel())[0, 1] > 0.85 for w in worse)


@pytest.mark.parametrize("numbers", [[], range(-1, 1), [0, 2**31]])
def test_scenes_that_do_not_exist(numbers):
    with pytest.raises(ConfigError, match="numbers from 0"):
        synthetic.render_scenes(0, numbers, SIZE)


def test_types_do_not_depend_on_x64():
    jax.config.update("jax_enable_x64", True)
    try:
        taken = jax.eval_shape(lambda key: synthetic.render_scene(synthetic.sample_scene(key), SIZE), jax.random.key(0))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert [a.dtype for a in taken] == [np.uint8, np.float32, np.bool_, np.float32]
