"""Cameras: from a field of view, from EXIF data, of other sizes."""

import math
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image

from dajax.errors import ConfigError, ImageError
from dajax.geometry.camera import Intrinsics


def test_field_of_view():
    camera = Intrinsics.of_field_of_view((480, 640), 90)
    assert camera == pytest.approx((320, 320, 320, 240))
    assert Intrinsics.of_field_of_view((480, 640), 90, of="height").fx == pytest.approx(240)
    assert Intrinsics.of_field_of_view((480, 640), 90, of="diagonal").fx == pytest.approx(400)


@pytest.mark.parametrize("degrees", [0, -1, 180, math.nan, math.inf])
def test_impossible_fields_of_view(degrees):
    with pytest.raises(ConfigError, match="field of view"):
        Intrinsics.of_field_of_view((10, 10), degrees)
    with pytest.raises(ConfigError, match="of must be"):
        Intrinsics.of_field_of_view((10, 10), 60, of="area")


@pytest.mark.parametrize("focal", [0, -5, math.nan, math.inf])
def test_impossible_focal_lengths(focal):
    with pytest.raises(ConfigError, match="focal length"):
        Intrinsics.of_focal_length((10, 10), focal)


def test_millimetres_for_pixels_are_warned_of(tmp_path):
    """26 mm over 4032 pixels is 2 atan(2016 / 26) = 178.5 degrees."""
    said = (
        r"shows 178\.5 degrees from left to right: a focal length of 26 for a width of 4032 pixels.*not in millimetres"
    )
    with pytest.warns(UserWarning, match=said):
        Intrinsics.of_focal_length((3024, 4032), 26)
    with pytest.warns(UserWarning, match=r"shows 151\.0 degrees"):
        Intrinsics.of_field_of_view((480, 640), 151)
    with pytest.warns(UserWarning, match=r"shows 16\d\.\d degrees"):  # what EXIF data says of a fisheye lens
        Intrinsics.of_exif(image(tmp_path, FocalLengthIn35mmFilm=2))
    with warnings.catch_warnings(action="error"):
        Intrinsics.of_field_of_view((480, 640), 149)
        Intrinsics.of_focal_length((3024, 4032), 3000)


def test_another_size():
    camera = Intrinsics(100.0, 120.0, 31.0, 22.0).scaled((50, 60), (100, 30))
    assert camera == (50.0, 240.0, 15.5, 44.0)


def image(tmp_path, size=(640, 480), orientation=1, **fields):
    image = Image.new("RGB", size)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    about = exif.get_ifd(ExifTags.IFD.Exif)
    for name, value in fields.items():
        about[ExifTags.Base[name]] = value
    path = tmp_path / "image.jpg"
    image.save(path, exif=exif)
    return path


def test_35_mm_equivalent(tmp_path):
    """An image of 3:2 at 35 mm sees what a full-frame camera sees: 36 mm of width."""
    camera = Intrinsics.of_exif(image(tmp_path, (600, 400), FocalLengthIn35mmFilm=35))
    assert camera == pytest.approx((600 * 35 / 36,) * 2 + (300, 200))
    # By the diagonal for other shapes.
    camera = Intrinsics.of_exif(image(tmp_path, (640, 480), FocalLengthIn35mmFilm=28))
    assert camera.fx == pytest.approx(28 * 800 / math.hypot(36, 24))


def test_turned_image(tmp_path):
    camera = Intrinsics.of_exif(image(tmp_path, (600, 400), orientation=6, FocalLengthIn35mmFilm=35))
    assert (camera.cx, camera.cy) == (200, 300)


def test_sensor_resolution(tmp_path):
    path = image(
        tmp_path, (300, 200), FocalLength=50.0, FocalPlaneXResolution=1000.0, FocalPlaneResolutionUnit=3,
        ExifImageWidth=600,
    )  # fmt: skip
    assert Intrinsics.of_exif(path).fx == pytest.approx(50 / 10 * 1000 / 2)


@pytest.mark.parametrize("fields", [{}, {"FocalLengthIn35mmFilm": 0}, {"FocalLength": 50.0}])
def test_no_focal_length(tmp_path, fields):
    with pytest.raises(ImageError, match="no focal length: give focal_length"):
        Intrinsics.of_exif(image(tmp_path, **fields))


def test_no_image(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"x\.jpg.*is not an image"):
        Intrinsics.of_exif(tmp_path / "x.jpg")


def test_a_camera_is_a_pytree():
    import jax

    doubled = jax.tree.map(lambda value: 2 * value, Intrinsics(1.0, 2.0, 3.0, 4.0))
    assert np.allclose(doubled, (2, 4, 6, 8))
