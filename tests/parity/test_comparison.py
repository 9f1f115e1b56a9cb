"""docs/comparison.md: every cell about Transformers, shown by running or inspecting it."""

import importlib.metadata
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from authors import official_state
from comparison import ROOT, Checks, compared
from PIL import Image
from seeded import make_image, write_checkpoint
from tiny import tiny_config, tiny_metric_config
from transformers import AutoModelForDepthEstimation, DepthAnythingConfig, DepthAnythingForDepthEstimation, pipeline
from transformers.image_utils import load_image

import dajax

PAGE = (ROOT / "docs" / "comparison.md").read_text()
VERSION = re.search(r"Transformers (\d+\.\d+)", PAGE)[1]
pytestmark = pytest.mark.skipif(
    not transformers.__version__.startswith(f"{VERSION}."),
    reason=f"the page is about Transformers {VERSION}: pip install with constraints.txt",
)
SHAPES = json.loads((ROOT / "tests" / "references" / "data" / "shapes.json").read_text())["tiny"]
HOME = Path(transformers.__file__).parent
CHECKS = Checks()
says = CHECKS.says


@pytest.fixture(scope="module")
def it(tmp_path_factory):
    """A checkpoint, the model in it and a pipeline with small pixels."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config().to_dict(), SHAPES)
    pipe = pipeline("depth-estimation", model=str(checkpoint), device="cpu")
    pipe.image_processor.size = {"height": 70, "width": 70}
    return SimpleNamespace(checkpoint=checkpoint, model=pipe.model, pipe=pipe)


# Read in the files of its repository, which are not in the package; the page says so.
READ = {"has met the trained weights", "tests of the numbers"}


@pytest.mark.parametrize("row", [row for row in compared() if row not in READ])
def test_cell(row, it, tmp_path, monkeypatch):
    assert row in CHECKS, f"nothing checks {row!r}"
    cell, check = CHECKS[row]
    assert compared()[row][1] == cell
    monkeypatch.chdir(tmp_path)
    check(it)


def test_nothing_else_is_checked():
    assert set(CHECKS) | READ == set(compared())
    assert all(f'"{row}"' in PAGE for row in READ)


def built(config):
    return DepthAnythingForDepthEstimation(DepthAnythingConfig(**config.to_dict()))


@says("framework", "PyTorch")
def _(it):
    assert isinstance(it.model, torch.nn.Module)


def has(config, parameters):
    """Whether the network of this config has so many parameters; nothing is allocated."""
    with torch.device("meta"):
        return sum(values.numel() for values in built(config).parameters()) == parameters


def released(kind):
    """The config of each size, having seen that the network has as many parameters as the released one."""
    models = [model for model in dajax.list_models() if model.kind == kind and model.hub_id]  # tiny is nobody else's
    assert len(models) == 3
    for model in models:
        config = dajax.DepthAnythingConfig.from_pretrained(model.alias)
        assert has(config, model.parameters)
        yield DepthAnythingConfig(**config.to_dict())


@says("V2 relative, Small to Large", "yes")
def _(it):
    assert {config.depth_estimation_type for config in released("relative")} == {"relative"}
    assert isinstance(it.model.head.activation2, torch.nn.ReLU)


@says("V2 metric, indoor and outdoor", "yes")
def _(it):
    for place, metres in (("indoor", 20), ("outdoor", 80)):
        assert {config.max_depth for config in released(f"metric {place}")} == {metres}
    assert isinstance(built(tiny_metric_config()).head.activation2, torch.nn.Sigmoid)


@says("V1 relative", "yes")
def _(it):
    for config in released("v1 relative"):
        layers = config.backbone_config.num_hidden_layers
        assert list(config.backbone_config.out_indices) == list(range(layers - 3, layers + 1))


@says("Giant, whose weights were never released", "architecture")
def _(it):
    assert has(dajax.DepthAnythingConfig.giant(), 1_258_132_225)


@says("Transformers' `.safetensors`", "reads, writes")
def _(it):
    it.model.save_pretrained("saved")
    assert Path("saved/model.safetensors").exists()
    AutoModelForDepthEstimation.from_pretrained("saved")


def loads(state):
    """Whether its loader finds every parameter of the model in a file."""
    Path("folder").mkdir()
    Path("folder/config.json").write_text(json.dumps(tiny_config().to_dict()))
    torch.save(state, "folder/pytorch_model.bin")
    _, info = DepthAnythingForDepthEstimation.from_pretrained("folder", output_loading_info=True)
    return not info["missing_keys"]


@says("the authors' `.pth`", "no")
def _(it):
    assert not loads({name: torch.from_numpy(values) for name, values in official_state(tiny_config()).items()})


@says("training checkpoints with optimizer state", "no")
def _(it):
    state = {f"module.{name}": values for name, values in it.model.state_dict().items()}
    with pytest.raises(AttributeError, match="'dict' object has no attribute"):
        loads({"model": state, "optimizer": {}})


@says("PyTorch's pickle files are read", "by torch's restricted unpickler")
def _(it):
    parameters = inspect.signature(transformers.PreTrainedModel.from_pretrained).parameters
    assert parameters["weights_only"].default is True


@says("numbers of the preprocessing", "Transformers'")
def _(it):
    options = inspect.signature(type(it.pipe.image_processor).__init__).parameters
    assert not {"style", "resize_method"} & set(options)
    # The authors' code makes 518x784 of it.
    processor = type(it.pipe.image_processor).from_pretrained(it.checkpoint)
    assert processor(Image.new("RGB", (600, 400)), return_tensors="np")["pixel_values"].shape[2:] == (350, 518)


@says("sizes of images", "any; a depth map has its image's size")
def _(it):
    for size in ((60, 80), (80, 60)):
        assert it.pipe(Image.fromarray(make_image(*size)))["predicted_depth"].shape == size


@says("mixed sizes in batches", "no, one by one")
def _(it):
    images = [Image.fromarray(make_image(*size)) for size in ((60, 80), (80, 60))]
    assert [result["depth"].size for result in it.pipe(images)] == [(80, 60), (60, 80)]
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        it.pipe(images, batch_size=2)


@says("EXIF orientation", "applied by the pipeline only")
def _(it):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_image(28, 56)).save("turned.jpg", exif=exif)
    assert it.pipe("turned.jpg")["depth"].size == (28, 56)
    with Image.open("turned.jpg") as image:
        pixels = it.pipe.image_processor(image, return_tensors="np")["pixel_values"]
    assert pixels.shape[2] < pixels.shape[3]


@says("16-bit greyscale", "cut at 255")
def _(it):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save("grey.png")
    assert np.asarray(load_image("grey.png"))[0, :, 0].tolist() == [0, 255, 255, 255]


@says("transparency", "dropped, hidden colours show")
def _(it):
    Image.new("RGBA", (4, 4), (200, 10, 10, 0)).save("clear.png")
    assert (np.asarray(load_image("clear.png")) == (200, 10, 10)).all()


@says("http(s) URLs", "yes, without limits")
def _(it):
    assert inspect.signature(load_image).parameters["timeout"].default is None
    assert "follow_redirects=True).content" in inspect.getsource(load_image)


@says("sides that are no multiples of 14", "rest cut off")
def _(it):
    with torch.no_grad():
        assert it.model(torch.zeros(1, 3, 29, 43)).predicted_depth.shape == (1, 28, 42)


@says("gradients", "yes")
def _(it):
    pixels = torch.zeros(1, 3, 28, 42, requires_grad=True)
    it.model(pixels).predicted_depth.mean().backward()
    assert pixels.grad.shape == pixels.shape


@says("loss from labels", "`NotImplementedError`")
def _(it):
    with pytest.raises(NotImplementedError):
        it.model(torch.zeros(1, 3, 28, 42), labels=torch.ones(1, 28, 42))


@says("hidden states", "yes")
def _(it):
    assert len(it.model(torch.zeros(1, 3, 28, 42), output_hidden_states=True).hidden_states) == 5


@says("attention weights", "yes, with eager attention")
def _(it):
    options = {"pixel_values": torch.zeros(1, 3, 28, 42), "output_attentions": True}
    assert not any(weights is not None for weights in it.model(**options).attentions or ())
    eager = AutoModelForDepthEstimation.from_pretrained(it.checkpoint, attn_implementation="eager")
    assert [weights.shape for weights in eager(**options).attentions] == [(1, 2, 7, 7)] * 4


@says("bfloat16", "model yes, pipeline fails")
def _(it):
    model = AutoModelForDepthEstimation.from_pretrained(it.checkpoint, dtype=torch.bfloat16)
    assert model(torch.zeros(1, 3, 28, 42, dtype=torch.bfloat16)).predicted_depth.dtype == torch.bfloat16
    pipe = pipeline("depth-estimation", model=model, image_processor=it.pipe.image_processor, device="cpu")
    with pytest.raises(TypeError, match="BFloat16"):
        pipe(Image.fromarray(make_image(28, 42)))


@says("a batch over several devices", "no")
def _(it):
    assert isinstance(it.pipe.device, torch.device)


def lacking(row, *names):
    """Neither its commands nor its tasks have it."""

    @says(row, "no")
    def _(it):
        commands = {path.stem for path in (HOME / "cli").glob("*.py")}
        assert {"chat", "serve"} <= commands
        assert not commands & set(names)
        tasks = transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks()
        assert [task for task in tasks if "depth" in task] == ["depth-estimation"]


lacking("command line for images", "run", "predict", "depth")
lacking("video", "video", "depth")
lacking("web page", "demo", "app")
lacking("point clouds", "points", "cloud")


@says("coloured depth maps", "grey")
def _(it):
    assert it.pipe(Image.fromarray(make_image(28, 42)))["depth"].mode == "L"


@says("depth itself in files", "no")
def _(it):
    # A tensor and an 8-bit image; writing is left to whoever gets them.
    result = it.pipe(Image.fromarray(make_image(28, 42)))
    assert {key: type(value) for key, value in result.items()} == {
        "predicted_depth": torch.Tensor,
        "depth": Image.Image,
    }


@says("training loop", "no")
def _(it):
    # It has a Trainer, which needs the loss.
    with pytest.raises(NotImplementedError):
        it.model(torch.zeros(1, 3, 28, 42), labels=torch.ones(1, 28, 42))


@says("installed by", "pip")
def _(it):
    assert importlib.metadata.version("transformers") == transformers.__version__


@says("needs PyTorch or TensorFlow", "PyTorch")
def _(it):
    assert issubclass(DepthAnythingForDepthEstimation, torch.nn.Module)


@says("type annotations for checkers", "yes")
def _(it):
    assert (HOME / "py.typed").exists()


@says("licence of the code", "Apache-2.0")
def _(it):
    assert "Apache" in str(importlib.metadata.metadata("transformers"))
