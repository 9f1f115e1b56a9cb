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
# This notebook is for research in JAX: gradients, features, `vmap`, and a loss and a training state of your own. It
# uses `tiny`, the checkpoint that comes with dajax, so it downloads nothing and a CPU is enough. For real depth set
# `MODEL` to `"small"`; nothing else changes.

# %% [markdown]
# ## Install
#
# If dajax is missing, this cell installs it from `SOURCE`: the address of its repository (`git+https://...`), a
# wheel, or a folder, such as the checkout that contains this notebook. Colab has no checkout: set `SOURCE` first.

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
# `params` is a nested dict, and the model holds none of it. `depth` below takes params and pixels and returns a depth
# map: inverse depth without a unit, bigger is nearer.


# %%
@jax.jit
def depth(params, pixels):
    return model.apply({"params": params}, pixels).predicted_depth


def show(images, titles, cmap="Spectral_r"):
    _, axes = plt.subplots(1, len(images), figsize=(4 * len(images), 3.2), layout="constrained", squeeze=False)
    for axis, image, title in zip(axes[0], images, titles):
        axis.imshow(image, cmap=cmap)
        axis.set_title(title)
        axis.set_axis_off()
    plt.show()


before = depth(params, pixels)
show([image, before[0]], ["Image", "Inverse depth"])

# %% [markdown]
# ## The gradient of depth with respect to the image
#
# The gradient shows what the network looks at: how strongly each pixel changes the depth in the middle of the image.


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
# This cell estimates sixteen noisy copies of the image at once. Where their depth maps disagree, the estimate is
# uncertain. (Noise is only one way to ask.)

# %%
keys = jax.random.split(jax.random.key(0), 16)
noisy = jax.vmap(lambda key: depth(params, pixels + 0.2 * jax.random.normal(key, pixels.shape))[0])(keys)
show([before[0], noisy.std(0)], ["Inverse depth", "Deviation under noise"], cmap="magma")

# %% [markdown]
# ## Features for a linear probe
#
# `output_hidden_states=True` gives the encoder's tokens before the first layer and after each layer: a class token,
# and one token for each patch of 14x14 pixels. How much about depth can a linear function read from them? Synthetic
# scenes have exact answers. The target is each patch's inverse depth, normalised for each scene, on scenes that the
# probe has not seen. (A probe reads little from `tiny`, which keeps most of what it knows in its head.)

# %%
from dajax.training import render_scenes

taken = render_scenes(7, range(120), size=(168, 168))
as_they_are = dajax.DepthImageProcessor.from_pretrained(MODEL, input_size=168)
inputs = np.concatenate([as_they_are(image)["pixel_values"] for image in taken.image])
rows = inputs.shape[1] // 14


def means_of_patches(values):
    return values.reshape(len(values), rows, 14, rows, 14).mean((2, 4)).reshape(len(values), -1)


@jax.jit
def tokens(pixels):
    states = model.apply({"params": params}, pixels, output_hidden_states=True).hidden_states
    return [jax.nn.standardize(state[:, 1:]) for state in states]


layers = [np.concatenate(parts) for parts in zip(*(tokens(inputs[i : i + 20]) for i in range(0, len(inputs), 20)))]
inverse = means_of_patches(np.where(taken.valid, 1 / np.maximum(taken.depth, 0.1), 0))  # 0 in the sky
target = (inverse - inverse.mean(1, keepdims=True)) / inverse.std(1, keepdims=True)


def explained_variance(features):
    """Fit a ridge regression on two thirds of the scenes; return how much variance it explains on the others."""
    split = len(features) * 2 // 3
    (x, new), (y, expected) = np.split(features, [split]), np.split(target, [split])
    weights = np.linalg.solve(
        np.einsum("npi,npj->ij", x, x) + 1e-3 * y.size * np.eye(x.shape[-1]), np.einsum("npi,np->i", x, y)
    )
    return 1 - np.square(expected - new @ weights).mean() / expected.var()


explained = [explained_variance(layer.astype(np.float64)) for layer in layers]
plt.plot(explained, marker="o")
plt.xlabel("layer (0: patches and positions)")
plt.ylabel("variance of inverse depth explained")
plt.ylim(min(0, *explained), 1)
plt.title("What a linear function reads from the tokens")
plt.show()

# %% [markdown]
# ## A loss and a training state of your own
#
# You can train without `dajax.training`: the model is a function, `optax` has optimizers, and a state is whatever you
# put into it. Here the loss asks that a mirrored image has the mirrored depth map, which needs no labels.

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
print(f"asymmetry in standard deviations: {losses[0]:.4f} at first, {losses[-1]:.4f} after {len(losses)} steps")
