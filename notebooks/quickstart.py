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
# # Depth from one image
#
# This notebook takes an image and shows its depth map: how near or far everything in it is. It uses Depth Anything V2
# in JAX. It runs in Colab and in Jupyter, with a GPU, a TPU or neither.

# %% [markdown]
# ## Install
#
# If dajax is missing, this cell installs it from `SOURCE`: the address of its repository (`git+https://...`), a
# wheel, or a folder, such as the checkout that contains this notebook. Colab has no checkout: set `SOURCE` first. The
# name of the package is `depth-anything-jax`; `pip install dajax` would install another, older project. Nothing that
# Colab preinstalls is replaced.

# %%
import importlib.util

SOURCE = ".."  # @param {type:"string"}

if importlib.util.find_spec("dajax") is None:
    # %pip install --quiet $SOURCE
    importlib.invalidate_caches()

# %% [markdown]
# ## What it runs on

# %%
import jax

print("JAX", jax.__version__, "on", ", ".join(device.device_kind for device in jax.devices()))
if jax.default_backend() == "cpu":
    print("This is fine for a few images. In Colab, Runtime > Change runtime type has accelerators.")

# %% [markdown]
# ## An image
#
# In Colab a button appears: choose an image of your own, or cancel to use the image that comes with dajax.

# %%
import io
from importlib.resources import files as package_files

from PIL import Image, ImageOps

try:
    from google.colab import files as colab

    uploaded = colab.upload()
except ImportError:  # not in Colab
    uploaded = {}

if uploaded:
    image = Image.open(io.BytesIO(next(iter(uploaded.values()))))
else:
    image = Image.open(package_files("dajax").joinpath("assets/scene.jpg"))
image = ImageOps.exif_transpose(image)  # phones store the orientation beside the pixels
image

# %% [markdown]
# ## Its depth map
#
# The weights (100 MB for `small`) are downloaded once. `base` and `large` are better and slower. The first call
# compiles a program for this shape of image; later calls use it again.

# %%
import dajax

dajax.enable_compilation_cache()
pipe = dajax.pipeline("depth-estimation", model="small")
result = pipe(image)

# %%
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
left.imshow(image)
left.set_title("Image")
shown = right.imshow(result["predicted_depth"], cmap="Spectral_r")
right.set_title("Inverse depth")
figure.colorbar(shown, ax=right, label="without a unit: bigger is nearer", shrink=0.8)
for axes in (left, right):
    axes.set_axis_off()
plt.show()

# %% [markdown]
# `result["predicted_depth"]` is the depth map: float32, in the size of the image. `result["depth"]` shows it as an
# 8-bit greyscale image.

# %%
result["depth"].save("depth.png")
depth = result["predicted_depth"]
print(depth.shape, depth.dtype, "from", depth.min(), "to", depth.max())

# %% [markdown]
# ## In metres
#
# Metric models estimate metres: `small-metric-indoor` up to 20 m, `small-metric-outdoor` up to 80 m.

# %%
metres = dajax.pipeline("depth-estimation", model="small-metric-indoor")(image)["predicted_depth"]
height, width = metres.shape
print(f"the middle of the image is {metres[height // 2, width // 2]:.2f} m away")

# %% [markdown]
# ## The function underneath
#
# The model is a Flax Linen module, and `params` is a plain nested dict, so everything in JAX works on them. This cell
# computes how much each pixel of the image changes the depth in the middle.

# %%
import jax.numpy as jnp

model, params = dajax.load("small")
pixels = jnp.asarray(dajax.DepthImageProcessor.from_pretrained("small", input_size=252)(image)["pixel_values"])


@jax.jit
@jax.grad
def influence(pixels):
    depth = model.apply({"params": params}, pixels).predicted_depth
    return depth[0, depth.shape[1] // 2, depth.shape[2] // 2]


strength = jnp.abs(influence(pixels))[0].sum(-1)
plt.imshow(strength, cmap="magma", vmax=float(jnp.quantile(strength, 0.99)))
plt.title("What the depth in the middle depends on")
plt.axis("off")
plt.show()
