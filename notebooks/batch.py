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
# # From a folder of images to output shards of depth maps
#
# This notebook runs a job over many images. It shows what the job writes, what its manifest says, and what happens
# when it is stopped. `dajax batch SRC OUT` on the command line does the same. The model is `tiny`, which comes with
# dajax; use `"small"` for real depth.

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

# %% [markdown]
# ## Images
#
# The cell draws sixty synthetic scenes in three folders, and one file that is not an image. You can use your own
# folder.

# %%
from pathlib import Path

from PIL import Image

import dajax
from dajax.training import render_scenes

dajax.enable_compilation_cache()
images = Path("images")
for number, image in enumerate(render_scenes(5, range(60), size=(126, 168)).image):
    folder = images / f"camera{number % 3}"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{number:04}.jpg", quality=92)
(images / "camera0" / "broken.jpg").write_bytes(b"not an image")
len(list(images.rglob("*.jpg")))

# %% [markdown]
# ## A job that is stopped
#
# Each output shard gets twenty images. The cell stops the job after the first output shard. A signal, a machine that
# goes away, or `kill -9` would have the same effect.

# %%
import threading

from dajax.batch import BatchSettings, read_manifest, read_rejects, run_batch

estimator = dajax.DepthEstimator("tiny", batch_size=4)
settings = BatchSettings(formats=("npz", "color"), shards=20)
stop = threading.Event()


def watch():
    while not list(Path("depth").glob("*.tar")):
        stop.wait(0.02)
    stop.set()


threading.Thread(target=watch, daemon=True).start()
first = run_batch(estimator, images, "depth", settings, model="tiny", progress=False, stop=stop)
print(f"interrupted: {first.interrupted}; {first.done} done, {first.rejected} left out, of {first.items}")

# %% [markdown]
# ## The same call goes on
#
# The second run keeps what is finished, and does again what was unfinished when the job was stopped.

# %%
second = run_batch(estimator, images, "depth", settings, model="tiny", progress=False)
print(f"{second.earlier} by the first run, {second.done} done, {second.rejected} left out, of {second.items}")

# %% [markdown]
# ## The manifest
#
# The manifest has a row for every image of the source: done, with a digest of what was written, or rejected, with the
# reason.

# %%
rows = read_manifest("depth")
for key in list(rows)[:3]:
    row = rows[key]
    print(key, row.status, row.output, row.shape, row.sha256[0][:12])
for row in read_rejects("depth"):
    print(row.key, row.status, row.reason)

# %% [markdown]
# ## What is in an output shard
#
# An output shard has WebDataset's layout: `KEY.depth.npz`, `KEY.depth.png` and `KEY.json` for each image.

# %%
import io
import tarfile

import matplotlib.pyplot as plt
import numpy as np

with tarfile.open(sorted(Path("depth").glob("*.tar"))[0]) as shard:
    files = {member.name: shard.extractfile(member).read() for member in shard}
print(len(files), "files, such as", *list(files)[:3])


def show(names):
    _, axes = plt.subplots(2, len(names), figsize=(3 * len(names), 4.6), layout="constrained")
    for (upper, lower), name in zip(axes.T, names):
        with np.load(io.BytesIO(files[f"{name}.depth.npz"])) as stored:
            depth, units = stored["depth"], str(stored["units"])
        upper.imshow(Image.open(images / f"{name}.jpg"))
        lower.imshow(depth, cmap="Spectral_r")
        upper.set_title(name)
        upper.set_axis_off()
        lower.set_axis_off()
    plt.suptitle(units)
    plt.show()


names = sorted({name.partition(".")[0] for name in files})
show(names[:4])

# %% [markdown]
# ## Verify
#
# This compares what was written with the manifest. It records what is missing or has changed, and the next run makes
# that again.

# %%
from dajax.batch import verify

last = sorted(Path("depth").glob("*.tar"))[-1]
last.write_bytes(last.read_bytes()[:1000])
found = verify("depth")
print(f"{found.whole} whole, {len(found.lost)} lost, {found.rejected} left out: {next(iter(found.lost.values()))}")
again = run_batch(estimator, images, "depth", settings, model="tiny", progress=False)
print(f"made again: {again.done}; now {len(verify('depth').lost)} are lost")
show(names[4:8])
