"""Depth of videos is steadier than that of frames, and no worse."""

import sys

import numpy as np
import pytest
from camera_moves import camera_move, flicker

import dajax
from dajax.errors import ConfigError
from dajax.video.smoothing import Smoother, smooth_depth


@pytest.fixture(scope="module")
def moves():
    """Six scenes, and what tiny says of each frame of them."""
    estimator = dajax.DepthEstimator("tiny", batch_size=8)
    found = []
    for number in (3, 11, 12, 20, 25, 31):
        move = camera_move(number)
        found.append((move, np.stack(estimator(list(move.images)))))
    return found


def test_flickers_a_third_of_what_normalised_frames_do_and_is_no_worse(moves):
    shares, errors = [], []
    for move, maps in moves:
        low, high = (pick((1, 2), keepdims=True) for pick in (maps.min, maps.max))
        normalised, _ = flicker(move, (maps - low) / (high - low))
        raw, error = flicker(move, maps)
        steady, steady_error = flicker(move, np.stack(list(smooth_depth(zip(maps, move.images, strict=True)))))
        shares.append(steady / normalised)
        errors.append(steady_error / error)
        assert steady_error < 1.02 * error
        assert steady < 0.55 * normalised
        assert steady < 0.5 * raw
    assert np.mean(shares) < 1 / 3, shares
    assert np.mean(errors) < 1, errors


def test_known_jitter_is_taken_out(moves):
    """Of true inverse depth, whose scale and shift jump from frame to frame."""
    move, _ = moves[0]
    true = 1 / np.maximum(move.depth, 0.3)
    rng = np.random.default_rng(0)
    scale, shift = rng.uniform(0.8, 1.25, (2, 40, 1, 1)) * [[[[1.0]]], [[[0.2]]]]
    jittered = (scale * true + shift).astype(np.float32)
    before, _ = flicker(move, jittered)
    after, error = flicker(move, np.stack(list(smooth_depth(zip(jittered, move.images, strict=True)))))
    assert after < 0.15 * before
    assert error < 0.02


def test_nothing_drifts():
    """A wall that comes nearer does: what changes slowly and everywhere is no jitter."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    shape = rng.uniform(0.5, 1, (40, 60)).astype(np.float32)
    maps = [shape * (1 + 0.01 * frame) for frame in range(200)]
    found = np.stack(list(smooth_depth((depth, image) for depth in maps)))
    means = found.mean((1, 2)) / shape.mean()
    # At the ends neighbours are on one side only.
    np.testing.assert_allclose(means[12:188], (1 + 0.01 * np.arange(200))[12:188], rtol=0.03)
    # Nor is there a step where frames leave together.
    np.testing.assert_allclose(np.diff(means)[12:188], 0.01, atol=0.005)


def test_metres_stay_metres():
    """Of metric models only a scale is fitted, and averages keep their value."""
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
    maps = [rng.uniform(0, 1, (40, 60)).astype(np.float32) for _ in range(2)]
    shots = [0] * 20 + [1] * 20
    found = list(smooth_depth((maps[shot], images[shot]) for shot in shots))
    for shot, depth in zip(shots, found, strict=True):
        np.testing.assert_allclose(depth, maps[shot], atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 16, 39, 40, 41, 56, 100])
def test_every_frame_comes_back_once_and_in_order(count):
    image = np.zeros((20, 30, 3), np.uint8)
    maps = [np.full((20, 30), float(i), np.float32) for i in range(count)]
    smoother = Smoother()
    left, held = 0, 0
    for depth in maps:
        left += len(smoother.push(depth, image))
        held = max(held, len(smoother._held))
    assert held <= 40
    assert left + len(smoother.flush()) == count
    assert smoother.flush() == []


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (37, 49), (300, 8)])
def test_odd_sizes_and_flat_maps(size):
    image = np.zeros((*size, 3), np.uint8)
    for value in (0.0, 3.0, 1e30):
        maps = [np.full(size, value, np.float32)] * 20
        for depth in smooth_depth((depth, image) for depth in maps):
            np.testing.assert_allclose(depth, maps[0], rtol=1e-5)


def test_a_still_image_with_noise_gets_its_mean():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    true = np.linspace(1, 2, 2400).reshape(40, 60)
    maps = [(true + 0.05 * rng.standard_normal((40, 60))).astype(np.float32) for _ in range(200)]
    found = np.stack(list(smooth_depth((depth, image) for depth in maps)))
    assert (found - true)[16:184].std() < 0.05 / 3
    # Its contrast does not shrink with time.
    slope = np.polyfit(true.ravel(), found[180:].mean(0).ravel(), 1)[0]
    assert slope == pytest.approx(1, abs=0.02)


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"dajax\[video\].*--no-smooth"):
        Smoother()
