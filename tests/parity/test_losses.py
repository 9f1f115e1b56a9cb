"""The losses against float64 formulas in PyTorch, gradients included."""

import jax
import numpy as np
import pytest
import torch

from dajax.losses import affine_invariant_loss, silog_loss

SHAPE = (3, 17, 19)


def torch_silog(prediction, target, mask):
    g = torch.log(target[mask]) - torch.log(prediction[mask])
    return torch.sqrt(torch.pow(g, 2).mean() - 0.5 * torch.pow(g.mean(), 2))


def torch_affine_invariant(prediction, target, mask):
    def normalise(values):
        centred = values - torch.median(values)
        return centred / centred.abs().mean()

    parts = [
        (normalise(p[m]) - normalise(t[m])).abs() for p, t, m in zip(prediction, target, mask, strict=True) if m.any()
    ]
    return torch.cat(parts).mean()


LOSSES = {
    "silog": (jax.jit(jax.value_and_grad(silog_loss)), torch_silog),
    "affine": (jax.jit(jax.value_and_grad(affine_invariant_loss)), torch_affine_invariant),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("share", [0.05, 0.5, 1.1])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient(loss, share, seed):
    function, reference = LOSSES[loss]
    random = np.random.default_rng(seed)
    maps = random.uniform(0.5, 80, (2, *SHAPE)).astype(np.float32)
    mask = random.random(SHAPE) < share
    mask[1] &= seed != 0  # one picture without a valid pixel

    wide = torch.tensor(maps, dtype=torch.float64, requires_grad=True)
    expected = reference(wide[0], wide[1], torch.tensor(mask))
    (expected_gradient,) = torch.autograd.grad(expected, wide)
    expected_gradient = expected_gradient[0].numpy()

    value, gradient = function(maps[0], maps[1], mask)
    value_error = abs(float(value) - expected.item()) / expected.item()
    error = np.abs(gradient - expected_gradient).max() / np.abs(expected_gradient).max()
    print(f"relative error: value {value_error:.1e}, gradient {error:.1e}")
    assert value_error < 1e-5
    assert error < 1e-5
