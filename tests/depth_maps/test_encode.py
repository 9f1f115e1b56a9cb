"""Files of depth, read back by libraries that did not write them."""

import io
import sys

import cv2
import numpy as np
import OpenEXR
import pytest
import tifffile
from PIL import Image

from dajax.depth_maps import encode
from dajax.errors import ConfigError, ImageError, JobError


def some_map(dtype=np.float32):
    return (np.random.default_rng(0).standard_normal((12, 17)) * 30).astype(dtype)


def form(name, depth, **options):
    return encode.encoded(name, depth, **({"kind": "metric", "model": "sm\u00e4ll", "style": "official"} | options))


def test_npy():
    np.testing.assert_array_equal(np.load(io.BytesIO(form("npy", some_map()))), some_map())


def test_npz():
    with np.load(io.BytesIO(form("npz", some_map()))) as stored:
        np.testing.assert_array_equal(stored["depth"], some_map())
        assert [str(stored[name]) for name in ("kind", "units", "model", "style")] == [
            "metric", "metres", "sm\u00e4ll", "official",
        ]  # fmt: skip
        assert str(stored["version"])


def test_tiff():
    with tifffile.TiffFile(io.BytesIO(form("tiff", some_map()))) as file:
        np.testing.assert_array_equal(file.asarray(), some_map())
        assert file.asarray().dtype == np.float32
        assert "kind: metric; units: metres; model: sm" in file.pages[0].description
        assert "; style: official; version: " in file.pages[0].description


@pytest.mark.parametrize("depth", [some_map(), np.array([[-1e38, 3e38, 1e-38]], np.float32), np.full((1, 1), 2.5)])
def test_exr(tmp_path, depth):
    (tmp_path / "x.exr").write_bytes(form("exr", depth))
    with OpenEXR.File(str(tmp_path / "x.exr")) as file:
        np.testing.assert_array_equal(file.channels()["Z"].pixels, depth.astype(np.float32))
        header = dict(file.header())  # it is emptied with the file
    assert [header[f"dajax.{key}"] for key in ("kind", "units", "model", "style")] == [
        "metric", "metres", "sm\u00e4ll", "official",
    ]  # fmt: skip


def test_exr_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[exr\]'"):
        form("exr", some_map())


def test_coloured_maps_say_what_they_are_of():
    with Image.open(io.BytesIO(form("color", some_map()))) as image:
        assert (image.text["dajax.kind"], image.text["dajax.units"], image.text["dajax.style"]) == (
            "metric", "metres", "official",
        )  # fmt: skip
    for suffix in (".jpg", ".webp"):
        data = encode.color(some_map(), suffix=suffix, about=encode.described("relative", "sm\u00e4ll"))
        with Image.open(io.BytesIO(data)) as image:
            said = image.getexif()[270]
        assert said.startswith("kind: relative; units: affine-invariant inverse depth (bigger is nearer); model: sm")


def test_pfm(tmp_path):
    (tmp_path / "x.pfm").write_bytes(form("pfm", some_map()))
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "x.pfm"), cv2.IMREAD_UNCHANGED), some_map())


def test_png16():
    with Image.open(io.BytesIO(form("png16", some_map()))) as image:
        steps, text = np.asarray(image), image.text
    found = steps * float(text["dajax.scale"]) + float(text["dajax.offset"])
    assert np.abs(found - some_map()).max() <= 0.51 * float(text["dajax.scale"])
    assert text["dajax.units"] == "metres"


@pytest.mark.parametrize("name", ["npy", "npz"])
def test_half(name):
    data = io.BytesIO(form(name, some_map(), values="float16"))
    stored = np.load(data) if name == "npy" else np.load(data)["depth"]
    np.testing.assert_array_equal(stored, some_map().astype(np.float16))
    with pytest.raises(ImageError, match=r"70000 does not fit into float16"):
        form(name, np.full((2, 2), 7e4), values="float16")


def test_near_is_at_the_maps_upper_end():
    def colours(kind):
        with Image.open(io.BytesIO(form("color", np.array([[1.0, 2.0]]), kind=kind, colormap="gray"))) as image:
            return np.asarray(image)[0, :, 0].tolist()

    assert colours("metric") == [255, 0]
    assert colours("relative") == [0, 255]


@pytest.mark.parametrize("name", encode.ENDINGS)
def test_the_same_map_gives_the_same_bytes(name):
    assert form(name, some_map()) == form(name, some_map())
    assert encode.ENDINGS[name].startswith("_depth")


@pytest.mark.parametrize("name", encode.ENDINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_never_written(name, value):
    depth = some_map()
    depth[2, 3] = value
    with pytest.raises(ImageError, match=r"at index \[2, 3\]"):
        form(name, depth)


@pytest.mark.parametrize(
    "depth", [np.full((4, 5), 3.0), np.ones((1, 1)), np.array([[0.0, 1e30]])], ids=["flat", "1", "huge"]
)
@pytest.mark.parametrize("name", encode.ENDINGS)
def test_odd_maps(name, depth):
    assert form(name, depth)


def test_names_that_are_no_unicode():
    with np.load(io.BytesIO(form("npz", some_map(), model="caf\udce9"))) as stored:
        assert str(stored["model"]) == "caf\\xe9"


def test_unknown():
    with pytest.raises(ImageError, match="the format must be one of color, npy"):
        form("jpg", some_map())
    with pytest.raises(ImageError, match="kind must be"):
        form("npz", some_map(), kind="depth")


def test_exr_without_room_for_its_file(monkeypatch):

    class Full:
        def __init__(self, *arguments):
            pass

        def write(self, path):
            raise RuntimeError("No space left on device")

    monkeypatch.setattr(OpenEXR, "File", Full)
    with pytest.raises(JobError, match="No space left on device"):
        encode.exr(np.ones((2, 3), np.float32), {})
