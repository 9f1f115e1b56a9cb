"""What differs from Transformers on purpose: each row of the first table in docs/coming-from-transformers.md."""

import base64
import inspect
import json
import re
from itertools import repeat
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image, UnidentifiedImageError
from seeded import make_image, write_checkpoint
from tiny import tiny_config
from transformers import pipeline
from transformers.image_utils import load_image
from transformers.pipelines.pt_utils import KeyDataset
from web import answer, redirect, serve

import dajax
from dajax.errors import ConfigError, ImageError
from dajax.images.image_sources import read_source
from dajax.images.read import read_image

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from-transformers.md").read_text()
SHAPES = json.loads((Path(__file__).parents[1] / "references" / "data" / "shapes.json").read_text())
VERSION = re.search(r"Transformers (\d+\.\d+)", PAGE)[1]
pytestmark = pytest.mark.skipif(
    not transformers.__version__.startswith(f"{VERSION}."),
    reason=f"the page is about Transformers {VERSION}: pip install with constraints.txt",
)

DEVIATIONS = {}


def deviation(topic):
    """Register a test of both sides; it gets a folder, Transformers' pipeline and ours."""

    def register(function):
        DEVIATIONS[topic] = function
        return function

    return register


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config().to_dict(), SHAPES["tiny"])


@pytest.fixture
def both(checkpoint, tmp_path, monkeypatch):
    """Transformers' pipeline, and ours with a network that is a sum: nothing is compiled. Both make small pixels."""
    monkeypatch.chdir(tmp_path)
    mine = dajax.pipeline(model=checkpoint, input_size=70)
    monkeypatch.setattr(mine.estimator, "predict", lambda pixels: np.asarray(pixels).sum(-1, dtype=np.float32))
    theirs = pipeline("depth-estimation", model=str(checkpoint), device="cpu")
    theirs.image_processor.size = {"height": 70, "width": 70}
    return theirs, mine


def theirs_on(processor, images):
    return np.moveaxis(processor(images=images, return_tensors="np")["pixel_values"], 1, 3)


def mine_on(pipe, images):
    return pipe.estimator.processor(images)["pixel_values"]


@deviation("transparency")
def _(theirs, mine):
    Image.new("RGBA", (4, 4), (200, 10, 10, 0)).save("a.png")
    assert np.all(np.asarray(load_image("a.png")) == (200, 10, 10))
    assert np.all(read_image("a.png") == 255)


@deviation("16-bit greyscale")
def _(theirs, mine):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save("a.png")
    assert np.asarray(load_image("a.png"))[0, :, 0].tolist() == [0, 255, 255, 255]
    assert read_image("a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


@deviation("floating-point files")
def _(theirs, mine):
    Image.fromarray(np.array([[0, 0.5, 0.9, 300]], np.float32)).save("a.tif")
    assert np.asarray(load_image("a.tif"))[0, :, 0].tolist() == [0, 0, 0, 255]
    with pytest.raises(ImageError, match="value_range"):
        read_image("a.tif")
    assert read_image("a.tif", value_range=(0, 1))[0, :, 0].tolist() == [0, 128, 229, 255]


@deviation("floats in [0, 1]")
def _(theirs, mine):
    image = make_image(60, 80)
    exact = mine_on(mine, image)
    np.testing.assert_allclose(theirs_on(theirs.image_processor, image), exact, atol=1e-6)
    np.testing.assert_array_equal(mine_on(mine, image / 255), exact)
    assert np.ptp(theirs_on(theirs.image_processor, image / 255)) < 0.5 < np.ptp(exact)


@deviation("axes of arrays")
def _(theirs, mine):
    planes = make_image(60, 80).transpose(2, 0, 1)
    assert theirs_on(theirs.image_processor, planes).shape == (1, 56, 70, 3)
    assert theirs_on(theirs.image_processor, planes[:, :20, :3]).shape == (1, 70, 14, 3)  # taken for channels first
    for array in (planes, planes[:, :20, :3]):
        with pytest.raises(ImageError, match="layout"):
            mine_on(mine, array)
        assert read_image(array, layout="CHW").shape == (*array.shape[1:], 3)


@deviation("EXIF orientation")
def _(theirs, mine):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_image(60, 80)).save("a.jpg", exif=exif)
    with Image.open("a.jpg") as image:
        assert theirs_on(theirs.image_processor, image).shape == (1, 56, 70, 3)
        assert mine_on(mine, image).shape == (1, 70, 56, 3)
        assert theirs(image)["depth"].size == mine(image)["depth"].size == (60, 80)


@deviation("greyscale and RGBA for the processor")
def _(theirs, mine):
    for mode in ("L", "RGBA"):
        image = Image.fromarray(make_image(60, 80)).convert(mode)
        with pytest.raises(ValueError, match="mean must have"):
            theirs_on(theirs.image_processor, image)
        assert mine_on(mine, image).shape == (1, 56, 70, 3)


@deviation("defaults of the processor")
def _(theirs, mine):
    default = transformers.DPTImageProcessor()
    assert (default.size["height"], default.ensure_multiple_of, default.image_mean[0]) == (384, 1, 0.5)
    default = dajax.DepthImageProcessor()
    assert (default.size["height"], default.ensure_multiple_of, default.image_mean[0]) == (518, 14, 0.485)
    assert default.to_dict() == dajax.DepthImageProcessor.from_pretrained(theirs.model.name_or_path).to_dict()


@deviation("sides that are not multiples of 14")
def _(theirs, mine):
    assert theirs.model(torch.zeros(1, 3, 75, 83)).predicted_depth.shape == (1, 70, 70)
    with pytest.raises(ImageError, match="75x83"):
        apply(mine, np.zeros((1, 75, 83, 3), np.float32))


def apply(mine, pixels, **options):
    """Return shapes and types of what our model would give."""
    estimator = mine.estimator
    return jax.eval_shape(lambda params: estimator.model.apply({"params": params}, pixels, **options), estimator.params)


@deviation("axes of the network")
def _(theirs, mine):
    assert theirs.model(torch.zeros(1, 3, 70, 84)).predicted_depth.shape == (1, 70, 84)
    assert apply(mine, np.zeros((1, 70, 84, 3), np.float32)).predicted_depth.shape == (1, 70, 84)
    with pytest.raises(ValueError, match="channel dimension"):
        theirs.model(torch.zeros(1, 70, 84, 3))
    with pytest.raises(ImageError, match="pixels must be"):
        apply(mine, np.zeros((1, 3, 70, 84), np.float32))


@deviation("labels")
def _(theirs, mine):
    with pytest.raises(NotImplementedError):
        theirs.model(torch.zeros(1, 3, 70, 70), labels=torch.ones(1, 70, 70))
    output = apply(mine, np.zeros((1, 70, 70, 3), np.float32), labels=np.ones((1, 70, 70), np.float32))
    assert output.loss.shape == ()


@deviation("attention weights")
def _(theirs, mine):
    asked = {"output_attentions": True, "output_hidden_states": True}
    output = theirs.model(torch.zeros(1, 3, 70, 70), **asked)
    assert output.attentions == ()
    found = apply(mine, np.zeros((1, 70, 70, 3), np.float32), **asked)
    assert [weights.shape for weights in found.attentions] == [(1, 2, 26, 26)] * 4
    assert [tokens.shape for tokens in found.hidden_states] == [tokens.shape for tokens in output.hidden_states]


@deviation("half-precision checkpoints")
def _(theirs, mine):
    theirs.model.half().save_pretrained("half")
    theirs.image_processor.save_pretrained("half")
    assert pipeline("depth-estimation", model="half", device="cpu").model.dtype == torch.float16
    estimator = dajax.DepthEstimator("half")
    assert estimator.dtype == "float32"
    assert {leaf.dtype for leaf in jax.tree.leaves(estimator.params)} == {np.dtype(np.float16)}
    assert dajax.DepthEstimator("half", dtype="float16").dtype == "float16"


def to(theirs, dtype):
    """What `pipeline(dtype=...)` loads."""
    theirs.model.to(dtype)
    assert theirs.dtype == dtype
    return theirs


@deviation("bfloat16 in the pipeline")
def _(theirs, mine):
    image, checkpoint = Image.fromarray(make_image(70, 70)), theirs.model.name_or_path
    with pytest.raises(TypeError, match="BFloat16"):
        to(theirs, torch.bfloat16)(image)
    result = dajax.pipeline(model=checkpoint, dtype="bfloat16", input_size=70)(image)
    assert result["predicted_depth"].dtype == np.float32


@deviation("types of results")
def _(theirs, mine):
    image = Image.fromarray(make_image(70, 70))
    assert isinstance(theirs(image)["predicted_depth"], torch.Tensor)
    assert type(mine(image)["predicted_depth"]) is np.ndarray
    assert to(theirs, torch.float16)(image)["predicted_depth"].dtype == torch.float16
    halved = dajax.pipeline(model=theirs.model.name_or_path, dtype="float16")
    output = apply(halved, np.zeros((1, 70, 70, 3), np.float32))
    assert output.predicted_depth.dtype == np.float32


@deviation("fields of the output")
def _(theirs, mine):
    output = theirs.model(torch.zeros(1, 3, 70, 70))
    assert output[0] is output["predicted_depth"] is output.predicted_depth
    output = apply(mine, np.zeros((1, 70, 70, 3), np.float32))
    with pytest.raises(TypeError, match="subscriptable"):
        output[0]
    assert len(jax.tree.leaves(output)) == 1


@deviation("URLs")
def _(theirs, mine):
    Image.fromarray(make_image(70, 70)).save("a.png")
    with serve({"/a.png": answer(Path("a.png").read_bytes()), "/b": redirect("/a.png")}) as site:
        assert load_image(f"{site.url}/b").size == (70, 70)  # led to an address of the local machine
        assert inspect.signature(load_image).parameters["timeout"].default is None
        with pytest.raises(ImageError, match="not a public address"):
            mine(f"{site.url}/b")
        assert mine(f"{site.url}/a.png")["depth"].size == theirs(f"{site.url}/a.png")["depth"].size == (70, 70)
        assert theirs([f"{site.url}/a.png"])[0]["depth"].size == (70, 70)
        with pytest.raises(ImageError, match="allow_urls"):
            mine([f"{site.url}/a.png"])
        with pytest.raises(UnidentifiedImageError):
            load_image(f"{site.url}/none")
        with pytest.raises(ImageError, match="404"):
            mine(f"{site.url}/none")


@deviation("base64")
def _(theirs, mine):
    Image.fromarray(make_image(70, 70)).save("a.png")
    text = base64.b64encode(Path("a.png").read_bytes()).decode()
    for prefix in ("", "data:image/png;base64,"):
        assert load_image(prefix + text).size == (70, 70)
        assert read_source(prefix + text).shape == (70, 70, 3)
        assert load_image(f"{prefix}!?{text}").size == (70, 70)
        with pytest.raises(ImageError):
            read_source(f"{prefix}!?{text}")


@deviation("what an image may be")
def _(theirs, mine):
    Image.fromarray(make_image(70, 70)).save("a.png")
    with open("a.png", "rb") as stream:
        for source in (Path("a.png"), Path("a.png").read_bytes(), stream, make_image(70, 70)):
            with pytest.raises(TypeError, match="Incorrect format"):
                theirs(source)
            assert mine(source)["depth"].size == (70, 70)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"image": Image.fromarray(make_image(70, 70))}


@deviation("what many images may be")
def _(theirs, mine):
    image = Image.fromarray(make_image(28, 70))

    class Plain:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return image

    for many in ((image,) * 2, map(Image.Image.copy, repeat(image, 2)), Plain()):
        with pytest.raises(TypeError, match="Incorrect format"):
            theirs(many)
        assert len(list(mine(many))) == 2
    for many in (lambda: [image] * 2, lambda: (image for _ in range(2)), lambda: KeyDataset(Rows(), "image")):
        expected, found = theirs(many()), mine(many())
        assert isinstance(found, list) == isinstance(expected, list)
        assert len(list(found)) == len(list(expected)) == 2


@deviation("batches of mixed sizes")
def _(theirs, mine):
    images = [Image.fromarray(make_image(height, 80)) for height in (80, 200, 80)]
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        theirs(images, batch_size=2)
    assert [result["depth"].size for result in mine(images, batch_size=2)] == [(80, 80), (80, 200), (80, 80)]


@deviation("very flat images")
def _(theirs, mine):
    image = Image.fromarray(make_image(1, 80))
    with pytest.raises(ValueError, match="height=0"):
        theirs(image)
    assert mine(image)["depth"].size == (80, 1)
    assert mine_on(mine, image).shape == (1, 14, 70, 3)


@deviation("several frames")
def _(theirs, mine):
    image = Image.fromarray(make_image(70, 70))
    image.save("a.gif", save_all=True, append_images=[Image.fromarray(make_image(71, 70))])
    with Image.open("a.gif") as opened:
        expected = np.asarray(load_image(opened))
    with pytest.warns(UserWarning, match="several frames"):
        np.testing.assert_array_equal(read_image("a.gif"), expected)


@deviation("unknown arguments")
def _(theirs, mine):
    image = Image.fromarray(make_image(70, 70))
    assert theirs(image, nonsense=3)["depth"].size == (70, 70)
    with pytest.raises(TypeError, match="nonsense"):
        mine(image, nonsense=3)


@deviation("nonsense in the config")
def _(theirs, mine):
    assert transformers.DepthAnythingConfig(patch_size=-3).patch_size == -3
    with pytest.raises(ConfigError, match="patch_size"):
        dajax.DepthAnythingConfig(patch_size=-3)


def test_the_page_lists_what_is_tested():
    table = PAGE.partition("| Topic | Transformers | dajax | Why |\n|---|---|---|---|\n")[2].partition("\n\n")[0]
    assert re.findall(r"^\| (.*?) \|", table, re.MULTILINE) == list(DEVIATIONS)


@pytest.mark.parametrize("topic", DEVIATIONS)
def test_deviations(both, topic):
    DEVIATIONS[topic](*both)
