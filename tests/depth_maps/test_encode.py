"""Files of depth, read back by libraries that did not write them."""

import ast
import io
import os
import struct
import sys
import tempfile
import zipfile
import zlib

import av
import cv2
import numpy as np
import OpenEXR
import pytest
import tifffile
from PIL import Image

from dajax.depth_maps import encode
from dajax.depth_maps.colormap import colorize
from dajax.errors import ConfigError, ImageError, JobError


def some_map(shape=(12, 17)):
    return (np.random.default_rng(0).standard_normal(shape) * 30).astype(np.float32)


def decoded(data):
    """What OpenCV reads."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def form(name, depth, **options):
    return encode.encoded(name, depth, **({"kind": "metric", "model": "sm\u00e4ll", "style": "official"} | options))


def read_npy(data):
    """Read an array by NumPy Enhancement Proposal 1, without numpy.load."""
    magic, major, minor, length = struct.unpack("<6sBBH", data[:10])
    assert (magic, major, minor, (10 + length) % 64) == (b"\x93NUMPY", 1, 0, 0)
    assert data[9 + length : 10 + length] == b"\n"
    header = ast.literal_eval(data[10 : 10 + length].decode("latin-1"))
    assert header["fortran_order"] is False
    kind, size = {"<f4": ("f", 4), "<f2": ("e", 2)}[header["descr"]]
    height, width = header["shape"]
    assert len(data) == 10 + length + size * height * width
    return np.array(struct.unpack(f"<{height * width}{kind}", data[10 + length :])).reshape(height, width)


def read_npz(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return read_npy(archive.read("depth.npy"))


def read_png16(data):
    entries = dict(content.split(b"\0", 1) for kind, content in png_chunks(data) if kind == b"tEXt")
    return decoded(data) * float(entries[b"dajax.scale"]) + float(entries[b"dajax.offset"])


def read_exr(data):
    with av.open(io.BytesIO(data), format="exr_pipe") as file:
        return next(file.decode(video=0)).to_ndarray()[..., 0]


# Another reader of each format than the library that writes it: parsers by the standard, OpenCV, tifffile and FFmpeg.
READERS = {
    "color": decoded,
    "npy": read_npy,
    "npz": read_npz,
    "png16": read_png16,
    "tiff": lambda data: tifffile.imread(io.BytesIO(data)),
    "pfm": decoded,
    "exr": read_exr,
}


@pytest.mark.parametrize("name", encode.ENDINGS)
@pytest.mark.parametrize("shape", [(12, 17), (1, 1), (1, 40), (40, 1)])
def test_every_format_is_read_by_another_reader(name, shape):
    depth = some_map(shape)
    found = READERS[name](form(name, depth))
    if name == "color":
        np.testing.assert_array_equal(found[..., ::-1], colorize(-depth, "Spectral_r"))
    else:
        np.testing.assert_allclose(found, depth, atol=np.ptp(depth) / 65535 if name == "png16" else 0)


def test_npz_holds_nothing_else(monkeypatch):
    """numpy before 2.2 takes allow_pickle for the name of one more array."""
    found = {}
    monkeypatch.setattr(np, "savez_compressed", lambda file, **arrays: found.update(arrays))
    form("npz", some_map())
    assert set(found) == {"depth", "kind", "units", "model", "style", "version"}


@pytest.mark.parametrize("values", ["float32", "float16"])
def test_npy(values):
    data = form("npy", some_map(), values=values)
    np.testing.assert_array_equal(read_npy(data), some_map().astype(values))
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), some_map().astype(values))


def test_npz():
    with zipfile.ZipFile(io.BytesIO(form("npz", some_map()))) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {
            f"{name}.npy" for name in ("depth", "kind", "units", "model", "style", "version")
        }
        np.testing.assert_array_equal(read_npy(archive.read("depth.npy")), some_map())
    with np.load(io.BytesIO(form("npz", some_map()))) as stored:
        np.testing.assert_array_equal(stored["depth"], some_map())
        assert [str(stored[name]) for name in ("kind", "units", "model", "style")] == [
            "metric", "metres", "sm\u00e4ll", "official",
        ]  # fmt: skip
        assert str(stored["version"])


def test_tiff():
    np.testing.assert_array_equal(decoded(form("tiff", some_map())), some_map())
    with tifffile.TiffFile(io.BytesIO(form("tiff", some_map()))) as file:
        np.testing.assert_array_equal(file.asarray(), some_map())
        assert file.asarray().dtype == np.float32
        tags = file.pages[0].tags  # TIFF 6.0: floats, deflated, larger is brighter
        assert (tags["SampleFormat"].value, tags["Compression"].value, tags["PhotometricInterpretation"].value) == (
            3,
            8,
            1,
        )
        assert "kind: metric; units: metres; model: sm" in file.pages[0].description
        assert "; style: official; version: " in file.pages[0].description


@pytest.mark.parametrize("depth", [some_map(), np.array([[-1e38, 3e38, 1e-38]], np.float32), np.full((1, 1), 2.5)])
def test_exr(tmp_path, depth):
    (tmp_path / "x.exr").write_bytes(form("exr", depth))
    with OpenEXR.File(str(tmp_path / "x.exr")) as file:
        found = file.channels()
        assert set(found) == {"RGB", "Z"}
        for pixels in (found["Z"].pixels, *np.moveaxis(found["RGB"].pixels, -1, 0)):
            np.testing.assert_array_equal(pixels, depth.astype(np.float32))
        header = dict(file.header())  # it is emptied with the file
    assert [header[f"dajax.{key}"] for key in ("kind", "units", "model", "style")] == [
        "metric", "metres", "sm\u00e4ll", "official",
    ]  # fmt: skip


@pytest.mark.parametrize("depth", [some_map(), np.array([[-1e38, 3e38, 1e-38]], np.float32), np.full((1, 1), 2.5)])
def test_ffmpeg_reads_exr(tmp_path, depth):
    (tmp_path / "x.exr").write_bytes(form("exr", depth))
    with av.open(str(tmp_path / "x.exr")) as file:
        frame = next(file.decode(video=0))
    assert frame.format.name == "gbrpf32le"
    for channel in np.moveaxis(frame.to_ndarray(), -1, 0):
        np.testing.assert_array_equal(channel, depth.astype(np.float32))


@pytest.mark.skipif(cv2.__version__ >= "5", reason="the wheels of OpenCV 5 read no EXR")
def test_opencv_reads_exr(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENCV_IO_ENABLE_OPENEXR", "1")  # otherwise OpenCV refuses the format
    (tmp_path / "x.exr").write_bytes(form("exr", some_map()))
    found = cv2.imread(str(tmp_path / "x.exr"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, np.repeat(some_map()[..., None], 3, -1))


def test_copies_of_channels_cost_little():
    """By the compression of 16 rows together: a fifth at most, not three times as much."""
    smooth = (np.sin(np.arange(400) / 70)[:, None] + np.cos(np.arange(600) / 90)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        header = {"type": OpenEXR.scanlineimage, "compression": OpenEXR.ZIP_COMPRESSION}
        OpenEXR.File(header, {"Z": smooth}).write(f"{folder}/z.exr")
        assert len(form("exr", smooth)) < 1.2 * os.path.getsize(f"{folder}/z.exr")


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


@pytest.mark.parametrize("suffix", encode.COLOUR_FORMATS)
def test_colours_by_another_decoder(suffix):
    """OpenCV's, of the channels in its order; and tifffile finds the description in the Exif data."""
    depth = np.sort(some_map((60, 80)), axis=None).reshape(60, 80)
    data = encode.color(depth, "turbo", suffix=suffix, about=encode.described("metric", "small"))
    error = np.abs(decoded(data)[..., ::-1].astype(int) - colorize(depth, "turbo"))
    assert error.mean() == 0 if suffix == ".png" else error.mean() < 4
    if suffix != ".png":
        exif = data[data.index(b"II*\0" if b"II*\0" in data else b"MM\0*") :]
        with tifffile.TiffFile(io.BytesIO(exif)) as file:
            assert file.pages[0].tags[270].value.startswith("kind: metric; units: metres; model: small")


def test_pfm(tmp_path):
    data = form("pfm", some_map())
    np.testing.assert_array_equal(decoded(data), some_map())
    head, size, scale, rest = data.split(b"\n", 3)
    assert (head, size, float(scale)) == (b"Pf", b"17 12", -1)
    assert struct.unpack("<f", rest[:4])[0] == some_map()[-1, 0]  # the lowest row comes first


def png_chunks(data):
    """Yield the kind and the data of each chunk, by the PNG specification, section 5.3."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        content, (checksum,) = (
            data[at + 8 : at + 8 + length],
            struct.unpack(">I", data[at + 8 + length : at + 12 + length]),
        )
        assert zlib.crc32(kind + content) == checksum
        yield kind, content
        at += 12 + length


def test_png16_by_another_decoder():
    """Values by OpenCV, entries by the standard: IHDR, and a keyword, NUL and Latin-1 text in tEXt."""
    data = form("png16", some_map(), model="small")
    chunks = list(png_chunks(data))
    assert chunks[0] == (b"IHDR", struct.pack(">IIBBBBB", 17, 12, 16, 0, 0, 0, 0))
    entries = dict(content.split(b"\0", 1) for kind, content in chunks if kind == b"tEXt")
    assert (entries[b"dajax.kind"], entries[b"dajax.units"], entries[b"dajax.model"]) == (
        b"metric",
        b"metres",
        b"small",
    )
    stored = decoded(data)
    assert (stored.dtype, stored.shape) == (np.uint16, (12, 17))
    found = stored * float(entries[b"dajax.scale"]) + float(entries[b"dajax.offset"])
    assert np.abs(found - some_map()).max() <= 0.51 * float(entries[b"dajax.scale"])


@pytest.mark.parametrize(("scale", "steps"), [(0.001, 1000), (0.0002, 5000), (1 / 256, 256)])
def test_png16_with_a_fixed_scale(scale, steps):
    """Millimetres, the TUM RGB-D benchmark and KITTI: depth = stored * scale, 0 is no value."""
    depth = np.array([[0.0, 0.4 * scale, 0.6 * scale, 1.0, 2.5, -1.0, 65535 * scale, 65536 * scale, 1e30]], np.float32)
    stored = decoded(form("png16", depth, png_scale=scale))
    assert stored.tolist() == [[0, 0, 1, steps, 2.5 * steps, 0, 65535, 0, 0]]
    (said,) = encode.misfits(depth, scale)
    assert said == (
        f"5 of 9 values do not fit into the 16-bit PNG, which holds {scale:g} to {65535 * scale:g} metres: they are "
        "stored as 0, no value"
    )
    assert encode.misfits(depth[:, 2:5], scale) == ()


@pytest.mark.parametrize("scale", [0, -0.001, np.nan, np.inf, "0.001", True])
def test_png_scales_that_are_none(scale):
    with pytest.raises(ConfigError, match="png_scale must be a positive number of metres"):
        form("png16", some_map(), png_scale=scale)
    with pytest.raises(ConfigError, match="png_scale is the metres of a step, and this depth has none"):
        form("png16", some_map(), png_scale=0.001, kind="relative")


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
