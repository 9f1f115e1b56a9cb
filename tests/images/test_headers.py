"""Limits hold before a decoder takes memory or time; metadata does not make an image bad; a JPEG may lack its end."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, JpegImagePlugin, WebPImagePlugin

from dajax.errors import ImageError
from dajax.geometry import Intrinsics
from dajax.images import headers
from dajax.images.read import opened, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def encoded(kind, image=PIXELS, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data, checksum=None):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ (checksum or 0))


def png(*before, after=(), samples=PIXELS, bits=8, colour=2):
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in samples)
    body = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)), *before]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*body, chunk(b"IDAT", zlib.compress(rows)), *after, chunk(b"IEND", b"")])


def gif(screen, frame):
    """A GIF of 43 bytes whose disposal method (2, background) makes Pillow fill the frame when it is opened."""
    return (
        b"GIF89a" + struct.pack("<HH", *screen) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + b"!\xf9\x04\x08\0\0\0\0"
        b"," + struct.pack("<HHHH", 0, 0, *frame) + b"\0" + b"\x02\x02\x44\x01\0;"
    )


# --- size ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [((65_535, 65_535), (65_535, 65_535)), ((1, 1), (65_535, 65_535))])
def test_a_gif_of_43_bytes(size, monkeypatch):
    def never(*args):
        raise AssertionError("Pillow opened it")

    data = gif(*size)
    assert len(data) == 43
    monkeypatch.setattr(GifImagePlugin.GifImageFile, "_open", never)
    with pytest.raises(ImageError, match="4,294,836,225 pixels are more than max_pixels"):
        read_image(data)


def test_a_webp_with_a_large_canvas(monkeypatch):
    data = bytearray(encoded("WEBP", save_all=True, append_images=[Image.fromarray(255 - PIXELS)]))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xff\x3f\0\xff\x3f\0"
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "_open", None)
    with pytest.raises(ImageError, match="268,435,456 pixels are more"):
        read_image(bytes(data))


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"save_all": True}])
def test_the_header_of_a_webp(options):
    header = headers.read_header(io.BytesIO(encoded("WEBP", **options)), "WEBP", "x")
    assert header.size == (64, 48)


def test_formats_whose_decoders_take_more_may_be_less_large(monkeypatch):
    monkeypatch.setattr("dajax.images.read.MAX_PIXELS", 4000)
    assert read_image(encoded("PNG"), max_pixels=4000).shape == (48, 64, 3)
    with pytest.raises(ImageError, match="3,072 pixels of WEBP take 17 bytes each"):
        read_image(encoded("WEBP"), max_pixels=4000)
    assert read_image(encoded("WEBP"), max_pixels=6000).shape == (48, 64, 3)


def test_exif_is_read_within_the_same_limits(tmp_path):
    (tmp_path / "a.gif").write_bytes(gif((65_535, 65_535), (1, 1)))
    with pytest.raises(ImageError, match="max_pixels"):
        Intrinsics.of_exif(tmp_path / "a.gif")
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ImageError, match="is PostScript, not an image in one of the formats"):
        Intrinsics.of_exif(tmp_path / "a.eps")
    with opened(encoded("PNG")) as image:
        assert image.size == (64, 48)


# --- time ----------------------------------------------------------------------------------------------------------


def with_scans(data, count):
    """Repeat the last scan of a progressive JPEG."""
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + b"\xff\xd9"


def test_thousands_of_scans(monkeypatch):
    data = with_scans(encoded("JPEG", np.zeros((4000, 4000, 3), np.uint8), progressive=True), 5_000)
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", None)
    with pytest.raises(ImageError, match="626 scans or more over 16,000,000 pixels"):
        read_image(data)


def test_scans_are_counted_where_they_are():
    """In thumbnails, in tables and behind the image, the bytes of their marker are something else."""
    data = with_scans(encoded("JPEG", progressive=True), 3)
    limit = 10 + 3
    stray = b"\xff\xda" * 100
    thumbnail = data[:2] + b"\xff\xe5" + struct.pack(">H", len(stray) + 2) + stray + data[2:]
    last = data.rindex(b"\xff\xda")
    comment = data[:last] + b"\xff\xfe\0\x06\xff\xd9\xff\xd9" + data[last:]
    for one in (data, thumbnail, data + stray, comment):
        kind, at = headers._jpeg_frame(one)
        assert kind == 0xC2
        assert headers._jpeg_scans(one, at, 1000) == limit


def test_bytes_of_a_progressive_jpeg_are_bounded(monkeypatch):
    data = encoded("JPEG", progressive=True)
    monkeypatch.setattr(headers, "MAX_PROGRESSIVE_BYTES", len(data))
    assert read_image(data).shape == (48, 64, 3)
    with pytest.raises(ImageError, match=r"progressive JPEG of .* bytes would be decoded for minutes"):
        read_image(data + b"\0")


def test_metadata_of_a_jpeg_is_bounded():
    exif = b"\xff\xe1" + struct.pack(">H", 65_535) + b"Exif\0\0" + bytes(65_527)
    data = encoded("JPEG")
    with pytest.raises(ImageError, match="bytes of metadata before the image"):
        read_image(data[:2] + exif * 500 + data[2:])


def test_run_lengths_of_a_bmp_are_bounded():
    head = struct.pack("<IiiHHIIiiII", 40, 10_000, 10_000, 1, 8, 1, 2, 0, 0, 256, 0)
    data = b"BM" + struct.pack("<IHHI", 1078, 0, 0, 1078) + head + bytes(1024) + b"\0\x01"
    with pytest.raises(ImageError, match="run-length encoded BMP of 100,000,000 pixels"):
        read_image(data)


def test_chunks_of_a_png_are_bounded(monkeypatch):
    monkeypatch.setattr(headers, "MAX_PNG_CHUNKS", 3)
    with pytest.raises(ImageError, match="more than 3 chunks"):
        read_image(png(chunk(b"tIME", bytes(7))))


# --- metadata ------------------------------------------------------------------------------------------------------

BOMB = zlib.compress(bytes(50_000_000))


@pytest.mark.parametrize(
    "bad",
    [
        chunk(b"tEXt", b"Comment\0hello", checksum=1),
        chunk(b"zTXt", b"Comment\0\0" + BOMB),
        chunk(b"zTXt", b"Comment\0\0nothing"),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
        chunk(b"iTXt", b"Comment"),
        chunk(b"iCCP", b"sRGB\0\0" + BOMB),
        chunk(b"iCCP", b"no end"),
        chunk(b"eXIf", b"II*\0", checksum=1),
        chunk(b"prIv", b"abc", checksum=1),
        chunk(b"pHYs", bytes(9), checksum=1),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("where", ["before", "after"])
def test_bad_metadata_of_a_png_is_passed_over(bad, where):
    data = png(bad) if where == "before" else png(after=[bad])
    with pytest.warns(UserWarning, match=f"{bad[4:8].decode()}.* is passed over"):
        np.testing.assert_array_equal(read_image(data), PIXELS)


def test_much_text_is_passed_over():
    texts = [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(900_000)))] * 100
    with pytest.warns(UserWarning, match="zTXt"):
        np.testing.assert_array_equal(read_image(png(*texts)), PIXELS)


def test_what_shows_stays_with_the_image():
    """Transparency is no metadata: the image would look different without it."""
    hidden = chunk(b"tRNS", struct.pack(">HHH", *PIXELS[0, 0]))
    bad = chunk(b"tEXt", b"Comment\0hello", checksum=1)
    with pytest.warns(UserWarning, match="tEXt"):
        assert read_image(png(hidden, bad))[0, 0].tolist() == [255, 255, 255]
    with pytest.raises(ImageError, match="begins as PNG, but"):
        read_image(png(chunk(b"tRNS", struct.pack(">HHH", *PIXELS[0, 0]), checksum=1)))
    exif = Image.Exif()
    exif[0x0112] = 3
    with pytest.warns(UserWarning, match="tEXt"):
        turned = read_image(png(chunk(b"eXIf", exif.tobytes()[6:]), bad))
    np.testing.assert_array_equal(turned, PIXELS[::-1, ::-1])


# --- kinds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_transparent_grey_of_few_bits(bits):
    """tRNS holds the sample as it is stored (PNG 1.2, 4.2.1.1)."""
    key = 2**bits - 1
    row = int(f"{key:0{bits}b}" + "0" * (8 - bits), 2)  # the first sample is the transparent one, the others are black
    data = png(chunk(b"tRNS", struct.pack(">H", key)), samples=np.array([[row]]), bits=bits, colour=0)
    assert read_image(data, background=(1, 2, 3))[0, 0].tolist() == [1, 2, 3]
    data = data.replace(struct.pack(">II", 1, 1), struct.pack(">II", 8 // bits, 1))
    fixed = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", data[16:29]) + data[33:]
    assert read_image(fixed, background=(1, 2, 3))[0].tolist() == [[1, 2, 3]] + [[0, 0, 0]] * (8 // bits - 1)


def test_png_colours_of_16_bits():
    dim = np.full((4, 4, 3), 900, np.uint16)
    dim[0, 0] = 1300
    with pytest.warns(UserWarning, match="values from 771 to 1285, which is 3 of 256 greys"):
        read_image(png(samples=dim, bits=16))
    with pytest.raises(ImageError, match=r"PNG of 16 bits with colours.*value_range cannot be used"):
        read_image(png(samples=dim, bits=16), value_range="auto")
    with pytest.raises(ImageError, match="transparent colour of 16 bits"):
        read_image(png(chunk(b"tRNS", struct.pack(">HHH", 900, 900, 900)), samples=dim, bits=16))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ((4, 12), "a JPEG with 12 bits a sample"),
        ((9, 2), "a JPEG with 2 components"),
        ((1, 0xC5), "a hierarchical JPEG"),
        ((1, 0xF7), "JPEG-LS"),
    ],
    ids=range(4),
)
def test_kinds_of_jpeg_are_named(change, kind):
    data = bytearray(encoded("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + change[0]] = change[1]
    with pytest.raises(ImageError, match=kind):
        read_image(bytes(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF"])
def test_damaged_files_are_called_what_they_are(kind):
    data = encoded(kind)
    called = {"PPM": "PNM", "WEBP": "WebP"}.get(kind, kind)
    for cut in (40, len(data) // 2):
        with pytest.raises(ImageError, match=rf"begins as {called}, but"):
            read_image(data[:cut] + b"\0")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"\x76\x2f\x31\x01", "an OpenEXR image"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw file"),
    ],
)
def test_other_formats_are_named(data, kind):
    with pytest.raises(ImageError, match=f"is {kind}, not an image in one of the formats"):
        read_image(data + bytes(100))


# --- what breaks off -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_jpeg_that_lacks_its_end(options):
    """Wherever it breaks off after its first scan has begun; tables between scans are cut, too."""
    data = encoded("JPEG", **options)
    whole = read_image(data)
    start = data.index(b"\xff\xda") + 14
    for cut in range(start, len(data) - 1, 7):
        with pytest.raises(ImageError, match=r"is truncated.*Pass allow_truncated=True"):
            read_image(data[:cut])
        with pytest.warns(UserWarning, match="is truncated; what is missing is blank"):
            partial = read_image(data[:cut], allow_truncated=True)
    assert np.abs(partial.astype(int) - whole).mean() < 2


def test_a_long_file_is_walked_over_without_copies():
    data = png(*[chunk(b"prIv", bytes(1000))] * 2000)
    tracemalloc.start()
    headers.read_header(io.BytesIO(data), "PNG", "x")
    assert tracemalloc.get_traced_memory()[1] < 2_500_000 + len(data)
    tracemalloc.stop()
