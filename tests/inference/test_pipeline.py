"""The interface of Transformers' depth-estimation pipeline; tests/parity compares the numbers."""

import base64
import inspect
import json
import socket
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from seeded import make_image, write_checkpoint
from tiny import tiny_config
from web import answer, redirect, serve

import dajax
from dajax.errors import ConfigError, ImageError, WeightsError

SHAPES = json.loads((Path(__file__).parents[1] / "references" / "data" / "shapes.json").read_text())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config().to_dict(), SHAPES["tiny"])


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return dajax.pipeline("depth-estimation", model=checkpoint, input_size=70)


@pytest.fixture
def quick(pipe, monkeypatch):
    """A pipeline whose network is a sum: nothing is compiled."""
    monkeypatch.setattr(pipe.estimator, "predict", lambda pixels: np.asarray(pixels).sum(-1, dtype=np.float32))
    return pipe


def test_one_image_gives_values_and_a_image(pipe):
    result = pipe(make_image(60, 80))
    assert set(result) == {"predicted_depth", "depth"}
    values, shown = result["predicted_depth"], result["depth"]
    assert (values.shape, values.dtype) == ((60, 80), np.float32)
    np.testing.assert_array_equal(values, pipe.estimator(make_image(60, 80)))
    assert (shown.mode, shown.size) == ("L", (80, 60))
    levels = np.asarray(shown)
    assert (levels.min(), levels.max()) == (0, 255)
    assert levels[np.unravel_index(values.argmax(), values.shape)] == 255
    expected = (values - values.min()) / (values.max() - values.min()) * 255
    assert np.abs(levels - expected).max() <= 1


def test_lists_and_tuples_give_lists(quick):
    images = [make_image(60, 80), Image.fromarray(make_image(80, 60)), make_image(61, 80), (make_image(70, 70) / 255)]
    singles = [quick(image) for image in images]
    for many in (images, tuple(images)):
        for batch_size in (None, 1, 2, 8):
            results = quick(many, batch_size=batch_size)
            assert isinstance(results, list)
            for result, single in zip(results, singles, strict=True):
                np.testing.assert_array_equal(result["predicted_depth"], single["predicted_depth"])
                np.testing.assert_array_equal(np.asarray(result["depth"]), np.asarray(single["depth"]))
    assert quick([]) == []
    assert isinstance(quick([images[0]]), list)


def test_generators_give_generators(quick):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield make_image(60, 80)

    results = quick(endless())
    assert inspect.isgenerator(results)
    assert not taken
    for done in range(1, 6):
        assert next(results)["predicted_depth"].shape == (60, 80)
        assert len(taken) <= done + 1
    assert next(quick(iter([make_image(70, 70)])))["depth"].size == (70, 70)


@pytest.fixture
def image_path(tmp_path, monkeypatch):
    """`image.png` in the working folder."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(make_image(60, 80)).save("image.png")
    return Path("image.png")


def test_whatever_a_image_is_in(quick, image_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    expected = quick(make_image(60, 80))["predicted_depth"]
    for name in ("socket", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    text = base64.b64encode(image_path.read_bytes()).decode()
    sources = (
        image_path,
        str(image_path),
        image_path.read_bytes(),
        text,
        f"data:image/png;base64,{text}",
        Image.open(image_path),
    )
    for source in (*sources, make_image(60, 80), make_image(60, 80) / 255):
        np.testing.assert_array_equal(quick(source)["predicted_depth"], expected)
        np.testing.assert_array_equal(quick([source])[0]["predicted_depth"], expected)
    with image_path.open("rb") as stream:  # an iterator over lines, but one image
        np.testing.assert_array_equal(quick(stream)["predicted_depth"], expected)


@pytest.mark.parametrize("height", [1, 3, 4])
def test_flat_images(quick, tmp_path, height):
    """Their arrays could be taken for [channels, height, width]; files say what they are."""
    path = tmp_path / "flat.png"
    Image.fromarray(make_image(height, 80)).save(path)
    assert quick(path)["predicted_depth"].shape == (height, 80)
    assert quick(make_image(height, 80), layout="HWC")["depth"].size == (80, height)


def test_declared_arrays(quick, checkpoint):
    image = make_image(60, 80)
    expected = quick(image)["predicted_depth"]
    planes = image.transpose(2, 0, 1)
    declared = dajax.pipeline(model=quick.estimator, layout="CHW", value_range=(-1, 1))
    for result in (
        quick(planes, layout="CHW"),
        quick([planes], parameters={"layout": "CHW"})[0],
        quick(planes.astype(np.float32) / 127.5 - 1, layout="CHW", value_range=(-1, 1)),
        declared(planes / 127.5 - 1),
        next(declared(iter([image / 127.5 - 1]), layout="HWC")),
        declared(image, parameters={"layout": "HWC", "value_range": (0, 255)}),
        quick(image.astype(np.uint16) * 257, layout="HWC"),
    ):
        np.testing.assert_array_equal(result["predicted_depth"], expected)
    for wrong, match in ((planes, "channels"), (image * 1.0, "within"), (image[None], "four axes")):
        with pytest.raises(ImageError, match=match):
            quick(wrong)
        with pytest.raises(ImageError, match=rf"^inputs\[1\]: .*{match}"):
            quick([image, wrong])
    with pytest.raises(ImageError, match="layout"):
        quick(planes, layout="CWH")


def test_values_of_more_than_8_bits(quick, tmp_path):
    levels = make_image(60, 80)[:, :, 0]
    levels[0, :2] = 0, 255
    expected = quick(levels)["predicted_depth"]
    Image.fromarray(levels.astype(np.uint16) + 3000).save(tmp_path / "thermal.png")
    with pytest.warns(UserWarning, match='from 3000 to 3255.*give value_range="auto"'):
        quick(tmp_path / "thermal.png")
    for value_range in ("auto", (3000, 3255)):
        for source in (tmp_path / "thermal.png", levels.astype(np.uint16) + 3000, levels.astype(np.int32) - 90):
            if value_range == "auto" or not isinstance(source, np.ndarray) or source.dtype == np.uint16:
                found = quick(source, value_range=value_range)["predicted_depth"]
                np.testing.assert_array_equal(found, expected)


def test_images_that_break_off(quick, tmp_path):
    Image.fromarray(make_image(60, 80)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(ImageError, match="Pass allow_truncated=True"):
        quick(data[:-200])
    for arguments in ({"allow_truncated": True}, {"parameters": {"allow_truncated": True}}):
        with pytest.warns(UserWarning, match="truncated"):
            assert quick(data[:-200], **arguments)["predicted_depth"].shape == (60, 80)


class DataSet:
    """What torch's data sets have; an index past the end is no IndexError."""

    def __init__(self, length=3):
        self.length, self.taken = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.taken.append(index)
        return make_image(60, 80 + index)


def test_data_sets_are_streamed(quick):
    data = DataSet(1_000_000)
    results = quick(data)
    assert inspect.isgenerator(results)
    assert not data.taken
    assert [next(results)["depth"].size for _ in range(3)] == [(80, 60), (81, 60), (82, 60)]
    assert data.taken[:3] == [0, 1, 2]
    assert len(data.taken) < 10
    for length in (0, 3):
        assert len(list(islice(quick(DataSet(length)), 9))) == length


def test_iterables_are_streamed(quick):
    class Iterable:
        def __iter__(self):
            return repeat(make_image(60, 80))

    for many in (Iterable(), map(np.asarray, Iterable()), {"a": make_image(60, 80)}.values()):
        results = quick(many)
        assert inspect.isgenerator(results)
        assert next(results)["depth"].size == (80, 60)


def test_names_of_the_argument(quick):
    image = make_image(60, 80)
    expected = quick(image)["predicted_depth"]
    np.testing.assert_array_equal(quick(inputs=image)["predicted_depth"], expected)
    np.testing.assert_array_equal(quick(images=image)["predicted_depth"], expected)
    for arguments in ({}, {"inputs": image, "images": image}):
        with pytest.raises(ImageError, match=r"inputs=… or as images=…, got (both|neither)"):
            quick(**arguments)


# --- URLs ----------------------------------------------------------------------------------------------------------


def test_one_url_is_downloaded(quick, image_path):
    with serve({"/a.png": answer(image_path.read_bytes()), "/b": redirect("/a.png")}) as site:
        expected = quick(image_path)["predicted_depth"]
        np.testing.assert_array_equal(quick(f"{site.url}/a.png")["predicted_depth"], expected)
        np.testing.assert_array_equal(quick(images=f"{site.url}/a.png", timeout=9)["predicted_depth"], expected)
        for path, message in {"/none": "404 'Not Found'", "/b": "not a public address"}.items():
            with pytest.raises(ImageError, match=message):
                quick(site.url + path)


def test_urls_among_many_are_not(quick, image_path):
    with serve({"/a.png": answer(image_path.read_bytes())}) as site:
        url = f"{site.url}/a.png"
        for many in ([url], (image_path, url), iter([url])):
            with pytest.raises(ImageError, match=rf"^inputs\[\d\]: '{url}': .*allow_urls=True"):
                list(quick(many))
        assert not site.requests
        allowing = dajax.pipeline(model=quick.estimator, allow_urls=True)
        for results in (
            quick([image_path, url], allow_urls=True),
            allowing([image_path, url]),
            list(allowing(iter([url]))),
        ):
            np.testing.assert_array_equal(results[-1]["predicted_depth"], quick(image_path)["predicted_depth"])
        with pytest.raises(ImageError, match="allow_urls=True"):
            allowing([url], allow_urls=False)


def test_timeouts(quick):
    with serve({"/a": lambda connection: connection.recv(1)}) as site:
        patient = dajax.pipeline(model=quick.estimator, timeout=0.2)
        for call in (
            lambda: patient(f"{site.url}/a"),
            lambda: quick(f"{site.url}/a", timeout=0.2),
            lambda: quick(f"{site.url}/a", timeout=9, parameters={"timeout": 0.2}),
        ):
            with pytest.raises(ImageError, match="not there within"):
                call()


# --- results -------------------------------------------------------------------------------------------------------


def test_constant_depth_is_a_black_image(pipe, monkeypatch):
    monkeypatch.setattr(pipe.estimator, "predict", lambda pixels: np.full(pixels.shape[:3], 3, np.float32))
    result = pipe(make_image(60, 80))
    np.testing.assert_allclose(result["predicted_depth"], 3, rtol=1e-6)
    monkeypatch.setattr(pipe.estimator, "stream", lambda *_, **__: iter([np.full((60, 80), 3, np.float32)]))
    assert np.asarray(pipe(make_image(60, 80))["depth"]).max() == 0


def test_depth_that_is_not_finite_is_an_error(pipe, monkeypatch):
    monkeypatch.setattr(pipe.estimator, "predict", lambda pixels: np.full(pixels.shape[:3], np.nan, np.float32))
    with pytest.raises(ImageError, match="finite"):
        pipe(make_image(60, 80))


def test_models_and_estimators(checkpoint, pipe):
    image = make_image(60, 80)
    expected = pipe(image)["predicted_depth"]
    of_estimator = dajax.pipeline(model=pipe.estimator)
    assert of_estimator.estimator is pipe.estimator
    of_pair = dajax.pipeline(model=dajax.load(checkpoint), input_size=70)
    of_class = dajax.DepthEstimationPipeline(str(checkpoint), input_size=70, batch_size=2)
    assert isinstance(of_pair, dajax.DepthEstimationPipeline)
    assert of_class.estimator.batch_size == 2
    np.testing.assert_array_equal(of_pair(image)["predicted_depth"], expected)
    official = dajax.pipeline(model=checkpoint, style="official")
    assert official.estimator.processor.style == "official"


def test_what_is_refused(checkpoint, pipe, tmp_path):
    for task in ("depth", "image-classification", "depth_estimation", ""):
        with pytest.raises(ConfigError, match="depth-estimation"):
            dajax.pipeline(task, model=checkpoint)
    with pytest.raises(ConfigError, match="both an estimator and dtype, input_size were given"):
        dajax.pipeline(model=pipe.estimator, input_size=70, dtype="bfloat16")
    with pytest.raises(ConfigError, match="style"):
        dajax.pipeline(model=checkpoint, style="offical")
    with pytest.raises(WeightsError, match="none"):
        dajax.pipeline(model=tmp_path / "none")
    for batch_size in (0, -3):
        for images in (make_image(60, 80), [make_image(60, 80)]):
            with pytest.raises(ConfigError, match="batch_size"):
                pipe(images, batch_size=batch_size)
    for bad in (None, 3, {"image": make_image(60, 80)}, "none.jpg", "image", tmp_path / "none.jpg"):
        with pytest.raises(ImageError):
            pipe(bad)


@pytest.mark.parametrize(
    ("argument", "instead"),
    [("device", "sharding="), ("device_map", "mesh="), ("torch_dtype", "dtype="), ("image_processor", "processor=")],
)
def test_arguments_that_only_transformers_has(checkpoint, argument, instead):
    with pytest.raises(ConfigError, match=f"^{argument} is an argument of Transformers' pipeline; .*{instead}"):
        dajax.pipeline("depth-estimation", model=checkpoint, **{argument: "cpu"})


def test_arguments_that_nobody_has(quick):
    with pytest.raises(TypeError, match="nonsense"):
        quick(make_image(60, 80), nonsense=3)
    with pytest.raises(ConfigError, match=r"allow_urls.*timeout.*got 'nonsense'"):
        quick(make_image(60, 80), parameters={"nonsense": 3, "timeout": 5})
