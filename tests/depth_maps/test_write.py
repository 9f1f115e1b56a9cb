import os
import stat

import numpy as np
import pytest
from PIL import Image

from dajax.depth_maps import read_png16, to_gray8, write_color, write_npy, write_png16
from dajax.depth_maps.colormap import colorize
from dajax.errors import ConfigError, ImageError


def some_depth(shape=(30, 40)):
    return np.random.default_rng(0).uniform(-0.3, 80, shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_png16_comes_back_within_half_a_step(tmp_path, kind):
    depth = some_depth()
    write_png16(tmp_path / "d.png", depth, kind=kind, model="depth-anything/Ünïcode-日本")
    back, about = read_png16(tmp_path / "d.png")
    assert back.dtype == np.float32
    assert np.abs(back - depth).max() <= about["scale"] / 2 + 1e-5
    assert about["scale"] == (float(depth.max()) - float(depth.min())) / 65535
    assert (about["kind"], about["model"]) == (kind, "depth-anything/Ünïcode-日本")
    assert about["units"] == {"relative": "affine-invariant inverse depth (bigger is nearer)", "metric": "metres"}[kind]
    assert about["version"]
    with Image.open(tmp_path / "d.png") as image:  # any PNG reader sees the full range
        stored = np.asarray(image)
        assert (image.mode, stored.min(), stored.max()) == ("I;16", 0, 65535)
        np.testing.assert_allclose(stored * float(image.text["dajax.scale"]) + about["offset"], depth, atol=1e-3)


def test_png16_in_millimetres(tmp_path):
    depth = some_depth()
    lost = int(((depth < 0.0005) | (depth >= 65.5355)).sum())
    with pytest.warns(UserWarning, match=f"d.png': {lost} of 1,200 values do not fit into the 16-bit PNG") as said:
        write_png16(tmp_path / "d.png", depth, kind="metric", scale=0.001)
    assert said[0].filename == __file__
    back, about = read_png16(tmp_path / "d.png")
    assert (about["scale"], about["offset"]) == (0.001, 0)
    assert (back == 0).sum() == lost
    assert np.abs(back - depth)[back > 0].max() <= 0.00051
    with pytest.raises(ConfigError, match="this depth has none"):
        write_png16(tmp_path / "e.png", depth, kind="relative", scale=0.001)
    assert [path.name for path in tmp_path.iterdir()] == ["d.png"]


@pytest.mark.parametrize("constant", [0.0, 3.25, -1e30])
def test_png16_constant(tmp_path, constant):
    write_png16(tmp_path / "d.png", np.full((3, 4), constant), kind="metric")
    np.testing.assert_array_equal(read_png16(tmp_path / "d.png")[0], np.float32(constant))


def test_png16_extreme_range(tmp_path):
    top = np.finfo(np.float32).max
    write_png16(tmp_path / "d.png", np.array([[-top, 0, top]]), kind="relative")
    back, about = read_png16(tmp_path / "d.png")
    np.testing.assert_allclose(back, [[-top, 0, top]], atol=about["scale"])


def test_png16_tiny_range(tmp_path):
    depth = np.array([[1, np.nextafter(np.float32(1), np.float32(2))]], np.float32)
    write_png16(tmp_path / "d.png", depth, kind="relative")
    np.testing.assert_array_equal(read_png16(tmp_path / "d.png")[0], depth)


def test_png16_refuses_other_pngs(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "other.png")
    with pytest.raises(ImageError, match="not a depth map"):
        read_png16(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match=r"text\.png"):
        read_png16(tmp_path / "text.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_png16(tmp_path / "missing.png")
    write_png16(tmp_path / "d.png", some_depth(), kind="metric")
    data = (tmp_path / "d.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"cut\.png"):
        read_png16(tmp_path / "cut.png")


@pytest.mark.parametrize(("key", "value"), [("scale", "nan"), ("offset", "x"), ("kind", "feet")])
def test_png16_refuses_damaged_entries(tmp_path, monkeypatch, key, value):
    write_png16(tmp_path / "d.png", some_depth(), kind="metric")
    from PIL import PngImagePlugin

    with Image.open(tmp_path / "d.png") as image:
        entries = PngImagePlugin.PngInfo()
        for name, text in {**image.text, f"dajax.{key}": value}.items():
            entries.add_text(name, text)
        image.save(tmp_path / "e.png", pnginfo=entries)
    with pytest.raises(ImageError, match="damaged"):
        read_png16(tmp_path / "e.png")


def test_unknown_kind(tmp_path):
    with pytest.raises(ImageError, match="kind"):
        write_png16(tmp_path / "d.png", some_depth(), kind="disparity")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".PNG"])
def test_color(tmp_path, suffix):
    depth = np.sort(some_depth(), axis=None).reshape(30, 40)
    write_color(tmp_path / f"d{suffix}", depth, "inferno")
    with Image.open(tmp_path / f"d{suffix}") as image:
        found = np.asarray(image.convert("RGB")).astype(int)
    difference = np.abs(found - colorize(depth, "inferno")).mean()
    assert difference == 0 if suffix.lower() == ".png" else difference < 8


def test_color_refuses_other_suffixes(tmp_path):
    with pytest.raises(ImageError, match="suffix"):
        write_color(tmp_path / "d.tiff", some_depth())


def test_npy(tmp_path):
    write_npy(tmp_path / "d.depth", some_depth().astype(np.float64))
    back = np.load(tmp_path / "d.depth")
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, some_depth())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_not_finite_is_never_saved(tmp_path, bad):
    depth = some_depth().astype(np.float64)
    depth[3, 5] = bad
    for write in (write_npy, write_color, lambda path, d: write_png16(path, d, kind="metric")):
        with pytest.raises(ImageError, match=r"index \[3, 5\]"):
            write(tmp_path / "d.png", depth)
    with pytest.raises(ImageError, match="index"):
        to_gray8(depth)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(0, 3), (5,), (1, 2, 3)])
def test_shapes_are_checked(tmp_path, shape):
    with pytest.raises(ImageError, match="height, width"):
        write_npy(tmp_path / "d.npy", np.zeros(shape))


def test_gray8_is_the_pipeline_formula():
    depth = some_depth()
    expected = ((depth - depth.min()) / (depth.max() - depth.min()) * 255).astype("uint8")
    image = to_gray8(depth)
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert np.asarray(to_gray8(np.full((2, 3), 7.0))).tolist() == [[0] * 3] * 2
    top = np.finfo(np.float32).max
    assert np.asarray(to_gray8(np.array([[-top, 0, top]]))).tolist() == [[0, 127, 255]]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    write_npy(path, some_depth())
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ImageError, match="No space left"):
        write_npy(path, some_depth() + 1)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_written_files_have_the_usual_permissions(tmp_path):
    write_npy(tmp_path / "a.npy", some_depth())
    (tmp_path / "plain").write_bytes(b"")
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("a.npy", "plain")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("name", ["missing/d.npy", "nul\0.npy"])
def test_unwritable_paths(tmp_path, name):
    with pytest.raises(ImageError, match="cannot be written"):
        write_npy(tmp_path / name, some_depth())
