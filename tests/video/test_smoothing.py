"""The depth of a video is steadier than that of single frames, and no less accurate."""

import sys

import numpy as np
import pytest
from camera_moves import camera_move, flicker

import dajax
from dajax.errors import ConfigError
from dajax.video.smoothing import Smoother, smooth_depth

SMALL = (84, 112)


@pytest.fixture(scope="module")
def small_move():
    return camera_move(3, size=SMALL)


@pytest.mark.parametrize(
    ("numbers", "size"),
    [
        pytest.param((3, 20), SMALL, marks=pytest.mark.slow),
        pytest.param((3, 11, 12, 20, 25, 31), (168, 224), marks=pytest.mark.very_slow),
    ],
    ids=["small", "as documented"],
)
def test_depth_flickers_a_third_of_normalised_frames_and_is_no_worse(small_move, numbers, size):
    """The slow one measures what docs/video.md states."""
    estimator = dajax.DepthEstimator("tiny", batch_size=8, input_size=min(size))
    flickers, errors = [], []
    for number in numbers:
        move = small_move if (number, size) == (3, SMALL) else camera_move(number, size=size)
        depths = np.stack(estimator(list(move.images)))
        low, high = (pick((1, 2), keepdims=True) for pick in (depths.min, depths.max))
        normalised, _ = flicker(move, (depths - low) / (high - low))
        raw, error = flicker(move, depths)
        steady, steady_error = flicker(move, np.stack(list(smooth_depth(zip(depths, move.images, strict=True)))))
        print(f"scene {number}: {steady / normalised:.3f} {steady / raw:.3f} {steady_error / error:.3f}")
        flickers.append(steady / normalised)
        errors.append(steady_error / error)
        assert steady_error < 1.02 * error
        assert steady < 0.55 * normalised
        assert steady < 0.5 * raw
    assert np.mean(flickers) < 1 / 3, flickers
    assert np.mean(errors) < 1, errors


def test_known_jitter_is_taken_out(small_move):
    """The input is true inverse depth whose scale and shift jump from frame to frame."""
    move = small_move
    true = 1 / np.maximum(move.depth, 0.3)
    rng = np.random.default_rng(0)
    scale, shift = rng.uniform(0.8, 1.25, (2, 40, 1, 1)) * [[[[1.0]]], [[[0.2]]]]
    jittered = (scale * true + shift).astype(np.float32)
    before, _ = flicker(move, jittered)
    after, error = flicker(move, np.stack(list(smooth_depth(zip(jittered, move.images, strict=True)))))
    assert after < 0.15 * before
    assert error < 0.02


def test_nothing_drifts():
    """A wall comes nearer: what changes slowly and everywhere is not jitter."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    shape = rng.uniform(0.5, 1, (40, 60)).astype(np.float32)
    depths = [shape * (1 + 0.01 * frame) for frame in range(120)]
    found = np.stack(list(smooth_depth((depth, image) for depth in depths)))
    means = found.mean((1, 2)) / shape.mean()
    # The first and last frames have neighbours on one side only.
    np.testing.assert_allclose(means[12:108], (1 + 0.01 * np.arange(120))[12:108], rtol=0.03)
    # There is no step where a group of frames leaves.
    np.testing.assert_allclose(np.diff(means)[12:108], 0.01, atol=0.005)


def test_metres_stay_metres():
    """For metric models only a scale is fitted, and the mean depth stays as it is."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    metres = rng.uniform(2, 5, (40, 60)).astype(np.float32)
    scales = 1 + 0.1 * rng.standard_normal(64)
    found = np.stack(list(smooth_depth((((scale * metres).astype(np.float32), image) for scale in scales), "metric")))
    assert np.abs(found.mean(0) / metres - scales.mean()).max() < 0.05
    assert found.mean((1, 2)).std() < 0.25 * (scales.std() * metres.mean())


def test_a_cut_is_not_smoothed_over():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(2)]
    depths = [rng.uniform(0, 1, (40, 60)).astype(np.float32) for _ in range(2)]
    shots = [0] * 20 + [1] * 20
    found = list(smooth_depth((depths[shot], images[shot]) for shot in shots))
    for shot, depth in zip(shots, found, strict=True):
        np.testing.assert_allclose(depth, depths[shot], atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 16, 39, 40, 41, 56, 100])
def test_every_frame_comes_back_once_and_in_order(count):
    image = np.zeros((20, 30, 3), np.uint8)
    # A linear trend is its own mean: only then do values say which frame is which.
    smoother = Smoother("metric")
    left, held = [], 0
    for i in range(count):
        left += smoother.push(np.full((20, 30), 1000.0 + i, np.float32), image)
        held = max(held, len(smoother._held))
    assert held <= 40
    left += smoother.flush()
    assert len(left) == count
    means = [depth.mean() for depth in left]
    assert means == sorted(means)
    np.testing.assert_allclose(means, 1000 + np.arange(count), atol=8)
    assert smoother.flush() == []


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (37, 49), (300, 8)])
def test_odd_sizes_and_flat_depth(size):
    image = np.zeros((*size, 3), np.uint8)
    for value in (0.0, 3.0, 1e30):
        flat = np.full(size, value, np.float32)
        for depth in smooth_depth((flat, image) for _ in range(20)):
            np.testing.assert_allclose(depth, flat, rtol=1e-5)


def test_a_still_image_with_noise_gets_its_mean():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    true = np.linspace(1, 2, 2400).reshape(40, 60)
    depths = [(true + 0.05 * rng.standard_normal((40, 60))).astype(np.float32) for _ in range(120)]
    found = np.stack(list(smooth_depth((depth, image) for depth in depths)))
    assert (found - true)[16:104].std() < 0.05 / 3
    # The contrast does not shrink with time.
    slope = np.polyfit(true.ravel(), found[100:].mean(0).ravel(), 1)[0]
    assert slope == pytest.approx(1, abs=0.02)


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"--no-smooth.*pip install '\.\[video\]'"):
        Smoother()
