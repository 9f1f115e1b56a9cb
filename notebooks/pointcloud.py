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
# # From an image to points in space
#
# Metric depth and a camera give a point cloud that viewers open. Relative depth also needs a few points whose
# distance is known. The scene here is synthetic, so the result can be compared with the truth.

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
# ## An image
#
# The cell draws a synthetic scene with its true depth in metres and its camera. For an image of your own,
# `Intrinsics.of_exif("image.jpg")` reads the focal length. If the file has none, give the field of view.

# %%
import numpy as np

import dajax
from dajax.geometry import Intrinsics
from dajax.training import render_scenes

dajax.enable_compilation_cache()
taken = render_scenes(12345, [0], size=(168, 224))
image, true = taken.image[0], taken.depth[0]
matrix = taken.intrinsics[0]
camera = Intrinsics(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
camera

# %% [markdown]
# ## Relative depth
#
# `tiny` gives inverse depth up to an unknown scale and shift: it tells near from far, but not metres.

# %%
inverse = dajax.DepthEstimator("tiny")(image)
dajax.show(inverse, image)

# %% [markdown]
# ## Metres from a few points
#
# Suppose that someone measured forty points with a laser or a tape, a fifth of them wrongly. RANSAC finds those.

# %%
from dajax.geometry import fit_scale_and_shift

rng = np.random.default_rng(0)
rows, columns = rng.integers(0, 168, 40), rng.integers(0, 224, 40)
measured = true[rows, columns] * np.where(rng.uniform(size=40) < 0.2, rng.uniform(1.5, 4, 40), 1)
pixels = np.stack([columns + 0.5, rows + 0.5], -1)
fit = fit_scale_and_shift(inverse, pixels, measured, ransac=True, tolerance=0.2)
metres = fit.metres(inverse, max_depth=20)
print(f"{fit.inliers.sum()} of 40 points agree; median error {np.median(np.abs(metres - true) / true):.0%}")

# %% [markdown]
# ## Points and a surface
#
# A metric model (`"small-metric-indoor"`) gives metres at once. The surface is cut where depth jumps, because the
# network estimates a blend of near and far there.

# %%
from dajax.geometry import depth_edges, normals, unproject, write_mesh, write_points

points = unproject(metres.astype(np.float32), camera)  # right, down, ahead, in metres
write_points("room.ply", points, image)
write_mesh("room.glb", points, image, mask=~depth_edges(metres, ratio=1.2))

# %% [markdown]
# `room.glb` opens in any viewer of 3D models. The figure shows the points from above and from the side, estimated and
# true.

# %%
import matplotlib.pyplot as plt

exact = unproject(true, camera)
figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
for row, (label, cloud) in zip(axes, (("Estimated", points), ("True", exact))):
    for axis, (i, j, name) in zip(row, ((0, 2, "from above"), (2, 1, "from the side"))):
        axis.scatter(cloud[..., i].ravel(), cloud[..., j].ravel(), s=2, c=image.reshape(-1, 3) / 255)
        axis.set_title(f"{label}, {name}")
        axis.set_aspect("equal")
        if j == 1:
            axis.invert_yaxis()  # down is down
plt.show()

# %% [markdown]
# ## Surface normals, and where not to trust
#
# Normals come from neighbouring points. A mirrored image should have the mirrored depth map. Where it has not, the
# network is uncertain.

# %%
from dajax.inference import flip_disagreement

_, doubt = flip_disagreement(dajax.DepthEstimator("tiny"), image)
images = {
    "Normals, estimated": (normals(points) + 1) / 2,
    "Normals, true": (normals(exact) + 1) / 2,
    "Disagreement with the mirror image": doubt,
    "Depth edges": depth_edges(metres, ratio=1.2),
}
figure, axes = plt.subplots(1, 4, figsize=(14, 3), layout="constrained")
for axis, (title, image) in zip(axes, images.items()):
    axis.imshow(image, cmap="magma")
    axis.set_title(title)
    axis.set_axis_off()
plt.show()
