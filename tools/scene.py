"""Renders the bundled image, a ray-traced room of our own, so nobody else's licence: python tools/scene.py [path.jpg].

Unit balls, boxes and cans (upright cylinders) under affine maps, lit by the sun, the sky, a lamp and one bounce.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, GRID, BLUR = 640, 480, 3, 5  # pixels, samples along the side of one, radius of the light's filter
LOW, HIGH = np.float32([[-2.2], [0], [-2.4]]), np.float32([[2.2], [2.75], [6]])  # metres: x right, y up, z away
EYE, CENTRE, FOCAL = np.float32([[0.3], [1.42], [-1.6]]), (355, 202), 518  # pixels; a lens that keeps verticals upright
LAMP, LAMP_RGB = np.float32([[1.78], [1.62], [5.45]]), np.float32([[0.8], [0.47], [0.20]])
SUN, SUN_RGB = np.float32([[-0.76], [0.57], [0.43]]), np.float32([[9.5], [7.4], [4.8]])
SKY_RGB, HAZE_RGB = np.float32([[2.3], [2.6], [3.1]]), np.float32([[0.72], [0.64], [0.55]])
WINDOWS, PANE_Y, PANE_H, PANE_W = (1.25, 4.15), 1.6, 0.72, 0.78  # z and y of their centres in the left wall, half sizes
SHAPES = {"box": ([0, 1, 2], []), "can": ([1], [0, 2]), "ball": ([], [0, 1, 2])}  # flat axes, round axes
BOOKS = (0.55, 0.13, 0.10), (0.16, 0.26, 0.42), (0.80, 0.64, 0.34)
TABLE, OBJECTS = np.random.default_rng(1).random(4096, np.float32), []  # for noise; see add


def add(shape, centre, half, rgb, gloss=0.0, texture="plain", yaw=0.0):
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    to_unit = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) / np.reshape(half, (3, 1))
    centre, rgb = (np.float32(v).reshape(3, 1) for v in (centre, rgb))
    OBJECTS.append((*SHAPES[shape], centre, np.float32(to_unit), rgb, gloss, texture))


add("box", (LOW + HIGH) / 2, (HIGH - LOW) / 2, (1, 1, 1), 0, "room")
add("box", (-0.25, 1.75, 5.98), (0.72, 0.50, 0.025), (0.5, 0.45, 0.4), 0, "image")
add("box", (-2.14, PANE_Y - PANE_H - 0.06, 2.7), (0.10, 0.025, 2.4), (0.86, 0.83, 0.77))  # the windows' sill
for x, z, top, a, b in ((1.12, -0.5, 0.90, 0.52, 0.42), (1.05, 3.0, 0.74, 0.66, 0.44)):  # two tables
    add("box", (x, top - 0.025, z), (a, 0.025, b), (0.50, 0.27, 0.13), 0.35, "wood")
    for i, j in itertools.product((0.07 - a, a - 0.07), (0.07 - b, b - 0.07)):
        add("can", (x + i, top / 2 - 0.025, z + j), (0.032, top / 2 - 0.025, 0.032), (0.36, 0.19, 0.09))
add("can", (0.85, 0.96, -0.44), (0.055, 0.06, 0.055), (0.16, 0.36, 0.42), 0.5)  # a mug, an orange
add("can", (0.85, 1.02, -0.44), (0.048, 0.001, 0.048), (0.10, 0.045, 0.02), 0.5)
add("ball", (0.74, 0.94, -0.24), (0.04, 0.04, 0.04), (0.92, 0.42, 0.06), 0.25)
add("ball", (1.13, 0.90, 3.12), (0.14, 0.16, 0.14), (0.10, 0.36, 0.38), 0.9)  # a vase, three books, an apple
add("can", (1.13, 1.09, 3.12), (0.045, 0.06, 0.045), (0.10, 0.36, 0.38), 0.9)
for i, rgb in enumerate(BOOKS):
    add("box", (0.72, 0.763 + 0.046 * i, 2.95), (0.16, 0.023, 0.115), rgb, 0.1, "plain", (20, 6, 31)[i])
add("ball", (0.72, 0.936, 2.95), (0.058, 0.058, 0.058), (0.62, 0.10, 0.07), 0.6)
add("can", (-0.98, 0.19, 1.75), (0.34, 0.19, 0.34), (0.72, 0.47, 0.20), 0, "knit")  # on the floor
add("ball", (0.02, 0.20, 2.25), (0.20, 0.20, 0.20), (0.80, 0.20, 0.12), 0.6, "beach")
add("ball", (0.42, 0.09, 1.55), (0.09, 0.09, 0.09), (0.20, 0.38, 0.52), 0.6)
add("box", (-1.45, 0.24, 3.75), (0.30, 0.24, 0.30), (0.66, 0.44, 0.24), 0, "crate", 18)
add("box", (-1.42, 0.64, 3.78), (0.20, 0.16, 0.20), (0.70, 0.50, 0.29), 0, "crate", -14)
add("can", (-1.62, 0.22, 5.35), (0.22, 0.22, 0.22), (0.70, 0.36, 0.22))  # a potted tree
add("can", (-1.62, 0.70, 5.35), (0.03, 0.40, 0.03), (0.32, 0.20, 0.11))
for x, y, z, r in ((0, 1.22, 0, 0.34), (-0.16, 1.02, -0.14, 0.22), (0.2, 1.04, -0.05, 0.22), (0.05, 1.5, 0, 0.22)):
    add("ball", (x - 1.62, y, 5.35 + z), (r, r, r), (0.12, 0.24, 0.07), 0, "leaves")
add("box", (0.0, 0.21, 5.68), (0.95, 0.21, 0.26), (0.50, 0.30, 0.16), 0.2, "wood")  # a chest with more books
for i, (x, r, h) in enumerate(((0, 4, 15), (7, 3, 17), (13, 5, 14), (22, 3, 16), (29, 4, 18), (36, 5, 13))):
    add("box", (x / 50 - 0.81, 0.42 + h / 100, 5.72), (r / 52, h / 100, 0.13), BOOKS[i % 3])
add("can", (1.78, 0.015, 5.45), (0.17, 0.015, 0.17), (0.20, 0.16, 0.12), 0.3)  # the lamp
add("can", (1.78, 0.74, 5.45), (0.015, 0.74, 0.015), (0.20, 0.16, 0.12), 0.3)
add("can", LAMP, (0.23, 0.16, 0.23), (0.9, 0.7, 0.45), 0, "shade")


def noise(*axes):
    total, cells = np.float32(0), [np.floor(a).astype(np.int32) for a in axes]
    for corner in itertools.product((0, 1), repeat=len(axes)):
        key, weight = 0, np.float32(1)
        for axis, cell, bit in zip(axes, cells, corner, strict=True):
            weight = weight * (f := np.float32(abs(1 - bit - axis + cell))) * f * (3 - 2 * f)
            key = key * 157 + cell + bit
        total = total + weight * TABLE[(key ^ key >> 7) & 4095]
    return total


def mix(a, b, amount):
    a, b = (np.asarray(c, np.float32).reshape(3, -1) for c in (a, b))
    return a + (b - a) * np.asarray(amount, np.float32)


def glass(y, z, frame=0.0):
    """Where the left wall is open, two windows of two by three panes, or not plaster if a frame's width is given."""
    u, v = np.min([abs(z - c) for c in WINDOWS], axis=0), abs(y - PANE_Y)
    return (u < PANE_W + frame) & (v < PANE_H + frame) & ((u > 0.03) & (abs(v - PANE_H / 3) > 0.02) | (frame > 0))


def paint_room(x, y, z):
    row, along = np.floor(x / 0.17), z / 1.5 + noise(np.floor(x / 0.17) * 7.3) * 9
    tint = noise(row * 3.7, np.floor(along) * 5.1) * 0.6 + noise(x * 70, z * 3 + row * 9) * 0.4
    seam = (abs(x / 0.17 % 1 - 0.5) > 0.485) | (abs(along % 1 - 0.5) > 0.498)
    floor = mix((0.30, 0.15, 0.065), (0.60, 0.35, 0.18), tint) * np.where(seam, 0.45, 1)
    rim, weave = np.hypot((x - 0.1) / 1.45, (z - 2.9) / 1.25), 0.85 + 0.15 * noise(x * 60, z * 60)
    rug = mix((0.42, 0.10, 0.08), (0.76, 0.62, 0.44), (abs(rim - 0.9) < 0.035) | (abs(rim - 0.8) < 0.015)) * weave
    plaster = 0.88 + 0.15 * noise((x + z) * 3, y * 3) + 0.06 * noise((x + z) * 22, y * 22)
    panel = mix((0.50, 0.53, 0.46), (0.80, 0.76, 0.68), (y < 0.12) | (y > 0.84))
    panel *= np.where((abs((x + z) / 0.22 % 1 - 0.5) > 0.46) & (y < 0.84), 0.72, 1)
    wall = mix(np.float32([[0.72], [0.52], [0.33]]) * plaster, panel, y < 0.9)
    white = (glass(y, z, 0.09) & (x < -2.199)) | (y > 2.749)  # window frames and ceiling
    return mix(mix(wall, (0.86, 0.83, 0.77), white), mix(floor, rug, rim < 1), y < 1e-3)


def paint_image(x, y):
    image = mix((0.95, 0.72, 0.42), (0.30, 0.46, 0.60), np.clip(y * 0.9 + 0.2, 0, 1))
    image = mix(image, (1.0, 0.93, 0.70), np.hypot((x - 0.3) * 1.44, y - 0.3) < 0.17)
    for i, rgb in enumerate(((0.42, 0.45, 0.55), (0.28, 0.36, 0.36), (0.12, 0.22, 0.17))):
        image = mix(image, rgb, y < 0.05 - 0.33 * i + 0.5 * (noise(x * 2.5 + 9 * i) - 0.4))
    return mix(image, (0.30, 0.16, 0.07), (abs(x) > 0.91) | (abs(y) > 0.87))


TEXTURES = {  # from a base colour, points in the room and the same in unit space
    "room": lambda rgb, p, q: paint_room(*p),
    "image": lambda rgb, p, q: paint_image(*q[:2]),
    "wood": lambda rgb, p, q: rgb * (0.7 + 0.5 * noise(p[0] * 4, p[1] * 40, p[2] * 40)),
    "crate": lambda rgb, p, q: rgb * np.where(((abs(q) > 0.8).sum(0) < 2) & (abs(q[1] * 2.5 % 1 - 0.5) > 0.44), 0.3, 1),
    "knit": lambda rgb, p, q: rgb * (0.7 + 0.3 * abs(np.sin(np.arctan2(q[2], q[0]) * 18) * np.cos(q[1] * 14))),
    "beach": lambda rgb, p, q: mix(rgb, (0.88, 0.82, 0.70), np.arctan2(q[2], q[0]) * 4 / np.pi % 2 > 1),
    "leaves": lambda rgb, p, q: rgb * (0.2 + 2.4 * noise(*(p * 30)) * noise(*(p * 55))),
}


def first_hit(o, d, limit):
    """Nearest object along each ray and its distance; -1 where none is nearer than the limit."""
    best, which = np.full(o.shape[1], limit, np.float32), np.full(o.shape[1], -1)
    for index, (flat, curved, centre, to_unit, _, _, texture) in enumerate(OBJECTS):
        p, v = to_unit @ (o - centre), to_unit @ d + np.float32(1e-9)
        near, far = (-p / v - 1 / abs(v))[flat].max(0, initial=-1e9), (-p / v + 1 / abs(v))[flat].min(0, initial=1e9)
        if curved:
            a, b, c = (v[curved] ** 2).sum(0), (v[curved] * p[curved]).sum(0), (p[curved] ** 2).sum(0) - 1
            half = np.sqrt(np.maximum(root := b * b - a * c, 0))
            near, far = np.where(root > 0, np.maximum(near, (-b - half) / a), 1e9), np.minimum(far, (half - b) / a)
        near = far if texture == "room" else np.where(near < far, near, 1e9)
        hit = (near > 1e-4) & (near < best)
        best[hit], which[hit] = near[hit], index
    return best, which


def lit(o, n, dice):
    """Light straight from the sun, the sky and the lamp in turn: one jittered shadow ray each."""
    sun = SUN + (dice[:3] - 0.5) * np.float32(0.014)
    z, y = np.where(dice[3] < 0.5, *WINDOWS) + (dice[4] * 2 - 1) * PANE_W, PANE_Y + (dice[5] * 2 - 1) * PANE_H
    ends = (o + sun * (LOW[0] - o[0]) / sun[0], np.stack([y * 0 + LOW[0], y, z]), LAMP + (dice[6:9] - 0.5) * 0.25)
    for end, rgb in zip(ends, (SUN_RGB, SKY_RGB, LAMP_RGB), strict=True):
        reach = np.sqrt(((end - o) ** 2).sum(0))
        d = ((end - o) / reach).astype(np.float32)
        power = np.maximum((d * n).sum(0), 0) * (glass(*end[1:]) if rgb is SUN_RGB else np.maximum(reach, 0.3) ** -2)
        power *= np.maximum(-d[0], 0) if rgb is SKY_RGB else 1
        go, limit = np.flatnonzero(power > 0), reach * 0.999 - 0.4 * (rgb is LAMP_RGB)  # the shade lets its light pass
        power[go] *= first_hit(o[:, go], d[:, go], limit[go])[1] < 0
        yield rgb * power


def radiance(o, d, dice, first=True):
    """Per ray: 3 rows of sharp light, 3 of soft light, 3 of colour, and 5 that tell surfaces apart."""
    t, which = first_hit(o, d, 1e9)
    p, (n, colour), gloss = o + t * d, np.zeros((2, *d.shape), np.float32), np.zeros_like(t)
    for index in np.unique(which):
        m, (flat, _, centre, to_unit, rgb, shine, texture) = which == index, OBJECTS[index]
        q = to_unit @ (p[:, m] - centre)
        v = np.sign(q) * (abs(q) == abs(q).max(0)) if len(flat) == 3 else q
        v = to_unit.T @ (v * ((abs(q[1]) > 0.9995) == [[0], [1], [0]]) if len(flat) == 1 else v)
        n[:, m] = v / np.sqrt((v * v).sum(0)) * (-1 if texture == "room" else 1)
        colour[:, m], gloss[m] = TEXTURES.get(texture, lambda rgb, *_: rgb)(rgb, p[:, m], q), shine
    window = (which == 0) & (n[0] > 0.5) & glass(p[1], p[2])
    colour *= ~window
    glow = window * SKY_RGB + (which == len(OBJECTS) - 1) * 2.5 * LAMP_RGB  # the last object is the lamp's shade
    sun, sky, lamp = lit(p := p + n * np.float32(2e-3), n, dice)
    sharp, soft = glow + colour * sun, sky + lamp
    if first:
        h, a = 2 * dice[9] - 1, 2 * np.pi * dice[10]
        out = n + np.stack([np.sqrt(1 - h * h) * np.cos(a), h, np.sqrt(1 - h * h) * np.sin(a)]) * np.float32(0.999)
        met = radiance(p, out / np.sqrt((out * out).sum(0)), dice[11:], False)
        soft += np.minimum(met[:3] + met[3:6], 2)
        shiny = np.flatnonzero(gloss := gloss + 0.3 * ((which == 0) & (n[1] > 0.5)))
        v, facing = d[:, shiny], np.clip(-(d * n).sum(0)[shiny], 0, 1)
        met = radiance(p[:, shiny], v + 2 * facing * n[:, shiny], dice[:, shiny], False)
        sharp[:, shiny] += gloss[shiny] * (0.05 + 0.8 * (1 - facing) ** 5) * np.minimum(met[:3] + met[3:6], 3)
    else:  # what further bounces would add
        soft += np.float32([[0.24], [0.20], [0.16]]) * np.minimum(t / 0.9, 1)
    clear = np.exp(-0.009 * t)
    return np.vstack([mix(HAZE_RGB, sharp, clear), colour * soft * clear, colour, 3 * n, 25 * np.log(t), 9 * window])


if __name__ == "__main__":
    steps = (
        np.float32([[2], [4], [1], [5]] * 5) / GRID**2
    )  # a lattice: the samples of a pixel fill the unit cube evenly
    (y, x), total = np.mgrid[:HEIGHT, :WIDTH].reshape(2, -1), 0
    shift = np.random.default_rng(7).random((20, x.size), np.float32)
    for k in range(GRID * GRID):
        d = np.stack([x + k % GRID / GRID - CENTRE[0], CENTRE[1] - y - k // GRID / GRID, x * 0 + FOCAL])
        eye, d = np.repeat(EYE, x.size, 1), np.float32(d / np.sqrt((d * d).sum(0)))
        total += radiance(eye, d, (shift + steps * np.float32(k)) % 1) / GRID**2
    sharp, soft, colour, guide = np.split(total.reshape(-1, HEIGHT, WIDTH), (3, 6, 9))
    soft, smooth, weight = soft / np.maximum(colour, 0.02), 0, 0
    for shift in itertools.product(range(-BLUR, BLUR + 1), repeat=2):  # average the soft light over like neighbours
        like = np.exp(-0.7 * ((guide - np.roll(guide, shift, (1, 2))) ** 2).sum(0))
        smooth, weight = smooth + like * np.roll(soft, shift, (1, 2)), weight + like
    c = (sharp + colour * smooth / weight).transpose(1, 2, 0) * np.float32(0.9)
    c = np.clip(c * (2.51 * c + 0.03) / (c * (2.43 * c + 0.59) + 0.14), 0, 1)  # a film-like curve
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "dajax/assets/scene.jpg"
    Image.fromarray((c ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)).save(path, quality=90, optimize=True)
