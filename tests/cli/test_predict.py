"""`dajax predict`: exit statuses, what it prints where, and which files it leaves."""

import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import jax
import numpy as np
import plyfile
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image
from seeded import make_image, write_checkpoint
from tiny import tiny_config, tiny_metric_config
from web import answer, serve

import dajax
from dajax import limits
from dajax.cli import main
from dajax.depth_maps.colormap import colorize
from dajax.depth_maps.read_back import read_png16

ROOT = Path(dajax.__file__).parent.parent
SHAPES = json.loads((ROOT / "tests" / "references" / "data" / "shapes.json").read_text())
OPTIONS = (
    "--output", "-o", "--model", "-m", "--colormap", "--side-by-side", "--raw", "--points",
    "--max-depth", "--png-scale", "--field-of-view", "--focal-length", "--known-points",
    "--dtype", "--input-size", "--style", "--batch-size",
    "--value-range", "--partial", "--buckets", "--policy", "--cache", "--no-cache", "--help", "-h",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config().to_dict(), SHAPES["tiny"])


@pytest.fixture
def run(checkpoint, tmp_path, capsys, monkeypatch):
    """Run `dajax predict` in this process, in an empty folder, with the tiny model and no cache."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model=("--model", str(checkpoint), "--input-size", "70", "--no-cache")):
        with pytest.raises(SystemExit) as ended:
            main(["predict", *model, *map(str, arguments)])
        out, err = capsys.readouterr()
        return ended.value.code, out, without_compiling(err)

    return run


def without_compiling(err: str) -> str:
    """Take away what says that there is something to wait for."""
    return re.sub(
        r"^dajax predict: (preparing the network for|programs that were compiled before) .*\n",
        "",
        err,
        flags=re.MULTILINE,
    )


def save(path, height=60, width=80) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_image(height, width)).save(path, "PNG")
    return path


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def process(*arguments, cwd, **environment):
    base = {n: v for n, v in os.environ.items() if n not in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
    return subprocess.run(
        [sys.executable, "-m", "dajax", *map(str, arguments)],
        capture_output=True,
        cwd=cwd,
        env={**base, "PYTHONPATH": str(ROOT), **{name: str(value) for name, value in environment.items()}},
        timeout=120,
    )


# --- done ----------------------------------------------------------------------------------------------------------


def test_one_image(run, checkpoint, tmp_path):
    save("room.png")
    status, out, err = run("room.png")
    assert (status, err) == (0, "")
    summary = (
        rf"1 of 1 image in \d+\.\d s, {re.escape(str(checkpoint))} \(inverse depth, bigger is nearer\), float32 on "
    )
    assert re.fullmatch(rf"{summary}{re.escape(jax.devices()[0].device_kind)}; wrote room_depth\.png\n", out)
    assert files(tmp_path) == {"room.png", "room_depth.png"}
    depth = dajax.DepthEstimator(checkpoint, input_size=70)("room.png")
    np.testing.assert_array_equal(np.asarray(Image.open("room_depth.png")), colorize(depth, "Spectral_r"))


def test_folder_with_options(run, checkpoint):
    save("in/a.png")
    save("in/x/b.png", 61, 80)
    save("in/notes.txt")
    status, out, err = run("in", "-o", "out/new", "--raw", "npy", "--colormap", "inferno", "--batch-size", "2")
    assert (status, err) == (0, "dajax predict: passed over: 1 .txt\n")
    assert out.startswith("2 of 2 images in ")
    assert out.endswith("; wrote 6 files to out/new\n")
    assert files("out/new") == {f"{name}_depth.{ending}" for name in ("a", "x/b") for ending in ("png", "npy", "json")}
    values = np.load("out/new/x/b_depth.npy")
    assert (values.shape, values.dtype) == ((61, 80), np.float32)
    np.testing.assert_array_equal(np.asarray(Image.open("out/new/x/b_depth.png")), colorize(values, "inferno"))
    # Again, into the folder that is read: no depth map is taken for an image.
    for _ in range(2):
        status, out, _ = run("in", "-o", "in", "--raw", "png16")
        assert (status, out.split(" in ")[0]) == (0, "2 of 2 images")
    _, entries = read_png16("in/a_depth16.png")
    assert (entries["kind"], entries["model"]) == ("relative", str(checkpoint))


def test_options_reach_the_estimator(run, monkeypatch):
    save("a.png")
    seen = {}

    class Stop(dajax.errors.DajaxError):
        pass

    def estimator(model, **options):
        seen.update(options, model=model)
        raise Stop("here")

    monkeypatch.setattr("dajax.inference.estimator.DepthEstimator", estimator)
    rest = {
        "mesh": None,
        "buckets": None,
        "policy": "resize",
        "prefix": None,
        "revision": None,
        "local_files_only": False,
    }
    arguments = ["--dtype", "bfloat16", "--input-size", "140", "--style", "official", "--batch-size", "3", "-m", "base"]
    arguments += ["--kernels", "reference"]
    assert run("a.png", *arguments, "--no-cache", model=())[0] == 2
    assert seen == {
        "model": "base",
        "dtype": "bfloat16",
        "input_size": 140,
        "style": "official",
        "batch_size": 3,
        "kernels": "reference",
        **rest,
    }
    run("a.png", "--no-cache", model=())
    defaults = {"model": "small", "dtype": "float32", "input_size": None, "style": None, "batch_size": 1}
    defaults["kernels"] = None
    assert seen == defaults | rest


def test_metric_model_says_metres(run, tmp_path):
    model = write_checkpoint(tmp_path / "metric", tiny_metric_config().to_dict(), SHAPES["tiny-metric"])
    save("a.png")
    status, out, _ = run("a.png", model=("-m", str(model), "--input-size", "70", "--no-cache", "--dtype", "bfloat16"))
    assert status == 0
    assert "(metres), bfloat16 on " in out


def test_names_with_dashes_newlines_and_bytes_that_are_no_text(run):
    for name in ("-rf.png", "new\nline.png", "\udcff.png"):
        save(Path("in") / name)
    os.chdir("in")
    for name in ("-rf.png", "new\nline.png", "\udcff.png"):
        status, out, err = run("-o", "../out", "--", name)
        assert (status, err) == (0, "")
        assert out.count("\n") == 1
        assert out.isascii()
    assert files("../out") == {"-rf_depth.png", "new\nline_depth.png", "\udcff_depth.png"}
    status, out, err = run("-rf.png")
    assert (status, out) == (2, "")
    assert "-rf.png" in err


def test_points(run, tmp_path):
    model = write_checkpoint(tmp_path / "metric", tiny_metric_config().to_dict(), SHAPES["tiny-metric"])
    metric = ("-m", str(model), "--input-size", "70", "--no-cache")
    save("a.png")
    status, out, err = run("a.png", "-o", "out", "--points", "mesh", "--field-of-view", "65", model=metric)
    assert (status, err) == (0, "")
    assert files("out") == {"a_depth.png", "a_mesh.glb"}
    status, _, err = run("a.png", "-o", "out", "--points", "ply", model=metric)
    assert status == 3
    assert "no focal length: give --focal-length or --field-of-view" in err
    Path("known.csv").write_text("column,row,metres\n10,10,2\n")
    for arguments, message in (
        (["--points", "ply"], "use a metric model (small-metric-indoor, small-metric-outdoor), or give two points"),
        (["--field-of-view", "65"], "go with --points"),
        (["--points", "ply", "--known-points", "known.csv"], "at least two points are needed, got 1"),
        (["--points", "ply", "--focal-length", "0"], "the focal length must be positive"),
        (["--max-depth", "20"], "--max-depth go with --points"),
        (["--points", "ply", "--max-depth", "0"], "--max-depth must be a positive number of metres"),
    ):
        status, out, err = run("a.png", *arguments)
        assert (status, out) == (2, "")
        assert message in err


def test_known_points_say_what_has_no_place(quick_run):
    """The first of three columns is at 2 metres and the second at 4; the formula puts the third beyond infinity."""
    columns = np.repeat(np.repeat(np.uint8([250, 150, 10]), 30)[None], 60, 0)
    Image.fromarray(np.repeat(columns[:, :, None], 3, 2)).save("a.png")
    Path("known.csv").write_text("column,row,metres\n15,30,2\n45,30,4\n")
    known = ("--points", "ply", "--focal-length", "4.2", "--known-points", "known.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, out, err = quick_run("a.png", "--raw", "npy", *known)
    assert status == 0
    assert "metres by known points" in out
    camera, lost = err.splitlines()
    assert camera.startswith("dajax: warning: this camera shows 169.3 degrees from left to right")
    assert "not in millimetres" in camera
    found = re.fullmatch(
        r"dajax predict: 'a\.png': ([\d,]+) of 5,400 pixels get no point: ([\d,]+) without a finite place, ([\d,]+) "
        r"with one beyond 80 metres \(--max-depth\); depth files have 80 there",
        lost,
    )
    left, nowhere, beyond = (int(number.replace(",", "")) for number in found.groups())
    assert left == nowhere + beyond
    assert nowhere >= 60 * 25
    depth = np.load("a_depth.npy")
    assert (depth[30, 15], depth[30, 45], depth.max()) == (pytest.approx(2, rel=1e-3), pytest.approx(4, rel=1e-3), 80)
    assert (depth == 80).sum() == left
    assert json.loads(Path("a_depth.json").read_text())["units"] == "metres"
    assert len(plyfile.PlyData.read("a_points.ply")["vertex"]) == 5400 - left
    status, _, err = quick_run("a.png", *known[:3], "60", *known[4:], "--max-depth", "3")
    assert "with one beyond 3 metres (--max-depth)" in err


def test_millimetres_in_a_png(run, tmp_path):
    model = write_checkpoint(tmp_path / "metric", tiny_metric_config().to_dict(), SHAPES["tiny-metric"])
    metric = ("-m", str(model), "--input-size", "70", "--no-cache")
    save("a.png")
    assert run("a.png", "--raw", "npy", model=metric)[0] == 0
    depth = np.load("a_depth.npy").astype(np.float64)
    status, _, err = run("a.png", "--raw", "png16", "--png-scale", "0.001", model=metric)
    assert (status, err) == (0, "")
    assert np.abs(cv2.imread("a_depth16.png", cv2.IMREAD_UNCHANGED) - 1000 * depth).max() <= 0.5 + 1e-6
    status, _, err = run("a.png", "--raw", "png16", "--png-scale", "1e-5", model=metric)
    lost = int((depth >= 0.655355).sum())
    assert status == 0
    assert err == (
        f"dajax predict: 'a.png': {lost:,} of 4,800 values do not fit into the 16-bit PNG, which holds 1e-05 to "
        "0.65535 metres: they are stored as 0, no value\n"
    )
    for arguments, message in (
        (["--png-scale", "0.001"], "--png-scale goes with --raw png16"),
        (["--raw", "png16", "--png-scale", "0"], "--png-scale must be a positive number of metres, got 0.0"),
        (["--raw", "png16", "--png-scale", "0.001"], "--png-scale is the metres of a step, and this depth has none"),
    ):
        status, out, err = run("a.png", *arguments)
        assert (status, out) == (2, "")
        assert message in err


@pytest.mark.parametrize(("name", "form"), [("x/out.png", "PNG"), ("out.JPG", "JPEG"), ("out.webp", "WEBP")])
def test_one_image_to_one_file(quick_run, name, form):
    save("a.png")
    status, out, err = quick_run("a.png", "-o", name)
    assert (status, err) == (0, "")
    assert out.endswith(f"; wrote {name}\n")
    assert files(".") == {"a.png", name}
    with Image.open(name) as image:
        assert (image.format, image.size) == (form, (80, 60))
    # What else is asked for stands beside it. A folder of such a name is a folder.
    assert quick_run("a.png", "-o", name, "--raw", "npy")[0] == 0
    stem = name.rpartition(".")[0]
    assert files(".") == {"a.png", name, f"{stem}_depth.npy", f"{stem}_depth.json"}
    Path("folder.png").mkdir()
    assert quick_run("a.png", "-o", "folder.png")[0] == 0
    assert files("folder.png") == {"a_depth.png"}


def test_standard_input(quick_run, monkeypatch, tmp_path):
    data = save("in/a.png").read_bytes()

    def typed(data):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    typed(data)
    status, _, err = quick_run("-", "-o", "out")
    assert (status, err) == (0, "")
    assert files("out") == {"stdin_depth.png"}
    assert quick_run("in/a.png", "-o", "same.png")[0] == 0
    # Their text entries differ: each names its own source.
    with Image.open("out/stdin_depth.png") as one, Image.open("same.png") as other:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    typed(data)
    assert quick_run("-", "-o", "named.jpg")[1].endswith("; wrote named.jpg\n")
    typed(b"")
    assert quick_run("-", "-o", "out")[::2] == (2, "dajax predict: standard input is empty: there is no image in it\n")
    typed(b"no image")
    status, _, err = quick_run("-", "-o", "out")
    assert status == 3
    assert err.startswith("dajax predict: left out standard input: is not an image")
    assert quick_run("-", "-")[0] == 2


def shown(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.filterwarnings("always")
def test_values_of_more_than_8_bits(quick_run):
    """The range is said; with --value-range the network sees what it would see of the same image in 8 bits."""
    levels = make_image(60, 80)[:, :, 0]
    levels[0, :2] = 0, 255
    Image.fromarray(levels).save("grey.png")
    Image.fromarray(levels.astype(np.uint16) + 3000).save("thermal.png")
    status, _, err = quick_run("thermal.png", "-o", "plain")
    assert status == 0
    assert "'thermal.png' has values from 3000 to 3255, which is 2 of 256 greys" in err
    assert "give --value-range auto, or --value-range LO,HI" in err
    quick_run("grey.png", "-o", "expected.png")
    for name, value in (("auto.png", "auto"), ("given.png", "3000,3255")):
        assert quick_run("thermal.png", "-o", name, "--value-range", value)[::2] == (0, "")
        np.testing.assert_array_equal(shown(name), shown("expected.png"))
    Image.fromarray((levels - 128.0).astype(np.float32)).save("signed.tif")
    status, _, err = quick_run("signed.tif", "-o", "x")
    assert status == 3
    assert "Give --value-range auto, or --value-range -128,127." in err
    assert quick_run("signed.tif", "-o", "signed.png", "--value-range", "-128,127")[::2] == (0, "")
    np.testing.assert_array_equal(shown("signed.png"), shown("expected.png"))


@pytest.mark.filterwarnings("always")
def test_partial(quick_run):
    data = io.BytesIO()
    Image.fromarray(make_image(60, 80)).save(data, "JPEG")
    Path("a.jpg").write_bytes(data.getvalue()[: len(data.getvalue()) * 2 // 3])
    status, _, err = quick_run("a.jpg", "-o", "out")
    assert status == 3
    assert "is truncated" in err
    assert "Give --partial to take what there is." in err
    status, _, err = quick_run("a.jpg", "-o", "out", "--partial")
    assert status == 0
    assert err == "dajax: warning: 'a.jpg' is truncated; what is missing is blank\n"


# --- partly done ---------------------------------------------------------------------------------------------------


def test_images_that_are_left_out(run):
    save("in/a.png")
    save("in/b.png")
    Path("in/broken.jpg").write_bytes(b"no image")
    status, out, err = run("in", "-o", "out")
    assert status == 3
    assert out.startswith("2 of 3 images in ")
    assert err.startswith("dajax predict: left out 'in/broken.jpg': is not an image")
    assert err.count("\n") == 1
    assert files("out") == {"a_depth.png", "b_depth.png"}
    status, out, err = run("in/broken.jpg", "-o", "out")
    assert status == 3
    assert out.startswith("0 of 1 image in ")


def test_warnings_are_one_line_each(run):
    Image.fromarray(make_image(60, 80)).save(
        "a.gif", save_all=True, append_images=[Image.fromarray(make_image(61, 80))]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, out, err = run("a.gif")
    assert status == 0
    assert out.count("\n") == 1
    assert err == "dajax: warning: 'a.gif' has several frames or pages; the first is used\n"


# --- URLs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_run(run, monkeypatch):
    """The network is a sum: nothing is compiled."""
    monkeypatch.setattr(dajax.DepthEstimator, "predict", lambda _, pixels: np.asarray(pixels).sum(-1, dtype=np.float32))
    return run


def test_a_url_among_the_images(quick_run):
    data = save("in/a.png").read_bytes()
    with serve({"/x/room%201.png?key=secret": answer(data)}) as site:
        url = f"{site.url}/x/room%201.png?key=secret"
        status, out, err = quick_run(url, "-o", "maps")
        assert (status, err) == (0, "")
        assert out.startswith("1 of 1 image in ")
        assert out.endswith("; wrote maps/room 1_depth.png\n")
        status, out, err = quick_run(url, "in", "-o", "maps")
        assert (status, err) == (0, "")
        assert out.startswith("2 of 2 images in ")
    assert files("maps") == {"room 1_depth.png", "a_depth.png"}
    first, second = (np.asarray(Image.open(f"maps/{name}_depth.png")) for name in ("room 1", "a"))
    np.testing.assert_array_equal(first, second)


def test_urls_that_are_left_out_do_not_show_their_secrets(quick_run):
    save("a.png")
    page = answer(b"<!doctype html><html>Sign in</html>")
    with serve({"/page?key=secret": page, "/none?key=secret": answer(b"", status="403 Forbidden")}) as site:
        for path, reason in {"page": "is an HTML or XML page", "none": "the server answers 403 'Forbidden'"}.items():
            url = f"{site.url}/{path}?key=secret".replace("//", "//user:secret@")
            status, out, err = quick_run("a.png", url, "-o", "maps")
            assert status == 3
            assert out.startswith("1 of 2 images in ")
            assert err.startswith(f"dajax predict: left out '{site.url}/{path}?…': {reason}")
            assert err.count("\n") == 1
            assert "secret" not in out + err
    assert files("maps") == {"a_depth.png"}
    status, _, err = quick_run("https://user:secret@host/a.png?secret", "http://host/b.png?secret")
    assert status == 2
    assert "secret" not in err


# --- bad usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one image"),
        (["none.jpg"], "'none.jpg': no such file or folder"),
        (["*.jpeg"], "no file matches this pattern"),
        (["empty"], "no images in this folder"),
        (["https://host/a.jpg", "a.png", "https://host/b.jpg"], "2 URLs, but only one is read at a time"),
        (["a.png", "none.jpg"], "'none.jpg': no such file or folder"),
        (["a.png", "--colormap", "foo"], "colour map 'foo'"),
        (["a.png", "-o", "a.png/out"], "'a.png' is a file, so 'a.png/out' cannot be a folder"),
        (["a.png", "-o", "a.png"], "'a.png' is the image itself"),
        (["a.png", "b.png", "-o", "out.png"], "'out.png' is one file, and there are 2 images"),
        (["a.png", "-o", "out.gif"], "coloured depth maps are written as .png, .jpg, .jpeg, .webp"),
        (["a.png", "-o", "out.npy"], "coloured depth maps are written as"),
        (["a.png", "--batch-size", "0"], "--batch-size must be a whole number of at least 1"),
        (["a.png", "--input-size", "3"], "--input-size (height) must be"),
        (["a.png", "--input-size", "big"], "--input-size"),
        (["a.png", "--dtype", "float31"], "--dtype"),
        (["a.png", "--raw", "jpg"], "--raw"),
        (["a.png", "--raw"], "--raw"),
        (["a.png", "--style", "offical"], "--style"),
        (["a.png", "--value-range", "3,1"], "expected auto or two numbers LO,HI, the smaller first, got '3,1'"),
        (["a.png", "--value-range", "all"], "expected auto or two numbers LO,HI"),
        (["a.png", "--colour", "gray"], "no option --colour. Did you mean '--colormap'?"),
        (["a.png", "-m", "smal"], "Did you mean 'small'?"),
        (["a.png", "-m", "nothing"], "--model: 'nothing' is no alias"),
        (["a.png", "--kind", "v1", "--config", "v1-small"], "give one of them"),
        (["a.png", "--config", "v1-smal"], "Did you mean 'v1-small'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage(run, arguments, message):
    save("a.png")
    save("b.png")
    Path("empty").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, out, err = run(*arguments, *(() if "-o" in arguments else ("-o", "out")))
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert files(".") == {"a.png", "b.png"}


@pytest.mark.parametrize(
    ("model", "message"),
    [("empty", "holds no weights"), ("a.png", "a.png"), ("nobody/nothing", "nobody/nothing")],
)
def test_models_that_do_not_load_are_a_failure(run, monkeypatch, tmp_path, model, message):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    save("a.png")
    Path("empty").mkdir()
    Path("empty/preprocessor_config.json").write_text("{}")
    status, out, err = run("a.png", "-o", "out", "-m", model)
    assert (status, out) == (1, "")
    assert err.startswith("dajax predict: --model: ")
    assert message in err
    assert not files("out")


def test_what_a_folder_has_beside_images_is_said(capsys, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "locked").mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    for name in ("._a.png", "sub/b.tga", "c.JP2"):
        (folder / name).touch()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(folder), "--model", "tiny", "-o", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert ended.value.code == 3
    assert "passed over: 1 .jp2, 1 .tga, 1 system files (._*, @eaDir, #recycle and the like)\n" in err
    assert f"left out '{folder}/locked': the folder cannot be listed (Permission denied)\n" in err
    assert out.startswith("1 of 2 images in ")
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_help_has_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--help"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    for option in OPTIONS:
        assert re.search(rf"(?<![\w-]){option}\b", out), option
    for word in (
        "IMAGES",
        "URL",
        "Spectral_r",
        "png16",
        "bfloat16",
        "huggingface",
        "official",
        "Exit status",
    ):
        assert word in out, word
    assert f"{limits.MAX_URL_BYTES / 1e6:g} MB and {limits.URL_TIMEOUT:g}" in " ".join(
        re.sub("[│╎|]", " ", out).split()
    )
    # Every option has a word of help.
    assert out.count("--") >= len(OPTIONS) - 2


# --- the cache, and the command as it is called ----------------------------------------------------------------------


@pytest.fixture
def _cache_restored():
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    options += ("jax_persistent_cache_min_entry_size_bytes",)
    before = {option: getattr(jax.config, option) for option in options}
    yield
    for option, value in before.items():
        jax.config.update(option, value)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("_cache_restored")
def test_no_cache(run, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    before = jax.config.jax_compilation_cache_dir
    save("a.png")
    assert run("a.png")[0] == 0
    assert jax.config.jax_compilation_cache_dir == before
    assert not (tmp_path / "jax").exists()
    assert not (tmp_path / "xdg").exists()


def test_as_a_process(checkpoint, tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", 80, 60)
    options = ("--model", checkpoint, "--input-size", 70)
    home = {"HOME": tmp_path / "home"}

    done = process("predict", "a.png", *options, cwd=tmp_path, XDG_CACHE_HOME=tmp_path / "xdg", **home)
    assert (done.returncode, without_compiling(done.stderr.decode())) == (0, "")
    assert done.stdout.startswith(b"1 of 1 image in ")
    assert done.stdout.count(b"\n") == 1
    kept = files(tmp_path / "xdg" / "dajax" / "compiled")
    assert any(name.startswith("jit") for name in kept)

    # jax's own variable comes first; the other cache is left alone.
    cache = {"JAX_COMPILATION_CACHE_DIR": tmp_path / "jax", "XDG_CACHE_HOME": tmp_path / "xdg"}
    done = process("predict", "b.png", "none.png", *options, cwd=tmp_path, **cache, **home)
    assert (done.returncode, done.stdout) == (2, b"")
    (tmp_path / "none.png").write_bytes(b"")
    done = process("predict", "b.png", "none.png", *options, cwd=tmp_path, **cache, **home)
    assert done.returncode == 3
    assert b"none.png" in done.stderr
    assert b"Traceback" not in done.stderr
    assert files(tmp_path / "jax")
    assert files(tmp_path / "xdg" / "dajax" / "compiled") == kept
    assert not (tmp_path / "home").exists()


def test_as_a_process_without_text_encoding(checkpoint, tmp_path):
    path = save(tmp_path / "é\udcff.png")
    done = process(
        *("predict", "--model", checkpoint, "--input-size", 70, "--no-cache", "-o", "out", "--", path.name),
        cwd=tmp_path,
        PYTHONIOENCODING="ascii",
        HOME=tmp_path / "home",
    )
    assert (done.returncode, without_compiling(done.stderr.decode())) == (0, "")
    assert files(tmp_path / "out") == {"é\udcff_depth.png"}
    assert not (tmp_path / "home").exists()
