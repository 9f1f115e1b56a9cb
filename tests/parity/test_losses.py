"""The losses against float64 formulas in PyTorch, gradients included."""

from functools import partial

import jax
import numpy as np
import pytest
import torch

from dajax.losses import (
    affine_invariant_loss,
    aligned_l1_loss,
    aligned_log_loss,
    depth_anything_loss,
    feature_alignment_loss,
    gradient_matching_loss,
    least_squares_affine_invariant_loss,
    silog_loss,
)

SHAPE = (3, 17, 19)


def torch_silog(prediction, target, mask):
    g = torch.log(target[mask]) - torch.log(prediction[mask])
    return torch.sqrt(torch.pow(g, 2).mean() - 0.5 * torch.pow(g.mean(), 2))


def normalise(depth, mask):
    valid = depth[mask]
    return (depth - torch.median(valid)) / (valid - torch.median(valid)).abs().mean()


def torch_affine_invariant(prediction, target, mask, trim=0):
    parts = []
    for p, t, m in zip(prediction, target, mask, strict=True):
        if m.any():
            errors = (normalise(p, m) - normalise(t, m)).abs()[m]
            kept = len(errors) - int(trim * len(errors) + 1e-9)
            parts.append(torch.topk(errors, kept, largest=False).values)
    return torch.cat(parts).mean()


def torch_least_squares(prediction, target, mask):
    """Autograd goes through the normal equations, which float64 can afford."""
    parts = []
    for p, t, m in zip(prediction, target, mask, strict=True):
        if m.any():
            columns = torch.stack([p[m], torch.ones_like(p[m])], 1)
            solution = torch.linalg.solve(columns.T @ columns, columns.T @ t[m])
            parts.append(columns @ solution - t[m])
    return torch.cat(parts).square().mean() / 2


def torch_aligned_l1(prediction, target, mask):
    """With torch's covariance."""
    parts = []
    for p, t, m in zip(prediction, target, mask, strict=True):
        if m.any():
            (var_p, cov), (_, var_t) = torch.cov(torch.stack([p[m], t[m]]), correction=0)
            scale = torch.maximum(cov / var_p, 0.1 * (var_t / var_p).sqrt())
            parts.append((scale * (p[m] - p[m].mean()) + t[m].mean() - t[m]).abs() / var_t.sqrt())
    return torch.cat(parts).mean()


def torch_aligned_log(prediction, target, mask, softening=0.02):
    parts = []
    for p, t, m in zip(prediction, target, mask, strict=True):
        if m.any():
            (var_p, cov), (_, var_t) = torch.cov(torch.stack([p[m], t[m]]), correction=0)
            scale = torch.maximum(cov / var_p, 0.1 * (var_t / var_p).sqrt())
            fitted = scale * (p[m] - p[m].mean()) + t[m].mean()
            below = np.log(softening) + fitted / softening
            log = torch.where(fitted > 0, torch.log(fitted.clamp(min=0) + softening), below)
            parts.append((log - torch.log(t[m] + softening)).abs())
    return torch.cat(parts).mean()


def torch_gradient_matching(prediction, target, mask):
    difference = torch.stack(
        [
            normalise(p, m) - normalise(t, m) if m.any() else torch.zeros_like(p)
            for p, t, m in zip(prediction, target, mask, strict=True)
        ]
    )
    total = torch.zeros((), dtype=torch.float64)
    for step in (1, 2, 4, 8):
        d, m = difference[:, ::step, ::step], mask[:, ::step, ::step]
        for axis in (1, 2):
            size = d.shape[axis]
            both = m.narrow(axis, 1, size - 1) & m.narrow(axis, 0, size - 1)
            slopes = d.narrow(axis, 1, size - 1) - d.narrow(axis, 0, size - 1)
            total = total + slopes[both].abs().sum() / max(int(m.sum()), 1)
    return total


def torch_depth_anything(prediction, target, mask):
    maps = prediction, target, mask
    return torch_affine_invariant(*maps) + 2 * torch_gradient_matching(*maps)


LOSSES = {
    "silog": (silog_loss, torch_silog),
    "affine": (affine_invariant_loss, torch_affine_invariant),
    "trimmed": (partial(affine_invariant_loss, trim=0.1), partial(torch_affine_invariant, trim=0.1)),
    "least squares": (least_squares_affine_invariant_loss, torch_least_squares),
    "aligned": (aligned_l1_loss, torch_aligned_l1),
    "aligned log": (aligned_log_loss, torch_aligned_log),
    "gradients": (gradient_matching_loss, torch_gradient_matching),
    "V2": (depth_anything_loss, torch_depth_anything),
}
COMPILED = {name: jax.jit(jax.value_and_grad(loss)) for name, (loss, _) in LOSSES.items()}


def errors(loss, maps, mask):
    """Relative errors of the value, and of each entry of the gradient to its largest."""
    wide = torch.tensor(maps, dtype=torch.float64, requires_grad=True)
    expected = LOSSES[loss][1](wide[0], wide[1], torch.tensor(mask))
    (expected_gradient,) = torch.autograd.grad(expected, wide)
    expected_gradient = expected_gradient[0].numpy()
    value, gradient = COMPILED[loss](maps[0], maps[1], mask)
    value_error = abs(float(value) - expected.item()) / expected.item()
    error = np.abs(gradient - expected_gradient) / np.abs(expected_gradient).max()
    print(f"relative error: value {value_error:.1e}, gradient {error.max():.1e}")
    return value_error, error


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("share", [0.05, 0.5, 1.1])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient(loss, share, seed):
    random = np.random.default_rng(seed)
    maps = random.uniform(0.5, 80, (2, *SHAPE)).astype(np.float32)
    mask = random.random(SHAPE) < share
    mask[1] &= seed != 0  # one image without a valid pixel
    value, gradient = errors(loss, maps, mask)
    assert value < 1e-5
    assert gradient.max() < 1e-5


@pytest.mark.parametrize("loss", ["silog", "affine", "least squares", "gradients"])
def test_full_size(loss):
    """Sums over half a million pixels, in float32; a prediction near its target, as in training.

    Of so many absolute values one or two are zero to the last digit. Their slope may come out with the other sign,
    which is seen at that pixel, its neighbour and the median.
    """
    random = np.random.default_rng(4)
    y, x = np.mgrid[:518, :518] / 518
    target = 1 + np.stack([np.sin(9 * x) * y + (x > y), 5 * x * y + (y > 0.3)])
    maps = np.stack([3 * target + 0.3 * random.normal(size=target.shape) + 20, target + 0.5]).astype(np.float32)
    value, gradient = errors(loss, maps, random.random(target.shape) < 0.8)
    assert value < 1e-5
    assert (gradient > 1e-5).sum() <= (6 if loss in ("affine", "gradients") else 0)


@pytest.mark.parametrize("noise", [0.3, 0.7, 3])
def test_feature_alignment(noise):
    random = np.random.default_rng(1)
    frozen = random.normal(size=(2, 37, 48)).astype(np.float32)
    amount = noise * random.random((2, 37, 1), np.float32)
    features = frozen + amount * random.normal(size=frozen.shape).astype(np.float32)
    wide = torch.tensor(features, dtype=torch.float64, requires_grad=True)
    cosine = torch.nn.functional.cosine_similarity(wide, torch.tensor(frozen, dtype=torch.float64), dim=-1)
    expected = (1 - cosine[cosine <= 0.85]).mean() if (cosine <= 0.85).any() else 0 * cosine.sum()
    (expected_gradient,) = torch.autograd.grad(expected, wide)
    value, gradient = jax.jit(jax.value_and_grad(feature_alignment_loss))(features, frozen)
    size = max(float(expected_gradient.abs().max()), 1e-30)
    error = np.abs(gradient - expected_gradient.numpy()).max() / size
    print(f"{int((cosine <= 0.85).sum())} tokens; value {float(value):.4f}, gradient's relative error {error:.1e}")
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    assert error < 1e-5
