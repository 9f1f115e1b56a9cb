"""A decoder takes at most the file and 12 bytes a pixel; a few formats take more, which they are asked for before.

Measured in a process of its own by the kernel (VmHWM), because libraries take memory that Python does not see.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dajax.images.headers import BYTES_PER_PIXEL
from dajax.limits import DECODER_BYTES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")

HEIGHT, WIDTH = 1500, 1800
# Parts of an image that are converted at once, and buffers of libraries.
SLACK = 5_000_000
MEASURE = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from PIL import Image
from dajax.images.read import read_image
Image.init()

def kilobytes(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])

read_image(sys.argv[1])  # what is imported and compiled on first use
import imagecodecs, tifffile  # their size differs between versions
options = json.loads(sys.argv[2])
for path in sys.argv[3:]:
    if os.fork():  # the peak starts anew, and nothing that was freed is used again
        os.wait()
        continue
    before = kilobytes("VmRSS")
    shape = read_image(path, **options).shape
    print(json.dumps([(kilobytes("VmHWM") - before) * 1024, os.path.getsize(path), shape[0] * shape[1]]), flush=True)
    os._exit(0)
"""


def colours():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, (x + y) % 256, x * 255 // WIDTH], axis=2).astype(np.uint8)


def write(folder: Path, name: str) -> Path:
    rgba = colours()
    rgb = Image.fromarray(rgba[:, :, :3])
    wide = rgba[:, :, 0].astype(np.uint16) * 257
    path = folder / name
    exif = Image.Exif()
    exif[0x0112] = 6
    if name == "wide.pgm":
        path.write_bytes(b"P5 %d %d 4095\n" % (WIDTH, HEIGHT) + (wide // 16).astype(">u2").tobytes())
    elif name.startswith("wide"):
        Image.fromarray(wide).save(path, **({"compress_level": 1} if path.suffix == ".png" else {}))
    elif name == "cmyk.jpg":
        rgb.convert("CMYK").save(path, progressive=True, subsampling=0)
    elif name == "turned.jpg":
        rgb.save(path, exif=exif)
    elif name in ("rgb.gif", "palette.png"):
        rgb.convert("P").save(path)
    elif name == "lab.tif":
        tifffile.imwrite(path, rgba[:, :, :3], photometric="cielab")
    elif name == "planar.tif":
        tifffile.imwrite(path, np.moveaxis(rgba, 2, 0).astype("u2") * 257, photometric="rgb", planarconfig="separate")
    elif name.startswith("rgba"):
        options = {"rgba.webp": {"lossless": True, "method": 0, "quality": 0}}.get(name, {})
        options |= {"compress_level": 1} if path.suffix == ".png" else {}
        options |= {"rgba.avif": {"speed": 10, "subsampling": "4:4:4"}}.get(name, {})
        Image.fromarray(rgba).save(path, **options)
    else:
        rgb.save(path)
    return path


def peaks(folder, names, **options):
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    paths = [str(write(folder, name)) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder / "small.png"), json.dumps(options), *paths],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == len(names), done.stderr
    return zip(names, (json.loads(line) for line in done.stdout.splitlines()), strict=True)


def test_peaks(tmp_path):
    names = [
        *("rgb.jpg", "cmyk.jpg", "turned.jpg", "rgb.png", "rgba.png", "palette.png", "wide.png", "wide.pgm"),
        *("rgb.bmp", "rgb.gif", "rgba.tif", "rgba.webp", "rgba.avif", "planar.tif", "lab.tif"),
    ]
    over = {}
    for name, (peak, file, pixels) in peaks(tmp_path, names):
        form = name.partition(".")[2].upper()
        allowed = file + BYTES_PER_PIXEL.get(form, DECODER_BYTES) * pixels + SLACK
        print(f"{name:12} {peak / 1e6:6.1f} MB, {(peak - file) / pixels:5.2f} bytes a pixel beside the file")
        if peak > allowed:
            over[name] = peak, allowed
    assert not over


def test_a_range_takes_no_more(tmp_path):
    for name, (peak, file, pixels) in peaks(tmp_path, ["wide.png", "wide.tif"], value_range=[0, 4095]):
        assert peak <= file + 8 * pixels + SLACK, name
