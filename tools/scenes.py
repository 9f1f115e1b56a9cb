"""Makes the image and the table of docs/scenes.md: python tools/scenes.py [path of the image]."""

import os
import re
import sys
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from dajax.depth_maps.colormap import colorize
from dajax.training import render_scenes, sample_scene
from dajax.training.data.furniture import CAN

SEED, COUNT, SIZE = 0, 512, (168, 168)
SHOWN, COLUMNS, SHOWN_SIZE = 48, 8, (126, 126)
PAGE = Path(__file__).parents[1] / "docs" / "scenes.md"
HEAD = "| | all | rooms | outdoors |\n|---|---|---|---|\n"


def page_of(taken, columns):
    """Return a page of images, each with its depth map at the right: red is near, and invalid pixels are black."""
    cells = []
    for image, depth, valid in zip(taken.image, taken.depth, taken.valid, strict=True):
        nearness = np.where(valid, 1 / np.maximum(depth, 1e-3), np.nan)
        cells.append(np.concatenate([image, colorize(nearness, "Spectral_r")], 1))
    return np.concatenate([np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)])


def row(name, figure, taken, parts, form):
    return f"| {name} | " + " | ".join(form.format(figure(*(a[part] for a in taken))) for part in parts) + " |\n"


def jumps(image, depth, valid):
    """Return the percentage of neighbours in a row whose depths differ by more than 10 %; the sky is far away."""
    far = np.where(valid, depth, 1e6)
    left, right = far[..., :-1], far[..., 1:]
    return 100 * (np.maximum(left, right) > 1.1 * np.minimum(left, right)).mean()


def table(taken, indoor, solids):
    everything = (*taken[:3], solids)
    parts = [np.ones(len(indoor), bool), indoor, ~indoor]
    rows = [row("scenes", lambda image, *_: len(image), everything, parts, "{}")]
    rows.append(row("without depth (sky, windows, over 80 m), % of pixels", lambda i, d, v, s: 100 * (1 - v.mean()),
                    everything, parts, "{:.1f}"))  # fmt: skip
    for percentile in (1, 10, 50, 90, 99):
        name = f"depth, percentile {percentile}, m"
        rows.append(row(name, lambda i, d, v, s, p=percentile: np.percentile(d[v], p), everything, parts, "{:.2f}"))
    rows.append(row("occlusions: neighbours in a row over 10 % apart, %", lambda i, d, v, s: jumps(i, d, v), everything,
                    parts, "{:.1f}"))  # fmt: skip
    rows.append(row("solids, mean", lambda i, d, v, s: s.mean(), everything, parts, "{:.1f}"))
    rows.append(row("brightness, mean of 255", lambda i, d, v, s: i.mean(), everything, parts, "{:.0f}"))
    return HEAD + "".join(rows)


def main(image):
    shown = render_scenes(SEED, range(SHOWN), SHOWN_SIZE)
    Image.fromarray(page_of(shown, COLUMNS)).save(image, quality=82, optimize=True)
    render_scenes(SEED, [0], SIZE)  # compiles
    start, used = time.perf_counter(), time.process_time()
    taken = render_scenes(SEED, range(COUNT), SIZE)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(SEED), i))(np.arange(COUNT))
    drawn = jax.device_get(jax.jit(jax.vmap(sample_scene))(keys))
    text = table(taken, drawn.indoor, drawn.solids.ends[:, CAN])
    each = 1000 * used / COUNT
    print(f"{60 * COUNT / seconds:.0f} scenes a minute on {os.cpu_count()} cores ({each:.0f} ms of CPU each)")
    page = PAGE.read_text()
    PAGE.write_text(re.sub(re.escape(HEAD) + r"(\|.*\n)*", lambda _: text, page))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE.parent / "images" / "scenes.jpg")
