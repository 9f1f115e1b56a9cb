"""What `read_image` accepts, how it converts, and that everything else is an ImageError."""

import io
import os
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from dajax.errors import ImageError
from dajax.images import read as read_module
from dajax.images.read import DecodedImage, read_image


def make_image(height=6, width=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height=64, width=96):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


# --- sources -------------------------------------------------------------------------------------------------------


def test_every_source_gives_the_same_image(tmp_path):
    image = make_image()
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))

    class Pipe(io.RawIOBase):  # cannot seek
        def __init__(self):
            self.inner = io.BytesIO(path.read_bytes())

        def read(self, n=-1):
            return self.inner.read(n)

    class Exported:
        def __array__(self, dtype=None, copy=None):
            return image

    with path.open("rb") as handle:
        for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), handle, Pipe()):
            np.testing.assert_array_equal(read_image(source), image)
        assert not handle.closed
    for source in (Image.open(path), image, Exported()):
        np.testing.assert_array_equal(read_image(source), image)


def test_jax_arrays():
    jnp = pytest.importorskip("jax.numpy")
    np.testing.assert_array_equal(read_image(jnp.asarray(make_image())), make_image())
    with pytest.raises(ImageError, match="bfloat16"):
        read_image(jnp.ones((4, 4, 3), jnp.bfloat16))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF", "JPEG", "MPO", "AVIF"])
def test_formats_are_recognised_by_content(tmp_path, kind):
    path = tmp_path / "wrong suffix.txt"
    options = {"lossless": True} if kind == "WEBP" else {}
    path.write_bytes(encoded(smooth(), kind, **options))
    result = read_image(path)
    assert (result.shape, result.dtype) == ((64, 96, 3), np.uint8)
    if kind in ("PNG", "BMP", "PPM", "TIFF", "WEBP"):
        np.testing.assert_array_equal(result, smooth())
    else:
        assert np.abs(result.astype(int) - smooth()).mean() < 12


@pytest.mark.parametrize("kind", ["EPS", "PDF", "DDS", "ICO", "TGA", "SGI", "PCX", "JPEG2000"])
def test_other_formats_never_reach_a_decoder(kind):
    with pytest.raises(ImageError, match="not an image in one of the formats"):
        read_image(encoded(smooth(), kind))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello, world", "not an image"),
        (b"\n <!DOCTYPE html><html></html>", "is an HTML or XML page, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a git-LFS pointer, not an image"),
        (b"\x00" * 1000, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image"),
        (b"\xff\xd8\xff", "not an image|damaged"),
        (b"\x89PNG\r\n\x1a\n", "not an image|damaged"),
    ],
)
def test_what_is_not_a_image(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert "a.jpg" in str(caught.value)
    with pytest.raises(ImageError, match=message):
        read_image(content)


@pytest.mark.parametrize(
    "url", ["http://host/a.jpg", "https://user:secret@host/a.jpg?key=secret", "HTTPS://host/a.jpg"]
)
def test_urls_are_not_read(url):
    with pytest.raises(ImageError, match="Download") as caught:
        read_image(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("source", [None, 3, [make_image()], {"a": 1}, io.StringIO("text")])
def test_other_things_are_not_images(source):
    with pytest.raises(ImageError):
        read_image(source)


# --- paths ---------------------------------------------------------------------------------------------------------


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    cases = {
        "missing.jpg": "No such file",
        "fifo": "pipe",
        "loop": "symbolic links",
        "dangling": "No such file",
        ".": "folder",
        "nul\0.jpg": "null",
        "x" * 300: "too long",
    }
    for name, message in cases.items():
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match="device"):
        read_image("/dev/zero")


def test_no_permission(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(make_image()))
    monkeypatch.setattr(
        read_module.os, "open", lambda *a: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(ImageError, match="Permission denied"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"new\nline.png", b"qu'ot\"e.png", b"-rf.png", b"a" * 251 + b".png"])
def test_odd_names(tmp_path, name):
    path = os.path.join(tmp_path, os.fsdecode(name))
    Path(path).write_bytes(encoded(make_image()))
    np.testing.assert_array_equal(read_image(path), make_image())
    Path(path).write_bytes(b"nothing")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value).isprintable()


def test_too_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(read_module, "MAX_IMAGE_BYTES", 50)
    (tmp_path / "a.png").write_bytes(encoded(make_image()))
    for source in (tmp_path / "a.png", encoded(make_image()), io.BytesIO(encoded(make_image()))):
        with pytest.raises(ImageError, match="larger than 50 bytes"):
            read_image(source)


# --- damage --------------------------------------------------------------------------------------------------------


def test_decompression_bomb_is_refused_before_decoding():
    def chunk(kind, data):
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    def png(width, height):
        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))

    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=r"max_pixels=200,000,000"):
        read_image(png(20_000, 20_000))
    # 121 megapixels: Pillow alone would warn, here it is below the limit and fails for being cut short.
    with pytest.raises(ImageError, match="truncated"):
        read_image(png(11_000, 11_000))
    assert limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="max_pixels=40"):
        read_image(encoded(make_image()), max_pixels=40)
    for source in (make_image(), Image.fromarray(make_image())):
        with pytest.raises(ImageError, match="max_pixels=40"):
            read_image(source, max_pixels=40)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})])
def test_truncated(kind, options, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    data = encoded(image, kind, **options)
    data = data[: len(data) * 6 // 10]
    with pytest.raises(ImageError, match="truncated"):
        read_image(data)
    with pytest.warns(UserWarning, match="truncated"):
        partial = read_image(data, allow_truncated=True)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(io.BytesIO(data)) as reference:
        expected = np.asarray(reference.convert("RGB"))
    if kind == "JPEG":
        np.testing.assert_array_equal(partial, expected)
    else:
        np.testing.assert_array_equal(partial[:140], image[:140])
        assert not partial[170:].any()


def test_metadata_bombs_are_bounded():
    entries = PngImagePlugin.PngInfo()
    entries.add_text("Comment", "a" * 50_000_000, zip=True)
    for options, chunk in (({"pnginfo": entries}, "zTXt"), ({"icc_profile": b"\0" * 50_000_000}, "iCCP")):
        with pytest.warns(UserWarning, match=rf"metadata that is damaged or too large \({chunk}\)"):
            np.testing.assert_array_equal(read_image(encoded(Image.fromarray(make_image()), **options)), make_image())


def test_broken_exif_is_ignored_aloud(monkeypatch):
    def broken(self):
        raise SyntaxError("not a TIFF file")

    data = encoded(make_image())
    monkeypatch.setattr(Image.Image, "getexif", broken)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "getexif", broken)
    with pytest.warns(UserWarning, match="EXIF"):
        np.testing.assert_array_equal(read_image(data), make_image())


@pytest.mark.parametrize("error", [ValueError, SyntaxError, RuntimeError, NotImplementedError, MemoryError, IndexError])
def test_whatever_a_decoder_raises_is_an_image_error(monkeypatch, error):
    def explode(self):
        raise error("inside the decoder")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", explode)
    with pytest.raises(ImageError, match="inside the decoder"):
        read_image(encoded(make_image()))


def test_interrupts_pass(monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_image(encoded(make_image()))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF"])
@pytest.mark.filterwarnings("default")
def test_fuzz(kind):
    rng = np.random.default_rng(len(kind))
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    data = encoded(smooth(24, 32), kind, **options)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 12)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        if rng.random() < 0.2:
            at = rng.integers(len(damaged) + 1)
            damaged[at:at] = rng.bytes(rng.integers(1, 20))
        for allow_truncated in (False, True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    result = read_image(bytes(damaged), allow_truncated=allow_truncated, max_pixels=1_000_000)
                    assert result.ndim == 3
                    outcomes["read"] += 1
                except ImageError:
                    outcomes["refused"] += 1
    assert outcomes["refused"] > 10, outcomes


def test_threads_do_not_disturb_each_other():
    data, results = encoded(make_image()), []

    def work():
        for _ in range(30):
            results.append(np.array_equal(read_image(data), make_image()))

    limit = Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 120
    assert all(results)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "WEBP"])
def test_the_limit_of_pillow_is_not_asked(kind, monkeypatch):
    """It comes once more when a TIFF is decoded, and where a GIF's frame begins."""
    data = encoded(make_image(), kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(data).shape == (6, 8, 3)
    with read_module.opened(data) as image:
        image.load()
    assert Image.MAX_IMAGE_PIXELS == 10


# --- orientation, modes, frames ------------------------------------------------------------------------------------

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(make_image(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = UPRIGHT.get(orientation, UPRIGHT[1])(make_image())
    np.testing.assert_array_equal(read_image(data), expected)
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(data))), expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"])
def test_opaque_modes_become_rgb(mode):
    if mode == "LAB":
        image = Image.merge("LAB", [Image.new("L", (8, 6), level) for level in (137, 128, 128)])
        expected = np.full((6, 8, 3), 128)  # L* = 53.7 of 100 is the middle grey of sRGB
    else:
        image = Image.fromarray(smooth(6, 8)).convert(mode)
        expected = np.asarray(image.convert("RGB"))
    before = image.tobytes()
    result = read_image(image)
    assert (result.shape, result.dtype) == ((6, 8, 3), np.uint8)
    np.testing.assert_allclose(result.astype(int), expected, atol=3)
    assert image.tobytes() == before


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF"), ("YCbCr", "JPEG")])
def test_opaque_modes_in_files(mode, kind):
    if mode == "LAB":
        image = Image.merge("LAB", [Image.new("L", (8, 6), level) for level in (137, 128, 128)])
    else:
        image = Image.fromarray(np.full((6, 8, 3), 128, np.uint8)).convert(mode)
    np.testing.assert_allclose(read_image(encoded(image, kind)).astype(int), 128, atol=6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa", "P"])
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
def test_transparency_is_laid_on_the_background(mode, background):
    # Left half opaque grey (a level of the web palette), right half fully transparent with a colour hidden under it.
    rgba = np.full((4, 8, 4), (102, 102, 102, 255), np.uint8)
    rgba[:, 4:] = (200, 200, 200, 0)
    image = Image.fromarray(rgba)
    if mode == "P":
        grey = image.convert("RGB").convert("L")
        image = grey.convert("P")
        image.info["transparency"] = int(np.asarray(image)[0, 7])
    elif mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    else:
        alpha = image.getchannel("A")
        image = image.convert(mode)
        image.putalpha(alpha)  # Pillow 11.3 makes RGBA opaque on the way to PA
    result = read_image(image, background=background)
    np.testing.assert_allclose(result[:, :4].astype(int), 102, atol=1)
    np.testing.assert_array_equal(result[:, 4:], np.broadcast_to(background, (4, 4, 3)))


def test_half_transparent_is_mixed():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 3] = 128
    for source in (rgba, encoded(rgba), rgba / 255):
        np.testing.assert_allclose(read_image(source).astype(int), 127, atol=1)


def test_transparent_palette_and_grey_in_png():
    image = Image.fromarray(np.array([[0, 200]], np.uint8))
    assert read_image(encoded(image, transparency=200), background=(1, 2, 3)).tolist() == [[[0, 0, 0], [1, 2, 3]]]
    wide = Image.fromarray(np.array([[0, 65535, 513]], np.uint16))
    wide.info["transparency"] = 513
    assert read_image(wide, background=(1, 2, 3)).tolist() == [[[0] * 3, [255] * 3, [1, 2, 3]]]


@pytest.mark.parametrize("background", [(0, 0, 256), (-1, 0, 0)])
def test_background_is_checked(background):
    with pytest.raises(ImageError, match="background"):
        read_image(make_image(), background=background)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(kind):
    wide = np.array([[0, 257, 400, 32896, 65535]], np.uint16)
    expected = np.repeat(np.array([[0, 1, 2, 128, 255]])[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(encoded(wide, kind)), expected)
    np.testing.assert_array_equal(read_image(wide), expected)
    np.testing.assert_array_equal(read_image(Image.fromarray(wide.astype(np.int32))), expected)  # mode I
    assert read_image(encoded(wide, kind), value_range=(0, 514))[0, :, 0].tolist() == [0, 128, 198, 255, 255]


def test_wide_integers_and_floats_need_a_range():
    wide = Image.fromarray(np.array([[-5, 70_000]], np.int32))
    with pytest.raises(ImageError, match="-5 to 70000"):
        read_image(wide)
    assert read_image(wide, value_range=(-5, 70_000))[0, :, 0].tolist() == [0, 255]
    floating = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    for source in (floating, encoded(floating, "TIFF")):
        with pytest.raises(ImageError, match="value_range"):
            read_image(source)
        assert read_image(source, value_range=(0, 2))[0, :, 0].tolist() == [0, 64, 128]
    with pytest.raises(ImageError, match="nan at index"):
        read_image(Image.fromarray(np.array([[0, np.nan]], np.float32)), value_range=(0, 1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "array", "PIL"])
def test_a_range_that_leaves_few_greys_is_said(kind):
    """12 bits in a file of 16 are 16 of 256 greys, and 14 bits are 64."""

    def source(values):
        pil = Image.fromarray(values)
        return {"array": values, "PIL": pil}[kind] if kind in ("array", "PIL") else encoded(values, kind)

    for white, greys in ((4095, 17), (16_383, 65)):
        values = np.array([[0, 300, white]], np.uint16)
        with pytest.warns(UserWarning, match=f"values from 0 to {white}, which is {greys} of 256 greys if 0 is black"):
            read_image(source(values))
        expected = np.rint(values[0] / white * 255).tolist()
        for value_range in ("auto", (0, white)):
            assert read_image(source(values), value_range=value_range)[0, :, 0].tolist() == expected
    # Neither a wide range nor an image of one value is worth a word; a chosen range only if nothing is left.
    for values in ([[0, 20_000]], [[5, 5]]):
        read_image(source(np.array(values, np.uint16)))
    read_image(source(np.array([[3000, 3100]], np.uint16)), value_range=(0, 65_535 // 2))
    with pytest.warns(UserWarning, match="which is 1 of 256 greys if 10000 is black and 20000 white"):
        read_image(source(np.array([[3000, 3100]], np.uint16)), value_range=(10_000, 20_000))
    assert read_image(source(np.array([[7, 7]], np.uint16)), value_range="auto").max() == 0


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_first_frame_and_a_warning(kind):
    frames = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (40, 130, 220)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="first is used"):
        result = read_image(data)
    np.testing.assert_allclose(result.astype(int), 40, atol=3)


def test_first_of_an_mpo_is_the_image():
    frames = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (40, 130)]
    result = read_image(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    np.testing.assert_allclose(result.astype(int), 40, atol=3)


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"hevx"])
def test_heic_names_its_extra(brand, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\x00\x00\x00\x18ftyp" + brand + b"\x00\x00\x00\x00mif1" + brand + b"\x00" * 100
    with pytest.raises(ImageError, match=r"pip install '\.\[heif\]'"):
        read_image(data)


def test_empty_pil_image_and_closed_file(tmp_path):
    with pytest.raises(ImageError, match="empty"):
        read_image(Image.new("RGB", (0, 5)))
    (tmp_path / "a.png").write_bytes(encoded(make_image()))
    with Image.open(tmp_path / "a.png") as closed:
        pass
    with pytest.raises(ImageError):
        read_image(closed)


# --- arrays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_uint8_over_255_comes_back(dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(read_image((levels / 255).astype(dtype))[..., 0], levels)


def test_layouts():
    grey = make_image(6, 8, 1)
    for source in (grey, grey[..., 0]):
        np.testing.assert_array_equal(read_image(source), np.repeat(grey, 3, axis=2))
    np.testing.assert_array_equal(read_image(grey[..., 0], layout="HW"), np.repeat(grey, 3, axis=2))
    np.testing.assert_array_equal(read_image(make_image().transpose(2, 0, 1), layout="CHW"), make_image())
    np.testing.assert_array_equal(read_image(make_image(3, 5, 3), layout="HWC"), make_image(3, 5, 3))
    assert read_image(make_image(1, 1, 3)).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        ((3, 6, 8), None, "layout='CHW'"),
        ((3, 6, 3), None, "both be channels"),
        ((3, 6, 4), None, "both be channels"),
        ((6, 8, 2), None, "got 2"),
        ((6, 8, 5), "HWC", "got 5"),
        ((6, 8, 3), "CHW", "got 6"),
        ((6, 8, 3), "HW", "3 axes"),
        ((6, 8), "CHW", "2 axes"),
        ((6,), None, "1 axes"),
        ((), None, "0 axes"),
        ((2, 6, 8, 3), None, "one by one"),
        ((1, 2, 6, 8, 3), None, "5 axes"),
        ((0, 8, 3), None, "empty"),
        ((6, 0), None, "empty"),
        ((6, 8, 3), "WHC", "layout must be"),
    ],
)
def test_shapes_that_are_not_one_image(shape, layout, message):
    with pytest.raises(ImageError, match=message):
        read_image(np.zeros(shape, np.uint8), layout=layout)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32, np.int64, np.uint32, complex, object, "U1", "M8[s]"])
def test_dtypes_that_are_not_pixels(dtype):
    with pytest.raises(ImageError, match=r"(?i)convert"):
        read_image(np.zeros((4, 4, 3), dtype))


def test_integers_with_a_range():
    values = np.array([[-10, 0, 10]], np.int64)
    assert read_image(values, value_range=(-10, 10))[0, :, 0].tolist() == [0, 128, 255]
    for bad in ((1, 1), (2, 1), (0, float("nan"))):
        with pytest.raises(ImageError, match="black < white"):
            read_image(values, value_range=bad)
    with pytest.raises(ImageError, match="alpha"):
        read_image(np.zeros((5, 5, 4)), value_range=(0, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_says_where(bad):
    array = np.zeros((5, 6, 3), np.float32)
    array[2, 4, 1] = bad
    with pytest.raises(ImageError, match=r"index \[2, 4, 1\]"):
        read_image(array)


@pytest.mark.parametrize(("low", "high"), [(0, 255.0), (-1.0, 1.0), (0.0, 1.001)])
def test_floats_outside_the_unit_interval(low, high):
    array = np.full((4, 4, 3), low, np.float32)
    array[0, 0] = high
    with pytest.raises(ImageError, match=rf"\[{low:g}, {high:g}\]"):
        read_image(array)


def test_masked_arrays_are_refused():
    with pytest.raises(ImageError, match="filled"):
        read_image(np.ma.masked_array(make_image(), mask=False))


def test_arrays_are_never_changed_or_shared():
    image = make_image(6, 8, 4)
    image.flags.writeable = False
    for source in (image, image[..., :3], image[::-1, ::2, :3], np.asfortranarray(image[..., :3]), image[..., 0] / 255):
        before = source.copy()
        result = read_image(source)
        assert result.flags.writeable
        assert not np.shares_memory(result, source)
        result[:] = 0
        np.testing.assert_array_equal(source, before)


# --- what is handed on ---------------------------------------------------------------------------------------------


def test_what_was_read_is_taken_as_it_is():
    pixels = make_image(3, 5)  # as an array, its axes would be ambiguous
    with pytest.raises(ImageError, match="layout"):
        read_image(pixels)
    assert read_image(DecodedImage(pixels)) is pixels


def test_errors_use_the_name_that_is_given(tmp_path):
    for source in (b"text", tmp_path / "missing.jpg", np.ones((4, 4)) * 7):
        with pytest.raises(ImageError, match=r"^frame 7\b"):
            read_image(source, name="frame 7")
    (tmp_path / "a.gif").write_bytes(
        encoded(make_image(), "GIF", save_all=True, append_images=[Image.new("L", (8, 6))])
    )
    with pytest.warns(UserWarning, match=r"^frame 7 has several frames"):
        read_image(tmp_path / "a.gif", name="frame 7")


def test_this_room_starts_without_jax():
    rooms = ", ".join(
        f"dajax.{room}"
        for room in (
            "images.image_sources",
            "images.find",
            "images.fetch",
            "preprocessing.processor",
            "depth_maps.write",
        )
    )
    code = f"import sys, {rooms}; print('jax' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
