"""Kinds of TIFF: what tifffile writes is what is read, and what nobody can show is refused by name.

The expected pixels are TIFF 6.0's formula for each kind (PhotometricInterpretation), not what a reader makes of it.
"""

import io
import struct
import sys
import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image

from dajax.errors import ImageError
from dajax.images.read import read_image

HEIGHT, WIDTH = 24, 40
Y, X = np.mgrid[:HEIGHT, :WIDTH]
RAMP = X / (WIDTH - 1)
COLOURS = np.stack([RAMP, Y / (HEIGHT - 1), 1 - RAMP], axis=2)


def tiff(array, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, metadata=None, **options)
    return file.getvalue()


def stored(shown, dtype):
    """Return values of 0 to 1 as a type stores them: all of its positive range, or 0 to 1 for floats."""
    dtype = np.dtype(dtype)
    return shown.astype(dtype) if dtype.kind == "f" else np.rint(shown * float(np.iinfo(dtype).max)).astype(dtype)


def grey(shown):
    return np.repeat(np.rint(shown * 255)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize(
    ("dtype", "photometric"),
    [("u2", "miniswhite"), ("u4", "minisblack"), ("u4", "miniswhite"), ("u2", "minisblack"), ("u1", "miniswhite")],
)
def test_unsigned_grey(dtype, photometric, tile, compression, order):
    shown = 1 - RAMP if photometric == "miniswhite" else RAMP
    data = tiff(stored(RAMP, dtype), photometric=photometric, byteorder=order, compression=compression, tile=tile)
    np.testing.assert_allclose(read_image(data).astype(int), grey(shown), atol=1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "f2", "f4", "f8"])
def test_signed_and_floating_point_grey_take_a_range(dtype, compression, order):
    values = (stored(RAMP, dtype) / 2 - stored(RAMP, dtype)[:, ::-1] / 2).astype(dtype)
    data = tiff(values, photometric="minisblack", byteorder=order, compression=compression)
    with pytest.raises(ImageError, match="value_range"):
        read_image(data)
    expected = np.rint((values - float(values.min())) / (float(values.max()) - float(values.min())) * 255)
    for value_range in ("auto", (float(values.min()), float(values.max()))):
        result = read_image(data, value_range=value_range)
        np.testing.assert_allclose(result[:, :, 0].astype(int), expected, atol=1)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f4"])
@pytest.mark.parametrize("kind", ["rgb", "rgbx", "separated", "rgba", "more"])
def test_colours(kind, dtype, compression, planar):
    alpha = np.full((HEIGHT, WIDTH, 1), 0.4)
    shown = {
        "rgb": COLOURS,
        "rgbx": np.concatenate([COLOURS, alpha], axis=2),
        "separated": np.concatenate([COLOURS, alpha], axis=2),
        "rgba": np.concatenate([COLOURS, alpha], axis=2),
        "more": np.concatenate([COLOURS, RAMP[:, :, None], RAMP[:, :, None]], axis=2),
    }[kind]
    values = stored(shown, dtype)
    options = {"rgba": {"extrasamples": ["unassalpha"]}, "rgbx": {"extrasamples": ["unspecified"]}}.get(kind, {})
    data = tiff(
        values if planar == "contig" else np.moveaxis(values, 2, 0),
        photometric="rgb" if kind != "separated" else "separated",
        planarconfig=planar,
        compression=compression,
        **options,
    )
    expected = {
        "rgb": COLOURS,
        "rgbx": COLOURS,
        "more": COLOURS,
        "rgba": COLOURS * alpha + 1 - alpha,
        "separated": (1 - COLOURS) * (1 - alpha),
    }[kind]
    value_range = (0, 1) if dtype == "f4" else None
    result = read_image(data, value_range=value_range)
    np.testing.assert_allclose(result.astype(int), expected * 255, atol=2.5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_samples(bits, order):
    """Samples are packed from the most significant bit in both byte orders (TIFF 6.0, FillOrder 1)."""
    values = np.rint(RAMP * (2**bits - 1)).astype(int)
    packed = b"".join(
        int("".join(f"{value:0{bits}b}" for value in row), 2).to_bytes(WIDTH * bits // 8, "big") for row in values
    )
    tags = [(256, WIDTH), (257, HEIGHT), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, HEIGHT)]
    tags.append((279, len(packed)))
    directory = struct.pack(order + "H", len(tags)) + b"".join(struct.pack(order + "HHII", t, 4, 1, v) for t, v in tags)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    data = mark + struct.pack(order + "I", 8 + len(packed)) + packed + directory + b"\0\0\0\0"
    np.testing.assert_allclose(read_image(data).astype(int), grey(RAMP), atol=1)
    assert read_image(data, value_range=(0, 2**bits / 4))[0, WIDTH // 2, 0] == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_both_readers(orientation):
    reference = np.asarray(Image.open(io.BytesIO(tiff(stored(COLOURS, "u1"), photometric="rgb"))))
    extra = [(274, 3, 1, orientation, True)]
    results = [
        read_image(tiff(stored(COLOURS, dtype), photometric="rgb", planarconfig=None, extratags=extra))
        for dtype in ("u1", "u4")
    ]
    np.testing.assert_allclose(results[0].astype(int), results[1].astype(int), atol=1)
    assert (results[1].shape == reference.shape) == (orientation < 5)


def test_palette_of_8_bits_is_scaled():
    """ColorMap has 16 bits (TIFF 6.0); some programs write values up to 255, which would be black."""
    levels = np.arange(256, dtype=np.uint16)
    indices = np.arange(240, dtype=np.uint8).reshape(12, 20)
    for colormap in (np.stack([levels] * 3) * 257, np.stack([levels] * 3)):
        data = tiff(indices, photometric="palette", colormap=colormap)
        np.testing.assert_array_equal(read_image(data)[:, :, 1], indices)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u4"])
def test_big_tiff(order, dtype):
    data = tiff(stored(COLOURS, dtype), photometric="rgb", bigtiff=True, byteorder=order)
    np.testing.assert_allclose(read_image(data).astype(int), COLOURS * 255, atol=1)


def test_further_pages_are_said():
    with pytest.warns(UserWarning, match="first is used"):
        read_image(tiff(np.zeros((2, 16, 16), "u4"), photometric="minisblack"))


@pytest.mark.parametrize(
    ("array", "options", "kind"),
    [
        (
            np.zeros((16, 16, 5), "u1"),
            {"photometric": "minisblack", "planarconfig": "contig"},
            "grey, 5 x 8 bits unsigned",
        ),
        (np.zeros((5, 16, 16), "u2"), {"photometric": "minisblack", "planarconfig": "separate"}, "5 x 16 bits.*planar"),
        (np.zeros((16, 16), "c8"), {}, "64 bits complex"),
        (np.zeros((16, 16, 3), "u2"), {"photometric": "cielab"}, "L.a.b., 3 x 16 bits"),
        (np.zeros((16, 16), "u2"), {"photometric": "cfa"}, "the sensor's data"),
        (np.zeros((16, 16, 3), "u1"), {"photometric": "icclab"}, "ICC L"),
    ],
    ids=range(6),
)
def test_kinds_that_are_refused_by_name(array, options, kind):
    with pytest.raises(ImageError, match=kind):
        read_image(tiff(array, **options))


def tagged(*tags, order="<"):
    """A TIFF of 16x16 grey pixels with further tags."""
    file = io.BytesIO()
    tifffile.imwrite(
        file, np.zeros((16, 16), "u1"), photometric="minisblack", metadata=None, byteorder=order, extratags=list(tags)
    )
    return file.getvalue()


def test_a_thumbnail_is_not_the_image():
    with pytest.raises(ImageError, match=r"is a DNG file whose first image \(16x16\) is a thumbnail"):
        read_image(tagged((50706, 1, 4, b"\x01\x04\0\0", True)))
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:  # NEF: a thumbnail, and the raw image in a SubIFD
        writer.write(np.zeros((8, 8, 3), "u1"), photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        writer.write(np.zeros((64, 64), "u2"), photometric="cfa", metadata=None)
    with pytest.raises(ImageError, match=r"NEF, ARW .*\(8x8\) is a thumbnail"):
        read_image(file.getvalue())
    with pytest.raises(ImageError, match="CR2"):
        read_image(b"II*\0\x10\0\0\0CR\x02\0" + b"\0" * 100)
    # The only image of a file is the image, whatever its tag says.
    assert read_image(tiff(np.zeros((8, 8, 3), "u1"), photometric="rgb", subfiletype=1)).shape == (8, 8, 3)


def test_tags_that_claim_any_memory():
    """60,000 tags share a megabyte: 60 GB, if each gets its own."""
    entries = struct.pack("<H", 60_000) + b"".join(struct.pack("<HHII", 1000 + i, 7, 10**6, 8) for i in range(60_000))
    with pytest.raises(ImageError, match="claim more data"):
        read_image(b"II*\0" + struct.pack("<I", 8 + 10**6) + bytes(10**6) + entries + b"\0\0\0\0")


def test_a_strip_that_inflates_to_more_than_its_size():
    import zlib

    data = bytearray(tiff(np.zeros((64, 64), "u4"), photometric="minisblack", compression="deflate"))
    bomb = zlib.compress(bytes(50_000_000))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset, count = (file.pages.first.tags[tag].valueoffset for tag in ("StripOffsets", "StripByteCounts"))
        code = {1: "<B", 3: "<H", 4: "<I"}[int(file.pages.first.tags["StripByteCounts"].dtype)]
    assert code == "<H" or code == "<I"
    data[offset : offset + 4] = struct.pack("<I", len(data))
    data[count : count + struct.calcsize(code)] = struct.pack(code, len(bomb))
    with pytest.raises(ImageError, match="begins as TIFF, but cannot be decoded"):
        read_image(bytes(data) + bomb)


def test_one_huge_strip_is_refused_before_it_is_decoded():
    data = tiff(np.zeros((4000, 4000, 3), "f8"), photometric="rgb", compression="deflate", rowsperstrip=4000)
    with pytest.raises(ImageError, match="strips or tiles of 384,000,000 bytes"):
        read_image(data, value_range=(0, 1))


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImageError, match=r"3 x 32 bits unsigned, which needs .*pip install '\.\[tiff\]'"):
        read_image(tiff(np.zeros((8, 8, 3), "u4"), photometric="rgb"))


def test_not_finite():
    values = np.zeros((16, 16, 3), "f4")
    values[3, 4, 1] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        read_image(tiff(values, photometric="rgb"), value_range="auto")


def test_values_of_16_bit_colours_take_a_range():
    values = np.rint(COLOURS * 4095).astype("u2")
    with pytest.warns(UserWarning, match="of 256 greys"):
        dim = read_image(tiff(values[:, :, 0]))
    assert dim.max() == 16
    result = read_image(tiff(values, photometric="rgb"), value_range=(0, 4095))
    np.testing.assert_allclose(result.astype(int), COLOURS * 255, atol=1)


def test_dim_colours_are_said():
    with pytest.warns(UserWarning, match="values from 0 to 3855, which is 16 of 256 greys"):
        read_image(tiff(np.rint(COLOURS * 4095).astype("u2"), photometric="rgb"))


def test_an_image_that_pillow_has_opened():
    wrong = tiff(np.moveaxis(stored(COLOURS, "u2"), 2, 0), photometric="rgb", planarconfig="separate")
    with pytest.raises(ImageError, match=r"3 x 16 bits unsigned, planar, which Pillow does not read right"):
        read_image(Image.open(io.BytesIO(wrong)))
    right = tiff(stored(COLOURS, "u1"), photometric="rgb")
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(right))), read_image(right))
    pages = io.BytesIO()
    first, second = (Image.new("L", (8, 8), level) for level in (10, 200))
    first.save(pages, "TIFF", save_all=True, append_images=[second])
    image = Image.open(pages)
    image.seek(1)
    assert read_image(image).mean() == 200


def test_damaged_files_stay_image_errors():
    rng = np.random.default_rng(0)
    files = [tiff(stored(COLOURS, "u4"), photometric="rgb", compression=c) for c in (None, "deflate")]
    outcomes = {"read": 0, "refused": 0}
    for at in range(150):
        damaged = bytearray(files[at % 2])
        for _ in range(rng.integers(1, 8)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read_image(bytes(damaged), max_pixels=10**6).ndim == 3
                outcomes["read"] += 1
            except ImageError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 10, outcomes
