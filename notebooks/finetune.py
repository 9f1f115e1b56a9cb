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
# # Fine-tuning, in minutes on a CPU
#
# This notebook turns a relative model (without a unit) into a metric one (metres), as the authors made their metric
# models: it takes the encoder of a trained checkpoint, adds a fresh neck and head, and trains with the
# scale-invariant logarithmic loss. The data are synthetic scenes, whose depth is exact. The checkpoint is `tiny`,
# which comes with dajax, so nothing is downloaded.
#
# The numbers below make a demonstration: a hundred steps teach the new head roughly how large rooms are, and no more.
# For a useful model take a GPU, `start="small"`, `size=518`, a larger batch and 100,000 steps. `dajax train
# settings.toml` does the same without a notebook.

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
if importlib.util.find_spec("orbax") is None:
    # %pip install --quiet orbax-checkpoint
    importlib.invalidate_caches()

# %% [markdown]
# ## Settings
#
# They have the same names as in the TOML file of `dajax train`.

# %%
import dajax
from dajax.training import DataSettings, ModelSettings, OptimizerSettings, TrainSettings

dajax.enable_compilation_cache()

settings = TrainSettings(
    output="finetuned",
    steps=100,
    loss="silog",
    save_every=50,
    validate_every=50,
    ema_decay=0.9,
    model=ModelSettings(start="tiny", encoder_only=True, config={"depth_estimation_type": "metric", "max_depth": 80}),
    data=DataSettings(size=84, count=160, batch_size=8, validation=16),
    optimizer=OptimizerSettings(learning_rate=3e-3, encoder_learning_rate=3e-4, warmup=20, clip_norm=1.0),
)

# %% [markdown]
# ## Train
#
# If you stop this cell and run it again, training goes on from the newest saved state and ends with the same params.

# %%
from dajax.training import train

folder = train(settings, progress=False)
folder

# %%
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

from dajax.training import read_log

rows = list(read_log("finetuned/log.csv"))
plt.plot([row["step"] for row in rows], [row["loss"] for row in rows])
plt.xlabel("step")
plt.ylabel("scale-invariant logarithmic loss")
plt.show()

# %% [markdown]
# These are scores on held-out scenes, and what some of them look like: image, truth, prediction.

# %%
for row in read_log("finetuned/validation.csv"):
    print(f"after {row['step']:.0f} steps: AbsRel {row['abs_rel']:.2f}, within a factor of 1.25: {row['delta1']:.0%}")
Image.open(sorted(Path("finetuned/images").glob("*.png"))[-1])

# %% [markdown]
# ## Use it
#
# The folder has Transformers' layout, so dajax and Transformers open it.

# %%
from dajax.evaluation import depth_metrics
from dajax.training import render_scenes

taken = render_scenes(12345, [0], size=(84, 84))
metres = dajax.DepthEstimator(folder)(taken.image[0])
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for axis, image, title in zip(axes, (taken.image[0], taken.depth[0], metres), ("Image", "True metres", "Estimated")):
    drawn = axis.imshow(image, cmap="Spectral", vmin=0, vmax=float(taken.depth[0].max()))
    axis.set_title(title)
    axis.set_axis_off()
figure.colorbar(drawn, ax=axes, label="metres", shrink=0.8)
plt.show()
depth_metrics(metres, taken.depth[0], taken.valid[0])
