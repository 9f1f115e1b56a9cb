"""The gradient of every parameter against PyTorch's, through Transformers' model with the same loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from reference import checkpoint_shapes, load_reference
from seeded import pixels, uniform, write_checkpoint
from tiny import tiny_metric_config, tiny_swiglu_config

import dajax
from dajax import DepthAnythingConfig

CASES = {
    "small": (DepthAnythingConfig.small(), (126, 154)),
    "tiny-metric": (tiny_metric_config(), (70, 84)),
    "tiny-swiglu": (tiny_swiglu_config(), (56, 70)),
}
UNUSED = ("backbone/embeddings/mask_token", "neck/fusion_0/residual_layer1/")


def deviation(gradient):
    """Of the numbers; of a single one, its size."""
    return gradient.std() if gradient.size > 1 else np.abs(gradient).max()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("small", "tiny-metric", "tiny-swiglu")],
)
def test_every_gradient(tmp_path, name):
    config, size = CASES[name]
    values = config.to_dict()
    checkpoint = write_checkpoint(tmp_path / "model", values, checkpoint_shapes(values))
    x, target = pixels(*size, batch=2), uniform("target", (2, *size)).astype(np.float32)

    reference = load_reference(checkpoint, torch.float64)
    depth = reference(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).double()).predicted_depth
    ((depth - torch.from_numpy(target)) ** 2).mean().backward()
    # Gradients in the places of weights, so that they come over as weights do.
    without = {tensor for tensor, parameter in reference.named_parameters() if parameter.grad is None}
    for parameter in reference.parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.data = gradient
    reference.float().save_pretrained(tmp_path / "gradients")
    expected = {
        path: np.asarray(leaf, np.float64)
        for path, leaf in flatten_dict(dajax.load(tmp_path / "gradients")[1], sep="/").items()
    }

    model, params = dajax.load(checkpoint)

    def loss(params):
        return jnp.square(model.apply({"params": params}, x).predicted_depth - target).mean()

    with jax.default_matmul_precision("highest"):
        found = {
            path: np.asarray(leaf) for path, leaf in flatten_dict(jax.jit(jax.grad(loss))(params), sep="/").items()
        }

    assert found.keys() == expected.keys()
    zero = {path for path, leaf in found.items() if not leaf.any()}
    assert zero == {path for path in found if path.startswith(UNUSED)}
    assert len(zero) == 5
    assert len(without) == len(zero), without
    # What is added to all keys alike moves no softmax: these gradients are zero but for rounding, and have no scale.
    errors = {}
    for path in found.keys() - zero:
        scale = deviation(expected[path.replace("attention/key/bias", "attention/query/bias")])
        errors[path] = np.abs(found[path] - expected[path]).max() / scale
    worst = max(errors, key=errors.__getitem__)
    print(f"{name}: {len(errors)} tensors, largest error {errors[worst]:.1e} of the deviation, of {worst}")
    assert errors[worst] <= 1e-3, f"{worst}: {errors[worst]:.1e} of the gradient's deviation"
