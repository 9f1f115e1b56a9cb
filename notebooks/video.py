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
# # Steady depth of a video
#
# A camera moves through a synthetic room, and `dajax.video` makes a video of the depth. It has the same number of
# frames at the same times, and its colours keep their meaning. `dajax video IN OUT` on the command line does the
# same. The model is `tiny`, which comes with dajax; use `"small"` for real depth.

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
if importlib.util.find_spec("av") is None:
    # %pip install --quiet av opencv-python-headless
    importlib.invalidate_caches()

# %% [markdown]
# ## A video
#
# The cell draws forty frames of a synthetic scene from a camera that moves to the right. The frames come at uneven
# times, as they do from phones, and the depth video will have the same times. You can use your own video.

# %%
from fractions import Fraction

import av
import jax
import numpy as np

import dajax
from dajax.training import render_scene, sample_scene

dajax.enable_compilation_cache()
scene = sample_scene(jax.random.key(12))


@jax.jit
def image(time):
    camera = scene.camera
    place = camera.position + time * (0.02 * camera.axes[0] + 0.01 * camera.axes[2])
    return render_scene(scene._replace(camera=camera._replace(position=place)), size=(168, 224)).image


times = np.cumsum(np.random.default_rng(0).integers(20, 60, 40))  # milliseconds
with av.open("video.mp4", "w") as video:
    stream = video.add_stream("libx264", rate=25, options={"crf": "12"})
    stream.height, stream.width, stream.pix_fmt = 168, 224, "yuv420p"
    stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
    for number, at in enumerate(times):
        frame = av.VideoFrame.from_ndarray(np.asarray(image(number - 20.0)), format="rgb24")
        frame.pts = int(at)
        video.mux(stream.encode(frame))
    video.mux(stream.encode(None))

# %% [markdown]
# ## Its depth
#
# The coloured video shows each frame beside its depth map. `raw="ffv1"` also keeps the values, in 16 bits and without
# further loss.

# %%
from dajax.video import VideoSettings, depth_video

estimator = dajax.DepthEstimator("tiny", batch_size=8)
report = depth_video(estimator, "video.mp4", "depth.mp4", VideoSettings(side_by_side=True, raw="ffv1"), model="tiny")
report

# %%
from PIL import Image

with av.open("depth.mp4") as video:
    shown = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
Image.fromarray(np.concatenate(shown[::13]))

# %% [markdown]
# In a notebook, `IPython.display.Video("depth.mp4", embed=True)` plays it.
#
# ## The values and their times

# %%
from dajax.video import read_depth_video

steady = list(read_depth_video("depth_depth.mkv"))
assert [round(1000 * seconds) for seconds, _ in steady] == times.tolist()
print(f"{len(steady)} frames; the last at {steady[-1][0]:.3f} s, {steady[-1][1].shape}, {steady[-1][1].dtype}")

# %% [markdown]
# ## What steadying does
#
# Both figures show one row of pixels over time: each line is one frame. On the left each frame was estimated and
# normalised on its own, as is often done. On the right the depth is steadied.

# %%
import matplotlib.pyplot as plt

from dajax.video import VideoReader, depth_of_frames

with VideoReader("video.mp4") as video:
    alone = np.stack([depth for _, depth in depth_of_frames(estimator, video, smooth=False)])
alone = (alone - alone.min((1, 2), keepdims=True)) / np.ptp(alone, axis=(1, 2), keepdims=True)
together = np.stack([depth for _, depth in steady])
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for axis, depth, title in zip(axes, (alone, together), ("Each frame on its own", "Steadied")):
    axis.imshow(depth[:, depth.shape[1] // 2], cmap="Spectral_r", aspect="auto", interpolation="nearest")
    axis.set_title(title)
    axis.set_xlabel("column")
    axis.set_ylabel("frame")
plt.show()
