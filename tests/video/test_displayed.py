"""What is shown of a frame, beside the formulas of the standards, FFmpeg's filters and OpenCV."""

import itertools
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from videos import frame_image, make_video, write_frames, yuv_frame

from dajax.errors import ImageError
from dajax.video import opening
from dajax.video.displayed import matrix_of_size
from dajax.video.reading import VideoReader

ONE = 1 << 16


def read(path):
    with VideoReader(path) as reader:
        return list(reader), reader


def matrix_of(a, b, c, d):
    return [a, b, 0, c, d, 0, 0, 0, 1 << 30]


def rgb_frames(image, form="rgb24", count=2):
    return [av.VideoFrame.from_ndarray(image, format=form) for _ in range(count)]


# --- turned and mirrored -------------------------------------------------------------------------------------------

TURNS = [(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)]
TURNS += [(0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)]


def placed(image, a, b, c, d):
    """ISO/IEC 14496-12, 8.3.2: the pixel (p, q) is shown at (a p + c q, b p + d q), pixel by pixel."""
    height, width = image.shape[:2]
    places = {(a * p + c * q, b * p + d * q): image[q, p] for p in range(width) for q in range(height)}
    left, top = min(x for x, _ in places), min(y for _, y in places)
    shown = np.zeros((max(y for _, y in places) - top + 1, max(x for x, _ in places) - left + 1, 3), np.uint8)
    for (x, y), colour in places.items():
        shown[y - top, x - left] = colour
    return shown


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("turn", TURNS)
def test_the_eight_display_matrices(tmp_path, turn, scale):
    image = frame_image(9, (32, 48))
    matrix = matrix_of(*(int(scale * ONE * number) for number in turn))
    frames, reader = read(write_frames(tmp_path / "a.mov", rgb_frames(image), "qtrle", matrix=matrix))
    np.testing.assert_array_equal(frames[0].pixels, placed(image, *turn))
    assert (reader.size, reader.notes) == (frames[0].pixels.shape[:2], set())


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_turns_as_opencv_shows_them(tmp_path, turn):
    path = make_video(tmp_path / "a.mp4", turn=turn, pts=range(0, 9000, 3000))
    video = cv2.VideoCapture(str(path))
    shown = video.read()[1][..., ::-1]
    video.release()
    frames, _ = read(path)
    assert np.abs(frames[0].pixels.astype(int) - shown).mean() < 4


@pytest.mark.parametrize(
    "numbers",
    [(0, 0, 0, 0), (ONE, ONE, ONE, ONE), (ONE, 0, ONE, 0), (46341, 46341, -46341, 46341)],
    ids=["zero", "all to a diagonal", "all to a line", "45 degrees"],
)
def test_a_matrix_that_is_no_quarter_turn_is_ignored(tmp_path, numbers):
    image = frame_image(9, (32, 48))
    path = write_frames(tmp_path / "a.mov", rgb_frames(image), "qtrle", matrix=matrix_of(*numbers))
    frames, reader = read(path)
    with av.open(str(path)) as container:
        kept = next(container.decode(video=0)).side_data.get("DISPLAYMATRIX") is not None
    np.testing.assert_array_equal(frames[0].pixels, image)
    assert len(reader.notes) == kept  # FFmpeg leaves out some of them itself
    assert all("display matrix is no turn by quarters" in note for note in reader.notes)


def test_side_data_that_pyav_does_not_know(tmp_path):
    """MJPEG with EXIF, whose side data makes PyAV refuse all others: orientation 6 is a quarter turn clockwise."""
    import io

    from PIL import Image

    image = np.asarray(Image.fromarray(frame_image(9, (32, 48))).resize((48, 32)))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", exif=exif, quality=95)
    (tmp_path / "a.mjpeg").write_bytes(3 * file.getvalue())
    frames, _ = read(tmp_path / "a.mjpeg")
    assert frames[0].pixels.shape == (48, 32, 3)
    assert np.abs(frames[0].pixels.astype(int) - np.rot90(image, -1)).mean() < 6


# --- pixels that are not square ------------------------------------------------------------------------------------


def by_opencv(path):
    """The first frame, turned, and made square with the shape of pixels that OpenCV finds."""
    video = cv2.VideoCapture(str(path))
    video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    image = video.read()[1][..., ::-1]
    aspect = video.get(cv2.CAP_PROP_SAR_NUM) / video.get(cv2.CAP_PROP_SAR_DEN)
    turns = int(video.get(cv2.CAP_PROP_ORIENTATION_META)) // 90
    video.release()
    return np.rot90(
        cv2.resize(image, None, fx=max(aspect, 1), fy=max(1 / aspect, 1), interpolation=cv2.INTER_CUBIC), -turns
    )


@pytest.mark.parametrize(
    ("aspect", "size"),
    [(Fraction(4, 3), (64, 128)), (Fraction(16, 11), (64, 140)), (Fraction(1, 2), (128, 96))],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_pixels_become_square(tmp_path, name, aspect, size):
    frame = rgb_frames(frame_image(30))[0].reformat(format="yuv444p")
    path = write_frames(tmp_path / name, [frame], "libx264", aspect=aspect, options={"crf": "1"})
    frames, reader = read(path)
    assert (reader.size, reader.notes) == (size, set())
    assert frames[0].pixels.shape == (*size, 3)
    assert np.abs(frames[0].pixels.astype(int) - by_opencv(path)).mean() < 3


def test_a_matrix_that_stretches(tmp_path):
    """QuickTime's matrix may also say that pixels are twice as wide as high."""
    image = frame_image(9, (32, 48))
    path = write_frames(tmp_path / "a.mov", rgb_frames(image), "qtrle", matrix=matrix_of(2 * ONE, 0, 0, ONE))
    frames, reader = read(path)
    assert (reader.size, reader.notes) == ((32, 96), set())
    assert np.abs(frames[0].pixels[:, ::2].astype(int) - image).mean() < 6


def test_pixels_are_square_before_the_frame_is_turned(tmp_path):
    image = frame_image(30)
    frame = rgb_frames(image)[0].reformat(format="yuv444p")
    matrix = matrix_of(0, ONE, -ONE, 0)
    path = write_frames(tmp_path / "a.mp4", [frame], "libx264", aspect=Fraction(4, 3), matrix=matrix)
    frames, reader = read(path)
    assert reader.size == (128, 64)
    assert np.abs(frames[0].pixels.astype(int) - by_opencv(path)).mean() < 3


@pytest.mark.parametrize("aspect", [Fraction(1, 20), Fraction(20, 1)])
def test_a_shape_that_no_pixel_has_is_ignored(tmp_path, aspect):
    frame = rgb_frames(frame_image(30))[0].reformat(format="yuv420p")
    frames, reader = read(write_frames(tmp_path / "a.mp4", [frame], "libx264", aspect=aspect))
    assert frames[0].pixels.shape == (64, 96, 3)
    (note,) = reader.notes
    assert note.startswith("its pixel aspect ratio ")
    assert note.endswith(" is not plausible and was ignored")


# --- transparent ---------------------------------------------------------------------------------------------------


def with_hidden_noise(size=(64, 96)):
    """An image with noise under its transparent left third, and half transparent on the right."""
    image = np.dstack([frame_image(30, size), np.full(size, 255, np.uint8)])
    image[:, : size[1] // 3, :3] = np.random.default_rng(0).integers(0, 256, (size[0], size[1] // 3, 3))
    image[:, : size[1] // 3, 3] = 0
    image[:, 2 * size[1] // 3 :, 3] = 128
    return image


@pytest.mark.parametrize(
    ("name", "codec", "form", "options", "error"),
    [
        ("a.mov", "qtrle", "argb", {}, 0.51),
        ("a.mkv", "ffv1", "bgra", {}, 0.51),
        ("a.mov", "png", "rgba", {}, 0.51),
        ("a.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}, 4),
        ("a.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "4M"}, 8),
        ("a.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "4M"}, 8),
    ],
)
def test_transparency_is_laid_on_white(tmp_path, name, codec, form, options, error):
    image = with_hidden_noise()
    frames = [frame.reformat(format=form) for frame in rgb_frames(image, "rgba")]
    shown, reader = read(write_frames(tmp_path / name, frames, codec, options=options))
    share = image[..., 3:] / 255
    expected = share * image[..., :3] + (1 - share) * 255
    difference = np.abs(shown[0].pixels - expected)
    # Codecs blur the edges of what is transparent, and halve the resolution of colours.
    inner = np.s_[4:-4, np.r_[4:28, 36:60, 68:92]]
    assert difference[inner].max() <= 16 * error
    assert difference[inner].mean() <= error
    assert (shown[0].pixels[4:-4, 4:28] >= 255 - 2 * error).all()
    assert (len(shown), reader.notes) == (2, set())


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_a_transparent_webm_that_is_turned_and_hdr(tmp_path, codec):
    """Only the container says so, and another decoder than FFmpeg's own reads the transparency."""
    image = with_hidden_noise()
    image[:, 32:, :3] = 150
    frame = rgb_frames(image, "rgba")[0].reformat(format="yuva420p")
    frame.colorspace, frame.color_primaries, frame.color_trc = 5, 9, 16
    matrix = matrix_of(0, ONE, -ONE, 0)
    options = {"auto-alt-ref": "0", "crf": "4", "b": "4M"}
    path = write_frames(tmp_path / "a.webm", [frame], codec, matrix=matrix, options=options)
    shown, reader = read(path)
    assert reader.size == (96, 64)
    level = tone_mapped(pq_light(np.array(150 / 255)))
    assert level > 200
    expected = np.rot90(np.r_[[255.0] * 32, [level] * 32, [(255 * 127 + level * 128) / 255] * 32][None], -1)
    difference = np.abs(shown[0].pixels - expected[..., None])
    assert difference[np.r_[4:28, 36:60, 68:92]].max() <= 8


def test_transparency_without_its_decoder(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_WITH_ALPHA", {"vp8": "nothing"})
    frame = rgb_frames(with_hidden_noise(), "rgba")[0].reformat(format="yuva420p")
    frames, reader = read(write_frames(tmp_path / "a.webm", [frame], "libvpx", options={"auto-alt-ref": "0"}))
    assert len(frames) == 1
    assert reader.notes == {"its transparency was ignored, because this PyAV has no decoder nothing"}


def test_a_transparent_gif(tmp_path):
    import PIL.Image

    image = with_hidden_noise()
    image[..., 3] = np.where(image[..., 3] == 255, 255, 0)
    PIL.Image.fromarray(image).save(tmp_path / "a.gif", save_all=True, append_images=[PIL.Image.fromarray(image)])
    shown, _ = read(tmp_path / "a.gif")
    assert (shown[0].pixels[:, :32] == 255).all()
    assert (shown[0].pixels[:, 64:] == 255).all()


# --- colours -------------------------------------------------------------------------------------------------------

# ITU-R BT.601, BT.709 and BT.2020: the shares of red and blue in luma. The keys are the numbers of ITU-T H.273.
SHARES = {5: (0.299, 0.114), 6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}


def rgb_of_yuv(y, u, v, matrix, *, full=False, bits=8):
    """BT.601, BT.709 and BT.2020: RGB, 0 to 1, of stored values."""
    red, blue = SHARES[matrix]
    unit = 1 << bits - 8
    if full:
        top = (1 << bits) - 1
        y, u, v = y / top, (u - 128 * unit) / top, (v - 128 * unit) / top
    else:
        y, u, v = (y / unit - 16) / 219, (u / unit - 128) / 224, (v / unit - 128) / 224
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    return np.array([r, (y - red * r - blue * b) / (1 - red - blue), b])


def coloured(y, u, v, size=(48, 64), kind=np.uint8, **tags):
    values = np.broadcast_to(np.array([y, u, v], kind)[:, None, None], (3, *size))
    return yuv_frame(values, "yuv444p" if kind is np.uint8 else "yuv444p10le", **tags)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
def test_colours_as_they_are_tagged(tmp_path, matrix, full):
    frame = coloured(120, 90, 170, colorspace=matrix, color_range=1 + full)
    frames, _ = read(write_frames(tmp_path / "a.mkv", [frame], "ffv1"))
    expected = 255 * rgb_of_yuv(120, 90, 170, matrix, full=full)
    assert np.abs(frames[0].pixels[20, 30] - expected).max() <= 1.5


@pytest.mark.parametrize(("size", "matrix"), [((48, 64), 6), ((576, 720), 6), ((720, 1280), 1), ((592, 64), 1)])
@pytest.mark.parametrize("stated", [2, 0, 3])
def test_colours_that_are_not_tagged(tmp_path, size, matrix, stated):
    """Nothing, or what YUV cannot be, or a reserved number: BT.601 or BT.709 by the size."""
    frame = coloured(120, 90, 170, size, colorspace=stated)
    frames, _ = read(write_frames(tmp_path / "a.mkv", [frame], "ffv1"))
    assert matrix_of_size(*size) == matrix
    assert np.abs(frames[0].pixels[20, 30] - 255 * rgb_of_yuv(120, 90, 170, matrix)).max() <= 1.5


@pytest.mark.parametrize(("matrix", "name"), [(8, "YCgCo"), (14, "ICtCp"), (10, "BT.2020 with constant luminance")])
def test_a_matrix_that_is_refused_by_name(tmp_path, matrix, name):
    path = write_frames(tmp_path / "a.mkv", [coloured(120, 90, 170, colorspace=matrix)], "ffv1")
    with pytest.raises(ImageError, match=rf"a\.mkv.: its colour matrix \({name}\) cannot be converted to RGB"):
        VideoReader(path)


def test_a_curve_that_is_not_converted(tmp_path):
    path = write_frames(tmp_path / "a.mkv", [coloured(120, 128, 128, colorspace=1, color_trc=9)], "ffv1")
    _, reader = read(path)
    assert reader.notes == {"its transfer curve (logarithmic) was not converted: colours are as stored"}


# --- HDR -----------------------------------------------------------------------------------------------------------


def pq_signal(light):
    """SMPTE ST 2084, 5.2 (inverse EOTF)."""
    power = (np.asarray(light, float) / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def pq_light(signal):
    """SMPTE ST 2084, 5.1 (EOTF), by bisection of the inverse."""
    low, high = np.zeros_like(signal), np.full_like(signal, 10000.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            np.where(pq_signal(middle) < signal, middle, low),
            np.where(pq_signal(middle) < signal, high, middle),
        )
    return (low + high) / 2


def hlg_light(signal):
    """BT.2100, table 5, of grey on a display of 1000 cd/m2, whose gamma is 1.2."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return 1000 * scene**1.2


def tone_mapped(light):
    """BT.2390-11, 5.4.1, from 1000 to 203 cd/m2, and BT.1886 for the display."""
    top, white = pq_signal(1000), pq_signal(203)
    signal, peak = np.minimum(pq_signal(light) / top, 1), white / top
    knee = 1.5 * peak - 0.5
    t = (signal - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * peak
    return 255 * (pq_light(np.where(signal < knee, signal, spline) * top) / 203) ** (1 / 2.4)


def tone_mapped_colours(signal, curve):
    """RGB of BT.2020, 0 to 1, [..., 3]: BT.2100 and BT.2390 where the curve is PQ or HLG; then BT.2087 and BT.1886."""
    if curve == 16:
        light = pq_light(signal)
    elif curve == 18:
        scene = (hlg_light(signal) / 1000) ** (1 / 1.2)
        light = 1000 * (scene @ [0.2627, 0.6780, 0.0593])[..., None] ** 0.2 * scene
    else:
        light = 203 * signal**2.4
    if curve in (16, 18):
        most = light.max(axis=-1, keepdims=True)
        light = light * 203 * (tone_mapped(most) / 255) ** 2.4 / most
    to_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
    return 255 * np.clip(light @ to_709.T / 203, 0, 1) ** (1 / 2.4)


def greys(path, curve):
    """A row of all greys of ten bits, in a video with this curve."""
    luma = np.arange(64, 941, dtype=np.uint16)
    values = np.stack([luma, np.full_like(luma, 512), np.full_like(luma, 512)])[:, None]
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": curve, "color_range": 1}
    write_frames(path, [yuv_frame(np.repeat(values, 2, axis=1), "yuv444p10le", **tags)], "ffv1")
    return (luma - 64) / 876


@pytest.mark.parametrize(("curve", "light"), [(16, pq_light), (18, hlg_light)], ids=["PQ", "HLG"])
def test_greys_of_hdr(tmp_path, curve, light):
    signal = greys(tmp_path / "a.mkv", curve)
    frames, reader = read(tmp_path / "a.mkv")
    assert reader.notes == set()
    shown = frames[0].pixels[0]
    assert (shown.max(axis=1) - shown.min(axis=1)).max() <= 1
    assert np.abs(shown.mean(axis=1) - tone_mapped(light(signal))).max() < 1.5
    # BT.2408, table 1: 203 cd/m2 are at 58 % of PQ and at 75 % of HLG.
    white = np.abs(signal - {16: 0.58, 18: 0.75}[curve]).argmin()
    assert light(signal)[white] == pytest.approx(203, rel=0.02)


def dark_colours(curve):
    """A frame of colours that no tone mapping changes, and its YUV."""
    rng = np.random.default_rng(0)
    code = np.stack([rng.integers(200, 330, 40), *rng.integers(490, 534, (2, 40))]).astype(np.uint16)
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": curve, "color_range": 1}
    return yuv_frame(np.repeat(code[:, None], 2, axis=1), "yuv444p10le", **tags), code


@pytest.mark.parametrize("curve", [16, 18], ids=["PQ", "HLG"])
def test_dark_colours_of_hdr(tmp_path, curve):
    frame, code = dark_colours(curve)
    signal = np.clip(rgb_of_yuv(*code.astype(float), 9, bits=10), 0, 1).T
    expected = tone_mapped_colours(signal, curve)
    frames, _ = read(write_frames(tmp_path / "a.mkv", [frame], "ffv1"))
    assert np.abs(frames[0].pixels[0] - expected).max() < 2


def test_wide_colours_of_sdr(tmp_path):
    """BT.2020 with the curve of SDR: BT.709's red, in BT.2020 by BT.2087's matrix, comes back as BT.709's red."""
    red = np.linalg.inv([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])[:, 0]
    r, g, b = np.clip(red, 0, 1) ** (1 / 2.4)
    luma = 0.2627 * r + 0.6780 * g + 0.0593 * b
    code = [64 + 876 * luma, 512 + 896 * (b - luma) / 1.8814, 512 + 896 * (r - luma) / 1.4746]
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 14, "color_range": 1}
    frame = coloured(*np.rint(code), kind=np.uint16, **tags)
    frames, _ = read(write_frames(tmp_path / "a.mkv", [frame], "ffv1"))
    assert np.abs(frames[0].pixels[20, 30].astype(int) - [255, 0, 0]).max() <= 12
