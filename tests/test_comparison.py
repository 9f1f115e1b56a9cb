"""docs/comparison.md: every cell about dajax, shown by running it."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from authors import official_state
from comparison import ROOT, Checks, compared, tables
from PIL import Image
from safetensors.numpy import load_file
from seeded import make_image, write_checkpoint
from tiny import tiny_config, tiny_metric_config
from torch_parts import mapping, name, storage, tensor, text, torch_file
from web import answer, serve

import dajax
from dajax.cli import main
from dajax.depth_maps import read_png16, write_npy, write_png16
from dajax.depth_maps.colormap import colorize
from dajax.depth_maps.encode import ENDINGS
from dajax.errors import ImageError
from dajax.geometry.cloud import Cloud
from dajax.images.read import read_image
from dajax.weights.shapes import parameter_shapes
from dajax.weights.torch_files.torch_file import TorchFile

SHAPES = json.loads((ROOT / "tests" / "references" / "data" / "shapes.json").read_text())["tiny"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHECKS = Checks()
says = CHECKS.says


class Quick(dajax.DepthEstimator):
    """An estimator whose network takes no time to compile: the mean of each pixel."""

    def _depth(self, params, pixels):
        return pixels.mean(-1)


@pytest.fixture(scope="module")
def it(tmp_path_factory):
    """A checkpoint, what is loaded from it, and an estimator with a quick network."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config().to_dict(), SHAPES)
    model, params = dajax.load(checkpoint)
    return SimpleNamespace(
        checkpoint=checkpoint, model=model, params=params, quick=Quick((model, params), input_size=70, batch_size=2)
    )


@pytest.mark.parametrize("row", compared())
def test_cell(row, it, tmp_path, monkeypatch, capsys):
    assert row in CHECKS, f"nothing checks {row!r}"
    cell, check = CHECKS[row]
    assert compared()[row][0] == cell
    monkeypatch.chdir(tmp_path)
    check(SimpleNamespace(**vars(it), capsys=capsys))


def test_nothing_else_is_checked_and_all_has_its_evidence():
    assert set(CHECKS) == set(compared())
    header, *evidence = tables("docs/comparison.md")[-1]
    assert header[0] == ""
    assert [row[0] for row in evidence] == list(compared())
    assert all(all(row) for row in evidence)


def test_readme_says_the_same():
    short = compared("README.md")
    assert len(short) >= 10
    full = compared()
    for row, cells in short.items():
        assert cells == full[row], row


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def output_of(it, **options):
    """Shapes of what the model gives, without running it."""
    pixels = jnp.zeros((1, 28, 42, 3), jnp.float32)
    return jax.eval_shape(lambda params: it.model.apply({"params": params}, pixels, **options), it.params)


def commands(it) -> set[str]:
    with pytest.raises(SystemExit):
        main(["--help"])
    words = it.capsys.readouterr().out.split()
    return {word for word in words if word.isalpha() and word.islower()}


# --- models ----------------------------------------------------------------------------------------------------------


@says("framework", "JAX and Flax")
def _(it):
    assert isinstance(it.model, nn.Module)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(it.params))


def released(kind):
    models = [model for model in dajax.list_models() if model.kind == kind and model.hub_id]  # tiny is nobody else's
    assert [model.size for model in models] == ["small", "base", "large"]
    return [dajax.DepthAnythingConfig.from_pretrained(model.alias) for model in models]


@says("V2 relative, Small to Large", "yes")
def _(it):
    assert not any(config.is_metric for config in released("relative"))


@says("V2 metric, indoor and outdoor", "yes")
def _(it):
    for place, metres in (("indoor", 20), ("outdoor", 80)):
        assert all((config.is_metric, config.max_depth) == (True, metres) for config in released(f"metric {place}"))


@says("V1 relative", "yes")
def _(it):
    for config in released("v1 relative"):
        layers = config.backbone_config.num_hidden_layers
        assert config.backbone_config.out_indices == tuple(range(layers - 3, layers + 1))


@says("Giant, whose weights were never released", "architecture")
def _(it):
    shapes = parameter_shapes(dajax.DepthAnythingConfig.giant())
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 1_258_132_225
    assert not any(model.size == "giant" for model in dajax.list_models())


@says("has met the trained weights", "**no, random ones of the same layout**")
def _(it):
    assert "**Released weights.** The project was made without access to the Hub" in (ROOT / "README.md").read_text()


# --- files -----------------------------------------------------------------------------------------------------------


@says("Transformers' `.safetensors`", "reads, writes")
def _(it):
    dajax.save("hf", it.model, it.params)
    same(load_file("hf/model.safetensors"), load_file(it.checkpoint / "model.safetensors"))


@says("the authors' `.pth`", "reads, writes")
def _(it):
    dajax.save("official", it.model, it.params, format="official")
    same(dajax.load("official/model.pth", config=it.model.config)[1], it.params)


@says("training checkpoints with optimizer state", "reads")
def _(it):
    """As PyTorch writes {"model": {"module.…": tensor}, "optimizer": {…}, "epoch": 3}."""
    state, config = official_state(tiny_config()), tiny_config()
    model = {}
    for key, (original, values) in enumerate(state.items()):
        strides = [step // 4 for step in values.strides]
        model[f"module.{original}"] = tensor(storage(str(key), count=values.size), 0, values.shape, strides)
    body = mapping({"model": mapping(model), "optimizer": mapping({"state": b"}"}), "epoch": b"K\3"})
    storages = {str(key): values.tobytes() for key, values in enumerate(state.values())}
    Path("latest.pth").write_bytes(torch_file(body, storages))
    params = dajax.load("latest.pth", config=config)[1]
    np.testing.assert_array_equal(params["backbone"]["layernorm"]["scale"], state["pretrained.norm.weight"])


@says("PyTorch's pickle files are read", "without running anything in them")
def _(it):
    attack = name("builtins", "open") + b"(" + text("opened") + text("w") + b"tR"
    Path("evil.pth").write_bytes(torch_file(mapping({"w": tensor(), "x": attack})))
    with TorchFile("evil.pth") as file:
        assert list(file.tensors) == ["w"]
        assert file.foreign == ["builtins.open"]
    assert not Path("opened").exists()


# --- images --------------------------------------------------------------------------------------------------------


@says("numbers of the preprocessing", "Transformers' or the authors', as you choose")
def _(it):
    sizes = [dajax.DepthImageProcessor(style).target_size(400, 600) for style in ("huggingface", "official")]
    assert sizes == [(350, 518), (518, 784)]


SIZES = [(60, 80), (33, 90), (61, 80), (80, 60), (62, 80)]


@says("sizes of images", "any; a depth map has its image's size")
def _(it):
    for size in SIZES:
        assert it.quick(make_image(*size)).shape == size


@says("mixed sizes in batches", "yes, order kept")
def _(it):
    seen = []
    it.quick.predict = lambda pixels: seen.append(len(pixels)) or np.asarray(pixels).mean(-1)
    images = [make_image(*size) for size in SIZES]
    together = it.quick(images)
    assert max(seen) == 2
    same(together, [it.quick(image) for image in images])
    del it.quick.predict


@says("EXIF orientation", "applied")
def _(it):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_image(10, 20)).save("turned.jpg", exif=exif)
    assert read_image("turned.jpg").shape == (20, 10, 3)


@says("16-bit greyscale", "scaled")
def _(it):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save("grey.png")
    assert read_image("grey.png")[0, :, 0].tolist() == [0, 1, 128, 255]


@says("transparency", "laid on a background")
def _(it):
    Image.new("RGBA", (4, 4), (200, 10, 10, 0)).save("clear.png")
    assert (read_image("clear.png") == 255).all()
    assert (read_image("clear.png", background=(1, 2, 3)) == (1, 2, 3)).all()


@says("http(s) URLs", "one image, within limits")
def _(it):
    Image.fromarray(make_image(60, 80)).save("room.png")
    with serve({"/room.png": answer(Path("room.png").read_bytes())}) as site:
        pipe = dajax.pipeline(model=it.quick)
        same(pipe(f"{site.url}/room.png")["predicted_depth"], pipe("room.png")["predicted_depth"])
        with pytest.raises(ImageError):
            pipe([f"{site.url}/room.png"])
    with serve({"/big.png": answer(b"", length=10**12)}) as site, pytest.raises(ImageError, match="larger than"):
        pipe(f"{site.url}/big.png")


@says("sides that are no multiples of 14", "refused by the model")
def _(it):
    with pytest.raises(ImageError, match="multiples of 14"):
        it.model.apply({"params": it.params}, np.zeros((1, 29, 42, 3), np.float32))


# --- computing -------------------------------------------------------------------------------------------------------


@says("gradients", "yes")
def _(it):
    slopes = jax.eval_shape(
        jax.grad(lambda p, x: it.model.apply({"params": p}, x).predicted_depth.mean(), argnums=(0, 1)),
        it.params,
        jnp.zeros((1, 28, 42, 3), jnp.float32),
    )
    assert jax.tree.map(jnp.shape, slopes[0]) == jax.tree.map(jnp.shape, it.params)
    assert slopes[1].shape == (1, 28, 42, 3)


@says("loss from labels", "relative and metric")
def _(it):
    labels = jnp.ones((1, 28, 42), jnp.float32)
    for config in (tiny_config(), tiny_metric_config()):
        both = SimpleNamespace(model=dajax.DepthAnything(config), params=it.params)
        assert output_of(both, labels=labels).loss.shape == ()


@says("hidden states", "yes")
def _(it):
    states = output_of(it, output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [(1, 7, 32)] * 5


@says("attention weights", "yes")
def _(it):
    weights = output_of(it, output_attentions=True).attentions
    assert [weight.shape for weight in weights] == [(1, 2, 7, 7)] * 4


@says("bfloat16", "yes, depth maps stay float32")
def _(it):
    model, params = dajax.load(it.checkpoint, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.bfloat16.dtype}
    half = output_of(SimpleNamespace(model=model, params=params), output_attentions=True)
    assert (half.predicted_depth.dtype, half.attentions[-1].dtype) == (jnp.float32, jnp.bfloat16)


@says("a batch over several devices", "yes, mesh or pmap")
def _(it):
    images = [make_image(60, 80), make_image(61, 80)]
    expected = it.quick(images)
    for parallel in ("jit", "pmap"):
        spread = Quick((it.model, it.params), input_size=70, mesh="local", parallel=parallel)
        assert spread.mesh.size == jax.local_device_count() > 1
        assert len(spread.predict(np.zeros((2, 56, 70, 3), np.float32)).devices()) == spread.mesh.size
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), spread(images), expected)


@says("tests of the numbers", "whole depth maps against Transformers in float64")
def _(it):
    text = (ROOT / "tests" / "parity" / "test_model.py").read_text()
    assert "reference.double()" in text
    assert "found = error(mine[size], judge)" in text


# --- around it -------------------------------------------------------------------------------------------------------


@says("command line for images", "yes")
def _(it):
    assert "predict" in commands(it)


@says("coloured depth maps", "Spectral_r, inferno, turbo, gray; matplotlib's")
def _(it):
    depth = np.linspace(0, 1, 256, dtype=np.float32)[None]
    images = [colorize(depth, name) for name in ("Spectral_r", "inferno", "turbo", "gray", "viridis")]
    assert all(image.shape == (1, 256, 3) for image in images)
    assert len({image.tobytes() for image in images}) == 5


def lacking(row, command):
    @says(row, "no")
    def _(it):
        assert "predict" in (found := commands(it))
        assert command not in found, f"`dajax {command}` is there: say so in the table"
        assert not list((ROOT / "dajax").rglob(f"*{command}*")), f"something called {command} is there"


@says("video", "yes, `dajax video`, steadied")
def _(it):
    # That it is: tests/video.
    assert "video" in commands(it)


lacking("web page", "demo")


@says("point clouds", "yes, `dajax predict --points`")
def _(it):
    depth = np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4)
    cloud = Cloud("ply", field_of_view=60)
    cloud.write("a.ply", np.zeros((3, 4, 3), np.uint8), cloud.metres(depth, kind="metric"))
    assert Path("a.ply").read_bytes().startswith(b"ply\nformat binary")


@says("depth itself in files", ".npy, .npz, 16-bit .png, float32 .tiff, .pfm, .exr")
def _(it):
    depth = np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4)
    assert set(ENDINGS) == {"color", "npy", "npz", "png16", "tiff", "pfm", "exr"}
    write_npy("a.npy", depth)
    np.testing.assert_array_equal(np.load("a.npy"), depth)
    write_png16("a.png", depth, kind="relative")
    np.testing.assert_allclose(read_png16("a.png")[0], depth, atol=1e-5)


@says("training loop", "yes, `dajax train`")
def _(it):
    # That it trains: tests/training and tests/cli/test_train.py.
    assert "train" in commands(it)


@says("installed by", "pip, from a checkout")
def _(it):
    assert PROJECT["name"] == "depth-anything-jax"
    said = "In a checkout, `pip install .` installs the package `depth-anything-jax`"
    assert said in (ROOT / "README.md").read_text()


@says("needs PyTorch or TensorFlow", "no")
def _(it):
    wanted = " ".join(PROJECT["dependencies"])
    assert "jax" in wanted
    assert not any(name in wanted for name in ("torch", "tensorflow", "transformers", "keras"))


@says("type annotations for checkers", "yes")
def _(it):
    assert (ROOT / "dajax" / "py.typed").exists()


@says("licence of the code", "Apache-2.0")
def _(it):
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
