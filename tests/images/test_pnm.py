"""PNM files by netpbm's manual pages: every largest value, plain and raw, with comments; quick and in little memory."""

import time

import numpy as np
import pytest
from PIL import PpmImagePlugin

from dajax.errors import ImageError
from dajax.images.read import read_image

RNG = np.random.default_rng(0)


def plain(values, kind, white, space=b" "):
    height, width = values.shape[:2]
    head = b"P%d %d %d\n" % (kind, width, height) + (b"" if kind == 1 else b"%d\n" % white)
    return head + space.join(b"%d" % value for value in values.ravel()) + b"\n"


def raw(values, kind, white):
    height, width = values.shape[:2]
    return b"P%d %d %d %d\n" % (kind, width, height, white) + values.astype("u1" if white < 256 else ">u2").tobytes()


@pytest.mark.parametrize("white", [1, 3, 100, 255, 256, 1023, 4095, 65_535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_every_largest_value(kind, white):
    values = RNG.integers(0, white + 1, (7, 9, 3) if kind in (3, 6) else (7, 9))
    values.flat[:2] = 0, white
    result = read_image(plain(values, kind, white) if kind < 4 else raw(values, kind, white))
    expected = np.rint(values / white * 255)
    np.testing.assert_allclose(
        result.astype(int), expected if kind in (3, 6) else np.stack([expected] * 3, 2), atol=0.5
    )


@pytest.mark.parametrize("space", [b"", b" ", b"\n", b" # a comment 0 1\n"])
def test_plain_bitmap(space):
    values = RNG.integers(0, 2, (7, 9))
    np.testing.assert_array_equal(read_image(plain(values, 1, 1, space))[:, :, 0], (1 - values) * 255)


def test_comments():
    assert read_image(b"P2 # 5 5\n2#x\n1\n# y\n9 # z\n0 # 7\n9")[0, :, 0].tolist() == [0, 255]


def test_parts_of_a_long_text(monkeypatch):
    """Numbers and comments go on from one part of the text to the next."""
    monkeypatch.setattr("dajax.images.pnm._TEXT_AT_ONCE", 7)
    values = RNG.integers(0, 4096, (11, 13))
    for space in (b" ", b" \n#0 1\n"):
        result = read_image(plain(values, 2, 4095, space))
        np.testing.assert_array_equal(result[:, :, 0], np.rint(values / 4095 * 255))


def test_a_range():
    values = np.array([[3000, 3050, 3100]])
    with pytest.warns(UserWarning, match="from 3000 to 3100, which is 7 of 256 greys if 0 is black and 4095 white"):
        read_image(raw(values, 5, 4095))
    for value_range in ("auto", (3000, 3100)):
        assert read_image(raw(values, 5, 4095), value_range=value_range)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"P5 4 4 4095\n" + bytes(20), "is truncated: 10 of 16 samples"),
        (b"P2 4 4 9\n1 2 3", "is truncated: 3 of 16 samples"),
        (b"P2 2 1 9\n1 12", "not numbers from 0 to 9"),
        (b"P2 2 1 9\n1 -2", "not numbers from 0 to 9"),
        (b"P2 2 1 9\n1 x", "not numbers from 0 to 9"),
        (b"P1 2 1\n1 2", "not numbers from 0 to 1"),
        (b"P5 2 1 100\n\x01\xff", "a sample 255, more than its largest value 100"),
        (b"P5 2 1 0\n\0\0", "largest value is 0"),
        (b"P5 2 1 65536\n\0\0", "largest value is 65536"),
        (b"P5 2 x", "header is cut or damaged"),
        (b"P2 0 4 9\n", "empty"),
        (b"P2 90000 90000 9\n", "more than max_pixels"),
        (b"P5 90000 90000 9\n", "more than max_pixels"),
    ],
)
def test_damage(data, message):
    with pytest.raises(ImageError, match=message):
        read_image(data)


def test_partial():
    with pytest.warns(UserWarning, match="truncated"):
        result = read_image(b"P2 2 2 9\n9 9 9", allow_truncated=True)
    assert result[:, :, 0].tolist() == [[255, 255], [255, 0]]


@pytest.mark.parametrize("white", [1, 255, 4095, 65_535])
@pytest.mark.parametrize("kind", range(1, 7))
def test_pillow_reads_none_of_them_in_python(kind, white, monkeypatch):
    for decoder in (PpmImagePlugin.PpmDecoder, PpmImagePlugin.PpmPlainDecoder):
        monkeypatch.setattr(decoder, "decode", None)
    values = np.zeros((4, 8, 3) if kind in (3, 6) else (4, 8), int)
    bitmap = b"P4 8 4\n" + bytes(4)
    data = {1: plain, 2: plain, 3: plain, 4: lambda *_: bitmap, 5: raw, 6: raw}[kind](values, kind, white)
    assert read_image(data).shape == (4, 8, 3)


def test_ten_megapixels_take_no_ten_seconds():
    values = RNG.integers(0, 4096, (2500, 4000))
    start = time.perf_counter()
    read_image(raw(values, 5, 4095))
    assert time.perf_counter() - start < 5
