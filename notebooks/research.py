# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Depth as a function
#
# For research in JAX: gradients, features, `vmap`, a loss and a training state of one's own. It uses `tiny`, the
# checkpoint that comes with dajax, so nothing is downloaded and a CPU is enough. Make `MODEL` `"small"` for the real
# thing: everything else stays.

# %% [markdown]
# ## Install
#
# `SOURCE` is where dajax is installed from if it is not there yet: the address of its repository (`git+https://...`), a
# wheel, or a folder, such as the checkout that this notebook lies in. In Colab there is none: set it first.

# %%
import importlib.util

SOURCE = ".."  # @param {type:"string"}

if importlib.util.find_spec("dajax") is None:
    # %pip install --quiet $SOURCE
    importlib.invalidate_caches()

# %%
from importlib.resources import files

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import dajax

MODEL = "tiny"
model, params = dajax.load(MODEL)
processor = dajax.DepthImageProcessor.from_pretrained(MODEL)
image = Image.open(files("dajax").joinpath("assets/scene.jpg"))
pixels = jnp.asarray(processor(image)["pixel_values"])
sum(leaf.size for leaf in jax.tree.leaves(params)), pixels.shape

# %% [markdown]
# ## A pure function
#
# `params` is a nested dict, the model holds none of it. `depth` below takes both and returns a map: inverse depth
# without a unit, bigger is nearer.


# %%
@jax.jit
def depth(params, pixels):
    return model.apply({"params": params}, pixels).predicted_depth


def show(maps, titles, cmap="Spectral_r"):
    _, axes = plt.subplots(1, len(maps), figsize=(4 * len(maps), 3.2), layout="constrained", squeeze=False)
    for axis, image, title in zip(axes[0], maps, titles):
        axis.imshow(image, cmap=cmap)
        axis.set_title(title)
        axis.set_axis_off()
    plt.show()


before = depth(params, pixels)
show([image, before[0]], ["Image", "Inverse depth"])

# %% [markdown]
# ## The gradient of depth with respect to the image
#
# What the network looks at: how strongly each pixel moves the depth in the middle of the image.


# %%
@jax.jit
@jax.grad
def influence(pixels):
    found = depth(params, pixels)
    return found[0, found.shape[1] // 2, found.shape[2] // 2]


strength = jnp.abs(influence(pixels))[0].sum(-1)
show([image, jnp.minimum(strength, jnp.quantile(strength, 0.99))], ["Image", "Influence on the middle"], cmap="magma")

# %% [markdown]
# ## How sure is it? `vmap` over perturbations
#
# Sixteen noisy copies of the image at once; where their maps disagree, depth rests on little. (Noise is one way of
# many to ask.)

# %%
keys = jax.random.split(jax.random.key(0), 16)
noisy = jax.vmap(lambda key: depth(params, pixels + 0.2 * jax.random.normal(key, pixels.shape))[0])(keys)
show([before[0], noisy.std(0)], ["Inverse depth", "Deviation under noise"], cmap="magma")

# %% [markdown]
# ## Features for a linear probe
#
# `output_hidden_states=True` gives the encoder's tokens: a class token and one for each patch of 14x14 pixels, before
# the first layer and after each. How much about depth can be read off them by a linear map? Synthetic scenes have exact
# answers: each patch's inverse depth, in deviations from its scene's mean, on scenes that the probe has not seen. (Of
# `tiny` it is little: most of what that knows is in its head.)

# %%
from dajax.training import scenes

taken = scenes(7, range(120), size=(168, 168))
as_they_are = dajax.DepthImageProcessor.from_pretrained(MODEL, input_size=168)
inputs = np.concatenate([as_they_are(image)["pixel_values"] for image in taken.image])
rows = inputs.shape[1] // 14


def of_patches(maps):
    return maps.reshape(len(maps), rows, 14, rows, 14).mean((2, 4)).reshape(len(maps), -1)


@jax.jit
def tokens(pixels):
    states = model.apply({"params": params}, pixels, output_hidden_states=True).hidden_states
    return [jax.nn.standardize(state[:, 1:]) for state in states]


layers = [np.concatenate(parts) for parts in zip(*(tokens(inputs[i : i + 20]) for i in range(0, len(inputs), 20)))]
inverse = of_patches(np.where(taken.valid, 1 / np.maximum(taken.depth, 0.1), 0))  # of the sky: 0
target = (inverse - inverse.mean(1, keepdims=True)) / inverse.std(1, keepdims=True)


def share_explained(features):
    """Of the variance of inverse depth, on the last third of the scenes, by ridge regression on the others."""
    split = len(features) * 2 // 3
    (x, new), (y, expected) = np.split(features, [split]), np.split(target, [split])
    weights = np.linalg.solve(
        np.einsum("npi,npj->ij", x, x) + 1e-3 * y.size * np.eye(x.shape[-1]), np.einsum("npi,np->i", x, y)
    )
    return 1 - np.square(expected - new @ weights).mean() / expected.var()


explained = [share_explained(layer.astype(np.float64)) for layer in layers]
plt.plot(explained, marker="o")
plt.xlabel("layer (0: patches and positions)")
plt.ylabel("variance of inverse depth explained")
plt.ylim(min(0, *explained), 1)
plt.title("What a linear map reads off the tokens")
plt.show()

# %% [markdown]
# ## A loss and a training state of one's own
#
# Nothing of `dajax.training` is needed to train: the model is a function, `optax` has optimizers, and a state is
# whatever you put into it. Here the loss asks that a mirrored image has the mirrored map, which needs no labels.

# %%
from typing import Any, NamedTuple

import optax


class State(NamedTuple):
    params: Any
    optimizer: Any
    seen: Any


optimizer = optax.adam(1e-5)


def asymmetry(params, pixels):
    apart = depth(params, pixels) - depth(params, pixels[:, :, ::-1])[:, :, ::-1]
    return jnp.abs(apart).mean() / before.std()


@jax.jit
def step(state, pixels):
    loss, gradients = jax.value_and_grad(asymmetry)(state.params, pixels)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    return State(optax.apply_updates(state.params, updates), optimizer_state, state.seen + len(pixels)), loss


trained = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
state = State(trained, optimizer.init(trained), 0)
losses = []
for _ in range(12):
    state, loss = step(state, pixels)
    losses.append(float(loss))
print(f"asymmetry, of the map's deviation: {losses[0]:.4f} at first, {losses[-1]:.4f} after {len(losses)} steps")
