"""Images to depth maps: what goes in, what comes out and in which order, and how often a program is compiled."""

import io
import itertools
import json
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environment import as_here
from flax.traverse_util import flatten_dict
from PIL import Image
from seeded import error, make_image, write_checkpoint
from tiny import tiny_config, tiny_metric_config

import dajax
from dajax.errors import ConfigError, HubError, ImageError, JobError, WeightsError
from dajax.inference.estimator import _check_batch_size
from dajax.preprocessing.buckets import Buckets
from dajax.weights.random import random_params

SHAPES = json.loads((Path(__file__).parents[1] / "references" / "data" / "shapes.json").read_text())
# Across batch sizes; at one padded batch shape results are bit-equal.
BATCHED = 3e-5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config().to_dict(), SHAPES["tiny"])


@pytest.fixture(scope="module")
def estimator(checkpoint):
    return dajax.DepthEstimator(checkpoint, input_size=70)


def make_images(*sizes):
    return [make_image(*size) for size in sizes]


def compiled(estimator) -> int:
    return estimator._apply.run._cache_size()


@pytest.fixture
def quick(estimator, monkeypatch):
    """An estimator whose network is a sum: nothing is compiled, and batches change no bit."""
    monkeypatch.setattr(estimator, "predict", lambda pixels: np.asarray(pixels).sum(axis=-1, dtype=np.float32))
    return estimator


# --- one image and many ------------------------------------------------------------------------------------------


def test_one_image_gives_one_map_and_a_list_gives_a_list(estimator):
    image = make_image(60, 80)
    depth = estimator(image)
    assert isinstance(depth, np.ndarray)
    assert (depth.shape, depth.dtype) == ((60, 80), np.float32)
    assert np.isfinite(depth).all()
    assert depth.std() > 0.01
    for many in ([image], (image,)):
        result = estimator(many)
        assert isinstance(result, list)
        np.testing.assert_array_equal(result[0], depth)
    assert estimator([]) == []


def test_the_map_is_what_its_parts_give(checkpoint, estimator):
    model, params = dajax.load(checkpoint)
    processor = dajax.DepthImageProcessor(input_size=70)
    image = make_image(60, 80)
    forward = jax.jit(lambda params, pixels: model.apply({"params": params}, pixels).predicted_depth)
    output = forward(params, processor(image)["pixel_values"])
    expected = processor.post_process_depth_estimation(output, [(60, 80)])[0]["predicted_depth"]
    assert error(estimator(image), expected) <= BATCHED


# The first size comes once only, and the last images leave batches unfilled.
MIXED = ((33, 90), (60, 80), (61, 80), (80, 60), (60, 80), (81, 60), (62, 80), (70, 70), (80, 60))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 8, 100])
def test_mixed_sizes_keep_their_order(quick, batch_size):
    images = make_images(*MIXED)
    results = quick(images, batch_size=batch_size)
    assert [result.shape for result in results] == [image.shape[:2] for image in images]
    for result, image in zip(results, images, strict=True):
        np.testing.assert_array_equal(result, quick(image))


def test_mixed_sizes_equal_singles(estimator):
    images = make_images((60, 80), (80, 60), (61, 80), (62, 80), (63, 80))
    for result, image in zip(estimator(images, batch_size=4), images, strict=True):
        assert error(result, estimator(image)) <= BATCHED


def test_neighbours_in_a_batch_change_no_bit(estimator):
    images = make_images((60, 80), (61, 80), (62, 80), (63, 80))
    full = estimator(images, batch_size=4)
    # Three are padded to four, and the fourth row is blank.
    for result, expected in zip(estimator(images[:3], batch_size=4), full[:3], strict=True):
        np.testing.assert_array_equal(result, expected)
    for result, expected in zip(
        estimator([images[0], *images[:0:-1]], batch_size=4), [full[0], *full[:0:-1]], strict=True
    ):
        assert error(result, expected) <= BATCHED


def test_leftovers_are_padded_to_powers_of_two(checkpoint):
    estimator = dajax.DepthEstimator(checkpoint, input_size=70, batch_size=8)
    image = make_image(60, 80)
    for count, programs in ((8, 1), (16, 1), (5, 1), (7, 1), (3, 2), (4, 2), (12, 2), (1, 3), (9, 3)):
        estimator([image] * count)
        assert compiled(estimator) == programs, count


def test_a_batch_is_never_more_than_the_batch_size(quick, monkeypatch):
    seen = []
    predict = quick.predict
    monkeypatch.setattr(quick, "predict", lambda pixels: seen.append(len(pixels)) or predict(pixels))
    quick([make_image(60, 80)] * 17, batch_size=6)
    assert seen == [6, 6, 6]
    quick([make_image(60, 80)] * 9, batch_size=6)
    assert seen[3:] == [6, 4]


def test_batch_size_of_the_call_comes_before_the_estimators(checkpoint):
    estimator = dajax.DepthEstimator(checkpoint, input_size=70, batch_size=4)
    estimator(make_images((60, 80), (60, 80)), batch_size=1)
    estimator(make_image(60, 80), batch_size=4)
    assert compiled(estimator) == 1


# --- streams -------------------------------------------------------------------------------------------------------


class Counted:
    """Endless images (a thousand, so that a failure ends), and how many of them were taken."""

    def __init__(self, *sizes, then):
        self.sizes, self.taken = itertools.chain(sizes, itertools.repeat(then)), 0

    def __iter__(self):
        return self

    def __next__(self):
        self.taken += 1
        assert self.taken < 1000
        return make_image(*next(self.sizes))


def test_stream_reads_nothing_before_it_is_asked(quick):
    endless = Counted(then=(60, 80))
    stream = quick.stream(endless)
    assert endless.taken == 0
    next(stream)
    assert endless.taken <= 2


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_stream_reads_a_few_batches_ahead_at_most(quick, batch_size):
    endless = Counted(then=(60, 80))
    stream = quick.stream(endless, batch_size=batch_size)
    for done in range(1, 20):
        next(stream)
        assert endless.taken - done <= 2 * batch_size


@pytest.mark.parametrize("sizes", [[(33, 90)], [(33, 90), (70, 70), (90, 33)]], ids=["one", "three"])
def test_a_rare_size_does_not_hold_up_an_endless_stream(quick, sizes):
    batch_size = 2
    endless = Counted(*sizes, then=(60, 80))
    stream = quick.stream(endless, batch_size=batch_size)
    for done, size in enumerate([*sizes, *[(60, 80)] * 20]):
        assert next(stream).shape == size
        assert endless.taken - done <= 6 * batch_size + 1


def test_stream_of_ever_new_sizes_is_bounded(quick):
    sizes = [(60, 80), (80, 60), (70, 70), (60, 100), (100, 60), (60, 120)] * 2
    endless = Counted(*sizes, then=(70, 70))
    stream = quick.stream(endless, batch_size=2)
    for done, size in enumerate(sizes):
        assert next(stream).shape == size
        assert endless.taken - done <= 10


def test_stream_takes_any_iterable(quick):
    images = make_images((60, 80), (70, 70))
    for many in (iter(images), (image for image in images), {"a": images[0], "b": images[1]}.values()):
        assert [depth.shape for depth in quick.stream(many)] == [(60, 80), (70, 70)]


# --- what an image may be -----------------------------------------------------------------------------------------


def test_every_kind_of_image_gives_the_same_map(estimator, tmp_path):
    image = make_image(60, 80)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    floats = (image / 255).astype(np.float32)
    expected = estimator(image)
    kinds = [path, str(path), path.read_bytes(), Image.fromarray(image), floats, floats.astype(np.float64)]
    for kind in [*kinds, jnp.asarray(image)]:
        np.testing.assert_array_equal(estimator(kind), expected)
    with path.open("rb") as stream:
        np.testing.assert_array_equal(estimator(stream), expected)


def test_inputs_are_not_changed(estimator):
    image = make_image(60, 80)
    floats = (image / 255).astype(np.float32)
    pil = Image.fromarray(image)
    kept = image.copy(), floats.copy(), pil.copy()
    for value in (image, floats):
        value.flags.writeable = False
    images = [image, floats, pil]
    estimator(images)
    assert len(images) == 3
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(floats, kept[1])
    np.testing.assert_array_equal(np.asarray(pil), np.asarray(kept[2]))


def test_images_are_turned_upright_first(estimator, tmp_path):
    stored = Image.fromarray(make_image(60, 90))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    data = io.BytesIO()
    stored.save(data, "JPEG", exif=exif, quality=95)
    (tmp_path / "a.jpg").write_bytes(data.getvalue())
    upright = np.rot90(np.asarray(Image.open(data)), -1)
    depth = estimator(tmp_path / "a.jpg")
    assert depth.shape == (90, 60)
    np.testing.assert_array_equal(depth, estimator(upright.copy()))
    np.testing.assert_array_equal(depth, estimator(Image.open(tmp_path / "a.jpg")))


def test_grey_and_transparent_images(estimator):
    grey = make_image(60, 80)[:, :, 0]
    expected = estimator(np.repeat(grey[:, :, None], 3, axis=2))
    for image in (grey, grey[:, :, None], Image.fromarray(grey)):
        np.testing.assert_array_equal(estimator(image), expected)
    hidden = np.dstack([make_image(60, 80), np.zeros((60, 80), np.uint8)])
    np.testing.assert_array_equal(estimator(hidden), estimator(np.full((60, 80, 3), 255, np.uint8)))


def test_bad_images(quick, tmp_path):
    estimator = quick
    holed = np.full((60, 80, 3), 0.5, np.float32)
    holed[3, 4, 1] = np.nan
    with pytest.raises(ImageError, match=r"nan at index \[3, 4, 1\]"):
        estimator(holed)
    with pytest.raises(ImageError, match=r"\[0, 255\]|within \[0, 1\]"):
        estimator(make_image(60, 80).astype(np.float32))
    with pytest.raises(ImageError, match="No such file"):
        estimator(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="list\\(array\\)"):
        estimator(np.stack(make_images((60, 80), (60, 80))))
    with pytest.raises(ImageError, match="generator"):
        estimator(image for image in make_images((60, 80)))
    with pytest.raises(ImageError, match="URL"):
        estimator("https://host/a.jpg")
    # One bad image says so; the ones before it were given already.
    stream = estimator.stream(iter([make_image(60, 80), make_image(60, 80), holed]))
    assert next(stream).shape == (60, 80)
    with pytest.raises(ImageError, match="nan"):
        list(stream)


def test_too_many_patches(checkpoint):
    official = dajax.DepthEstimator(checkpoint, style="official", input_size=70)
    with pytest.raises(ImageError, match="patches; the limit is"):
        official(np.zeros((1, 20_000, 3), np.uint8))


def test_tiny_images_give_maps(estimator):
    depth = estimator(make_image(1, 1))
    assert depth.shape == (1, 1)
    assert np.isfinite(depth).all()


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (2, 3), (1, 300)])
def test_narrow_images_give_maps(quick, size):
    assert quick(make_image(*size)).shape == size


# --- models --------------------------------------------------------------------------------------------------------


def test_pair_of_model_and_params(checkpoint, estimator):
    image = make_image(60, 80)
    pair = dajax.DepthEstimator(dajax.load(checkpoint), input_size=70)
    np.testing.assert_array_equal(pair(image), estimator(image))
    assert pair.processor.size == {"height": 70, "width": 70}
    assert dajax.DepthEstimator(dajax.load(checkpoint)).processor.size == {"height": 518, "width": 518}


def test_path_may_be_a_string(checkpoint, estimator):
    named = dajax.DepthEstimator(str(checkpoint), input_size=70)
    np.testing.assert_array_equal(named(make_image(60, 80)), estimator(make_image(60, 80)))


# Other maps are several deviations away.
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.3), (jnp.float16, 0.03)])
def test_half_precision_is_close_and_gives_float32(checkpoint, estimator, dtype, bound):
    image = make_image(60, 80)
    by_name = dajax.DepthEstimator(checkpoint, dtype=dtype, input_size=70)
    by_pair = dajax.DepthEstimator(dajax.load(checkpoint), dtype=dtype, input_size=70)
    for half in (by_name, by_pair):
        assert half.dtype == half.model.dtype == jnp.dtype(dtype)
        kept = {path: leaf.dtype for path, leaf in flatten_dict(half.params, sep="/").items()}
        matrices = {path for path in kept if path.startswith("backbone/layer_") and path.endswith("kernel")}
        assert len(matrices) == 6 * half.model.config.backbone_config.num_hidden_layers
        assert {kept.pop(path) for path in matrices} == {jnp.dtype(dtype)}
        assert set(kept.values()) == {jnp.dtype(np.float32)}
    depth = by_pair(image)
    assert depth.dtype == np.float32
    assert 1e-5 < error(depth, estimator(image)) <= bound


def test_float16_is_refused_where_it_does_not_reach(checkpoint, estimator):
    """Values over 65504 become infinite in float16, and the depth NaN. bfloat16 reaches as far as float32."""
    model, params = dajax.load(checkpoint)
    kernel = params["backbone"]["layer_1"]["mlp"]["fc1"]["kernel"]
    params["backbone"]["layer_1"]["mlp"]["fc1"]["kernel"] = 2.0**15 * kernel
    params["backbone"]["layer_1"]["mlp"]["fc2"]["kernel"] *= 2.0**-15
    image = make_image(60, 80)
    assert np.isfinite(dajax.DepthEstimator((model, params), dtype="bfloat16", input_size=70)(image)).all()
    half = dajax.DepthEstimator((model, params), dtype="float16", input_size=70)
    for run in (lambda: half(image), lambda: list(half.stream([image])), lambda: dajax.pipeline(model=half)(image)):
        with pytest.raises(ConfigError, match=r"float16 .*65504.*use bfloat16"):
            run()


def test_dtype_and_device(estimator):
    assert estimator.dtype == "float32"
    assert estimator.device == jax.devices()[0].device_kind


def test_params_follow_the_sharding(checkpoint):
    second = jax.devices()[1]
    placed = dajax.DepthEstimator(checkpoint, input_size=70, sharding=second)
    assert {device for leaf in jax.tree.leaves(placed.params) for device in leaf.devices()} == {second}
    assert placed(make_image(60, 80)).shape == (60, 80)


def test_metric_model_is_in_metres(tmp_path):
    write_checkpoint(tmp_path, tiny_metric_config().to_dict(), SHAPES["tiny-metric"])
    depth = dajax.DepthEstimator(tmp_path, input_size=70)(make_image(60, 80))
    assert 0 < depth.min() < depth.max() < 20


# --- styles --------------------------------------------------------------------------------------------------------


def test_style_sets_positions_and_pixels_together(checkpoint, estimator):
    image = make_image(60, 80)
    official = dajax.DepthEstimator(checkpoint, style="official", input_size=70)
    assert official.processor.style == "official"
    assert official.model.config.backbone_config.interpolate_offset == 0.1
    assert estimator.processor.style == "huggingface"
    assert estimator.model.config.backbone_config.interpolate_offset == 0
    assert error(official(image), estimator(image)) > 1e-3


def test_style_of_a_pair(checkpoint):
    kept = dajax.DepthEstimator(dajax.load(checkpoint, style="official"), input_size=70)
    set_here = dajax.DepthEstimator(dajax.load(checkpoint), style="official", input_size=70)
    for same in (kept, set_here):
        assert same.processor.style == "official"
        assert same.model.config.backbone_config.interpolate_offset == 0.1
    back = dajax.DepthEstimator(dajax.load(checkpoint, style="official"), style="huggingface", input_size=70)
    assert back.processor.style == "huggingface"
    assert back.model.config.backbone_config.interpolate_offset == 0


def test_processor_gives_its_style_to_a_model_that_is_loaded(checkpoint):
    processor = dajax.DepthImageProcessor("official", 70)
    official = dajax.DepthEstimator(checkpoint, processor=processor)
    assert official.processor is processor
    assert official.model.config.backbone_config.interpolate_offset == 0.1


# --- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("input_size", "expected"), [(70, (56, 70)), (84, (56, 84)), ((98, 140), (98, 126)), ((140, 98), (70, 98))]
)
def test_input_size(checkpoint, monkeypatch, input_size, expected):
    estimator = dajax.DepthEstimator(checkpoint, input_size=input_size)
    seen = []
    monkeypatch.setattr(
        estimator, "predict", lambda pixels: seen.append(pixels.shape) or np.zeros(pixels.shape[:3], np.float32)
    )
    assert estimator(make_image(60, 80)).shape == (60, 80)
    assert seen == [(1, *expected, 3)]


def test_without_input_size_the_checkpoints_file_says(checkpoint, tmp_path):
    assert dajax.DepthEstimator(checkpoint).processor.size == {"height": 518, "width": 518}
    write_checkpoint(tmp_path, tiny_config().to_dict(), SHAPES["tiny"])
    fields = json.loads((tmp_path / "preprocessor_config.json").read_text())
    fields["size"] = {"height": 56, "width": 70}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    assert dajax.DepthEstimator(tmp_path).processor.size == {"height": 56, "width": 70}


def test_predict_takes_pixels(estimator):
    pixels = estimator.processor(make_images((60, 80), (60, 80)))["pixel_values"]
    for given in (pixels, jnp.asarray(pixels)):
        depth = estimator.predict(given)
        assert isinstance(depth, jax.Array)
        assert (depth.shape, depth.dtype) == (pixels.shape[:3], np.float32)
    with pytest.raises(ImageError, match="multiples of 14"):
        estimator.predict(np.zeros((1, 71, 70, 3), np.float32))


# --- what is refused -----------------------------------------------------------------------------------------------


# The tests' checks of annotations (TypeError) are before those of dajax where the type is wrong.
@pytest.mark.parametrize("batch_size", [0, -1, True, 2.0, "2", [2]])
def test_batch_size_must_be_a_positive_whole_number(checkpoint, quick, batch_size):
    kind = ConfigError if isinstance(batch_size, int) else (ConfigError, TypeError)
    with pytest.raises(kind, match="batch_size"):
        dajax.DepthEstimator(checkpoint, batch_size=batch_size)
    for images in (make_image(60, 80), [make_image(60, 80)]):
        with pytest.raises(kind, match="batch_size"):
            quick(images, batch_size=batch_size)
    with pytest.raises(ConfigError, match="batch_size"):
        _check_batch_size(batch_size)


def test_contradictions(checkpoint):
    processor = dajax.DepthImageProcessor(input_size=70)
    official = dajax.DepthImageProcessor("official", 70)
    pair = dajax.load(checkpoint)
    for model in (checkpoint, pair):
        with pytest.raises(ConfigError, match="both input_size and a processor were given"):
            dajax.DepthEstimator(model, processor=processor, input_size=70)
        with pytest.raises(ConfigError, match=r"'huggingface'.*'official'"):
            dajax.DepthEstimator(model, processor=processor, style="official")
    with pytest.raises(ConfigError, match=r"'official'.*'huggingface'"):
        dajax.DepthEstimator(pair, processor=official)
    with pytest.raises(ConfigError, match="local_files_only, revision can be used with the name"):
        dajax.DepthEstimator(pair, revision="main", local_files_only=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "offical"}, "style"),
        ({"dtype": "int8"}, "dtype"),
        ({"dtype": "float31"}, "dtype"),
        ({"dtype": "float64"}, "jax_enable_x64"),
        ({"input_size": 3}, "input_size"),
        ({"input_size": (70, 0)}, "input_size"),
        ({"buckets": 0}, "buckets must be a whole number of at least 1"),
        ({"buckets": 2, "policy": "crop"}, "policy must be one of resize, pad"),
        ({"input_szie": 70}, "has no option 'input_szie': did you mean 'input_size'"),
        ({"local_file_only": True}, "did you mean 'local_files_only'"),
        ({"zzz": 1}, "has no option 'zzz': it has batch_size, buckets, cache_dir"),
    ],
    ids=str,
)
def test_bad_options(checkpoint, options, message):
    for model in (checkpoint, dajax.load(checkpoint)):
        with pytest.raises(ConfigError, match=message):
            dajax.DepthEstimator(model, **options)


def test_models_that_are_not_there(tmp_path):
    with pytest.raises(WeightsError, match="alias"):
        dajax.DepthEstimator(tmp_path / "none")
    with pytest.raises(HubError, match="nobody/nothing"):
        dajax.DepthEstimator("nobody/nothing", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_can_be_pickled(checkpoint, estimator, protocol):
    """A model, its params and a processor can; an estimator and a pipeline say what to do instead."""
    for refused in (estimator, dajax.pipeline(model=estimator)):
        with pytest.raises(ConfigError, match=r"an estimator .* cannot be pickled or copied: make one in each process"):
            pickle.dumps(refused, protocol)
    model, params = dajax.load(checkpoint)
    model, params, processor = pickle.loads(pickle.dumps((model, params, estimator.processor), protocol))
    again = dajax.DepthEstimator((model, params), processor=processor)
    image = make_image(60, 80)
    np.testing.assert_array_equal(again(image), estimator(image))


def test_two_estimators_in_threads(checkpoint, estimator):
    other = dajax.DepthEstimator(checkpoint, style="official", input_size=70)
    images = make_images((60, 80), (61, 80))
    expected = {id(e): e(images, batch_size=2) for e in (estimator, other)}
    found, problems = {}, []

    def work(place, e):
        try:
            found[place] = (e, e(images, batch_size=2))
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(i, e)) for i, e in enumerate([estimator, other] * 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(found) == 6
    for e, results in found.values():
        for result, wanted in zip(results, expected[id(e)], strict=True):
            np.testing.assert_array_equal(result, wanted)


# --- streams of jobs --------------------------------------------------------------------------------------------------


def test_whole_batches_make_a_map_independent_of_what_else_there_is(estimator):
    """To the bit: at any place in a batch, beside any others, alone at the end."""
    images = make_images(*[(60, 80)] * 7)
    options = {"batch_size": 4, "whole_batches": True}
    expected = list(estimator.stream(images, **options))
    for order in ([6, 5, 4, 3, 2, 1, 0], [3], [1, 6], [2, 0, 5, 4, 1]):
        for place, depth in zip(order, estimator.stream([images[i] for i in order], **options), strict=True):
            np.testing.assert_array_equal(depth, expected[place])


def test_whole_batches_of_any_size_give_the_depth_map_of_the_image_alone(estimator):
    """On CPUs, whose products depend on how many rows there are."""
    images = make_images(*[(60 + i, 80) for i in range(5)])
    expected = [estimator(image) for image in images]
    for batch_size in (2, 4):
        depths = estimator.stream(images, batch_size=batch_size, whole_batches=True)
        for depth, other in zip(depths, expected, strict=True):
            np.testing.assert_array_equal(depth, other)


@pytest.mark.parametrize(("platform", "rows"), [("cpu", [1] * 6), ("gpu", [4, 4]), ("tpu", [4, 4])])
def test_whole_batches_run_single_images_on_cpus_only(quick, monkeypatch, platform, rows):
    images = make_images(*[(60 + i, 80) for i in range(6)])
    expected = [quick(image) for image in images]
    seen = []
    predict = quick.predict
    monkeypatch.setattr(quick, "predict", lambda pixels: seen.append(len(pixels)) or predict(pixels))
    monkeypatch.setattr(quick, "_devices", [SimpleNamespace(platform=platform, device_kind=platform)])
    depths = list(quick.stream(images, batch_size=4, whole_batches=True))
    assert seen == rows
    for depth, other in zip(depths, expected, strict=True):
        np.testing.assert_array_equal(depth, other)


def test_processed_images_and_model_size(estimator):
    image = make_image(60, 80)
    taken = Buckets(estimator.processor, None).process(image)
    (depth,) = estimator.stream([taken])
    np.testing.assert_array_equal(depth, estimator(image))
    (small,) = estimator.stream([taken], source_size=False)
    assert small.shape == taken.pixels.shape[:2] == (56, 70)


@pytest.mark.parametrize("policy", ["resize", "pad"])
def test_buckets_at_every_door(checkpoint, quick, monkeypatch, policy):
    """The constructor, a call and a stream give the same, and a call's argument takes precedence."""
    image = make_image(40, 110)
    expected = next(quick.stream([Buckets(quick.processor, 1, policy).process(image)]))
    assert not np.array_equal(expected, quick(image))
    np.testing.assert_array_equal(quick(image, buckets=1, policy=policy), expected)
    np.testing.assert_array_equal(quick([image], buckets=1, policy=policy)[0], expected)
    with_buckets = dajax.DepthEstimator(checkpoint, input_size=70, buckets=1, policy=policy)
    monkeypatch.setattr(with_buckets, "predict", quick.predict)
    np.testing.assert_array_equal(with_buckets(image), expected)
    other = next(quick.stream([Buckets(quick.processor, 3, policy).process(image)]))
    assert not np.array_equal(expected, other)
    np.testing.assert_array_equal(with_buckets(image, buckets=3), other)
    with pytest.raises(ConfigError, match="tiles cannot be used with buckets"):
        with_buckets(image, tiles=2)
    piped = dajax.pipeline(model=with_buckets)
    np.testing.assert_array_equal(piped(image)["predicted_depth"], expected)
    np.testing.assert_array_equal(piped(image, buckets=3)["predicted_depth"], other)
    np.testing.assert_array_equal(
        dajax.pipeline(model=quick)([image], buckets=1, policy=policy)[0]["predicted_depth"], expected
    )


def test_programs_are_bounded(checkpoint, monkeypatch):
    """With a size more than it keeps programs for, an estimator drops them, and says so."""
    monkeypatch.setattr("dajax.limits.MAX_PROGRAMS", 3)
    estimator = dajax.DepthEstimator(checkpoint, input_size=70)
    pixels = [np.zeros((1, 14, 14 * width, 3), np.float32) for width in range(1, 5)]
    first = np.asarray(estimator.predict(pixels[0]))
    for one in (*pixels[1:3], *pixels[:3]):
        estimator.predict(one)
    assert compiled(estimator) == 3
    told = []
    estimator.on_new_shape = told.append
    with pytest.warns(UserWarning, match=r"images of more than 3 sizes came.*buckets=… bounds the number"):
        estimator.predict(pixels[3])
    assert compiled(estimator) == 1
    np.testing.assert_array_equal(np.asarray(estimator.predict(pixels[0])), first)
    assert told == [pixels[3].shape, pixels[0].shape]


@pytest.mark.filterwarnings("ignore:images of more than 1 sizes")
def test_a_dropped_program_ends_first(checkpoint, monkeypatch):
    """Threads whose programs are dropped by another one get their depth maps."""
    monkeypatch.setattr("dajax.limits.MAX_PROGRAMS", 1)
    estimator = dajax.DepthEstimator(checkpoint, input_size=70)
    images = make_images(*[(70, 70 + 14 * i) for i in range(3)] * 2)
    expected = [estimator(image) for image in images[:3]]
    with ThreadPoolExecutor(3) as pool:
        for depth, wanted in zip(pool.map(estimator, images), expected * 2, strict=True):
            np.testing.assert_array_equal(depth, wanted)


@pytest.mark.slow
def test_a_long_lived_service():
    """2,000 calls with 200 sizes: with buckets, the memory of the process stays as it is."""
    program = """
        import ctypes
        import gc
        from concurrent.futures import ThreadPoolExecutor
        import numpy as np
        import dajax

        def resident():
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back: how many threads ran at once does not show
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

        estimator = dajax.DepthEstimator("tiny", input_size=70, buckets=4)
        sizes = [(60 + 3 * a, 200 - 7 * b) for a in range(20) for b in range(10)]
        images = [np.full((*size, 3), 100, np.uint8) for size in sizes]
        readings = []
        with ThreadPoolExecutor(4) as pool:
            for _ in range(10):
                depths = list(pool.map(estimator, images))
                assert [depth.shape for depth in depths] == sizes
                readings.append(resident())
        print(len(estimator._shapes), *readings)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, env=as_here()
    )
    programs, _, _, third, *later = map(float, done.stdout.split())
    assert programs <= 4
    assert max(later) - third < 30, f"{third} MB, then {later}"


@pytest.mark.parametrize("policy", ["resize", "pad"])
def test_buckets_bound_the_programs(checkpoint, policy):
    estimator = dajax.DepthEstimator(checkpoint, input_size=70, batch_size=2)
    images = make_images(*[(40 + 3 * i, 130 - 5 * i) for i in range(12)])
    depths = list(estimator.stream(images, buckets=3, policy=policy, whole_batches=True))
    assert [depth.shape for depth in depths] == [image.shape[:2] for image in images]
    assert estimator._apply.run._cache_size() <= 3


def test_padding_stays_outside_of_the_map(quick):
    """The stand-in's map is black outside of the image; nothing of that is returned."""
    image = np.full((40, 120, 3), 200, np.uint8)
    (depth,) = quick.stream([image], buckets=1, policy="pad")
    assert depth.shape == (40, 120)
    np.testing.assert_allclose(depth, depth[0, 0], rtol=1e-5)


def short_of_memory(most):
    """A network that holds `most` images at a time."""
    import jax

    seen = []

    def predict(pixels):
        seen.append(len(pixels))
        if len(pixels) > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return np.asarray(pixels).sum(axis=-1, dtype=np.float32)

    return predict, seen


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_out_of_memory_halves_the_batch(quick, monkeypatch, most):
    images = make_images(*MIXED, *MIXED)
    expected = list(quick.stream(images, batch_size=8))
    predict, seen = short_of_memory(most)
    monkeypatch.setattr(quick, "predict", predict)
    told = []
    found = list(quick.stream(images, batch_size=8, on_smaller_batch=told.append))
    for depth, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(depth, other)
    assert told == [size for size in (4, 2, 1) if size * 2 > most]
    # Once it is known, it is not tried again.
    assert sum(size > most for size in seen) == len(told)


def test_out_of_memory_is_said(quick, monkeypatch):
    monkeypatch.setattr(quick, "predict", short_of_memory(2)[0])
    with pytest.warns(UserWarning, match="out of device memory: batches of 2"):
        list(quick.stream(make_images(*[(60, 80)] * 4), batch_size=4))
    monkeypatch.setattr(quick, "predict", short_of_memory(0)[0])
    with pytest.raises(JobError, match="an image of 56x70 does not fit"):
        list(quick.stream(make_images((60, 80)), batch_size=1))


def test_a_processor_of_other_patches_is_refused():
    """By the field that is wrong, before an image is processed."""
    pair = dajax.DepthAnything(tiny_config()), random_params(tiny_config())
    wrong = dajax.DepthImageProcessor(input_size=98, ensure_multiple_of=16)
    with pytest.raises(ConfigError, match="ensure_multiple_of is 16, and the model's patches have 14 pixels: write"):
        dajax.DepthEstimator(pair, processor=wrong)
    for fine in (
        dajax.DepthImageProcessor(input_size=98, ensure_multiple_of=28),
        dajax.DepthImageProcessor(input_size=98, ensure_multiple_of=1, keep_aspect_ratio=False),
        dajax.DepthImageProcessor(ensure_multiple_of=16, do_resize=False),
    ):
        dajax.DepthEstimator(pair, processor=fine)
