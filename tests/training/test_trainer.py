"""From settings to a saved model."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from plain_scenes import plain_scenes
from tiny import single_config, single_metric_config

import dajax
from dajax.errors import ConfigError
from dajax.training import batches
from dajax.training.batches import SceneBatches, held_out_scenes, labels
from dajax.training.log import read_log
from dajax.training.optimizer import encoder_only
from dajax.training.train_settings import DataSettings, ModelSettings, OptimizerSettings, TrainSettings
from dajax.training.trainer import fresh_params, starting_point, train
from dajax.weights.random import random_params


@pytest.fixture(autouse=True, scope="module")
def _plain():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "render_scenes", plain_scenes)
        yield


DATA = DataSettings(size=42, count=6, batch_size=2, validation=3)


def settings(output, config, **changes):
    loss = "silog" if config.is_metric else "depth_anything"
    base = TrainSettings(
        output=str(output), steps=4, loss=loss, save_every=2, validate_every=2, ema_decay=0.5, data=DATA,
        model=ModelSettings(config=config.to_dict()), optimizer=OptimizerSettings(learning_rate=1e-3),
    )  # fmt: skip
    return replace(base, **changes)


@pytest.fixture(scope="module", params=["relative", pytest.param("metric", marks=pytest.mark.slow)])
def finished(request, tmp_path_factory):
    config = {"relative": single_config, "metric": single_metric_config}[request.param]()
    output = tmp_path_factory.mktemp(request.param)
    assert train(settings(output, config), progress=False) == output / "model"
    return output, config


def test_logs_and_images(finished):
    output, _ = finished
    rows = list(read_log(output / "log.csv"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    scores = list(read_log(output / "validation.csv"))
    assert [row["step"] for row in scores] == [2, 4]
    assert all(row["abs_rel"] > 0 and 0 <= row["delta1"] <= 1 and 0 <= row["ordinal"] <= 1 for row in scores)
    for step in (2, 4):
        with Image.open(output / "images" / f"{step:08}.png") as image:
            assert image.size == (3 * 42, 3 * 42)


def test_the_model_opens(finished):
    output, config = finished
    model, params = dajax.load(output / "model")
    assert model.config == config
    before = flatten_dict(starting_point(ModelSettings(config=config.to_dict()), 0)[1], sep="/")
    moved = {path for path, leaf in flatten_dict(params, sep="/").items() if np.any(np.asarray(leaf) != before[path])}
    assert "head/conv1/kernel" in moved
    assert any(path.startswith("backbone/") for path in moved)
    estimator = dajax.DepthEstimator(output / "model")
    assert estimator(np.zeros((42, 42, 3), np.uint8)).shape == (42, 42)
    assert estimator.processor.size == {"height": 42, "width": 42}


def test_stopped_and_started_again(finished, tmp_path, monkeypatch):
    output, config = finished
    rendered = SceneBatches.__call__

    def stopping(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return rendered(self, number)

    monkeypatch.setattr(SceneBatches, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path, config), progress=False)
    monkeypatch.undo()
    train(settings(tmp_path, config), progress=False)
    for name in ("log.csv", "validation.csv", "model/model.safetensors", "images/00000004.png"):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes(), name


@pytest.mark.parametrize(("config", "low", "high"), [(single_config(), 0.5, 1.5), (single_metric_config(), 1, 4)])
def test_fresh_models_begin_where_they_can_learn(config, low, high):
    """A relative one above zero, where its ReLU has a gradient; one for up to 20 m at a few metres, not at ten."""
    pixels = np.random.default_rng(0).normal(size=(1, 28, 42, 3)).astype(np.float32)
    params = fresh_params(config)
    depth = jax.jit(dajax.DepthAnything(config).apply)({"params": params}, pixels).predicted_depth
    assert low < depth.min() < depth.max() < high


@pytest.mark.parametrize(
    ("encoder", "seeds"),
    [
        ("fresh", 200),
        pytest.param("fresh", 1000, marks=pytest.mark.slow),
        pytest.param("tiny", 1000, marks=pytest.mark.very_slow),
    ],
)
def test_a_fresh_head_is_alive_whatever_the_seed(encoder, seeds):
    """Many seeds on three images: the depth is above zero, and every image gives the last layers a gradient."""
    if encoder == "tiny":
        model, trained = dajax.load("tiny", dtype="float32")
    else:
        model, trained = dajax.DepthAnything(single_config()), None
    rng = np.random.default_rng(0)
    images = np.stack([rng.normal(size=(28, 28, 3)), np.zeros((28, 28, 3)), np.full((28, 28, 3), 2.5)])

    @jax.jit
    def depth_and_slopes(params):
        def depth(head):
            return model.apply({"params": params | {"head": head}}, images.astype(np.float32)).predicted_depth

        found, back = jax.vjp(depth, params["head"])
        return found.min(), [jnp.abs(leaf).max() for leaf in jax.tree.leaves(back(jnp.ones_like(found)))]

    for seed in range(seeds):
        fresh = fresh_params(model.config, seed)
        lowest, slopes = depth_and_slopes(fresh if trained is None else encoder_only(trained, fresh))
        assert lowest > 0
        assert all(slope > 0 for slope in slopes)


def test_fine_tuning_starts_from_the_encoder(tmp_path):
    relative, metric = single_config(), single_metric_config()
    dajax.save(tmp_path, dajax.DepthAnything(relative), random_params(relative))
    to_metric = {"depth_estimation_type": "metric", "max_depth": 20}
    config, params = starting_point(ModelSettings(start=str(tmp_path), config=to_metric, encoder_only=True), 0)
    assert config == metric
    encoder, fresh = flatten_dict(random_params(relative), sep="/"), flatten_dict(fresh_params(metric), sep="/")
    for path, leaf in flatten_dict(params, sep="/").items():
        np.testing.assert_array_equal(leaf, encoder[path] if path.startswith("backbone/") else fresh[path])
    for changes, expected in (({}, relative), (to_metric, metric)):
        config, params = starting_point(ModelSettings(start=str(tmp_path), config=changes), 0)
        assert config == expected
        assert all(np.array_equal(leaf, encoder[path]) for path, leaf in flatten_dict(params, sep="/").items())


@pytest.mark.parametrize(
    ("changes", "encoder_only", "message"),
    [
        ({"fusion_hidden_size": 8}, False, "do not fit model.config; with encoder_only"),
        ({"backbone_config": {"layer_norm_eps": 1e-5}}, True, "leave backbone_config out"),
    ],
)
def test_configs_that_do_not_fit_the_checkpoint(tmp_path, changes, encoder_only, message):
    config = single_config()
    dajax.save(tmp_path, dajax.DepthAnything(config), random_params(config))
    with pytest.raises(ConfigError, match=message):
        starting_point(ModelSettings(start=str(tmp_path), config=changes, encoder_only=encoder_only), 0)


def test_a_frozen_encoder_stays_and_half_precision_is_only_what_is_saved(tmp_path):
    config = single_config()
    frozen = OptimizerSettings(learning_rate=1e-3, encoder_learning_rate=0.0)
    output = train(settings(tmp_path, config, optimizer=frozen, ema_decay=0.0, save_dtype="float16"), progress=False)
    before = flatten_dict(starting_point(ModelSettings(config=config.to_dict()), 0)[1], sep="/")
    before = {path: leaf.astype(np.float16) for path, leaf in before.items()}
    after = flatten_dict(dajax.load(output)[1], sep="/")
    assert {leaf.dtype for leaf in after.values()} == {np.dtype("float16")}
    for path in before:
        same = np.array_equal(after[path], before[path])
        assert same or not path.startswith("backbone/"), path
    assert not np.array_equal(after["head/conv1/kernel"], before["head/conv1/kernel"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": "silog"},
            "'silog' is not for a relative model: use affine_invariant or aligned_l1 or aligned_log or depth_anything",
        ),
        ({"data": replace(DATA, batch_size=3)}, "batch_size must be a multiple of the 2 devices, got 3"),
    ],
)
def test_what_does_not_fit(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(settings(tmp_path, single_config(), **changes), progress=False)
    assert not list(Path(tmp_path).iterdir())


def test_epochs_show_all_scenes_once():
    batch_of = SceneBatches(replace(DATA, flip=False, degrade=False), is_metric=True)
    epochs = [[batch_of(3 * epoch + i)["labels"] for i in range(3)] for epoch in (0, 1)]
    first, second = (sorted(float(depth.sum()) for batch in epoch for depth in batch) for epoch in epochs)
    assert first == second
    assert len(set(first)) == 6
    assert not np.array_equal(epochs[0][0], epochs[1][0])


def test_batches_are_functions_of_their_number():
    for data in (DATA, replace(DATA, count=0)):
        forwards, backwards = SceneBatches(data, is_metric=False), SceneBatches(data, is_metric=False)
        for number, again in zip([0, 1, 2], [backwards(i) for i in (2, 1, 0)][::-1], strict=True):
            jax.tree.map(np.testing.assert_array_equal, forwards(number), again)


def test_mirrored_images_have_mirrored_labels():
    plain = SceneBatches(replace(DATA, flip=False, degrade=False), is_metric=False)
    mirrored = SceneBatches(replace(DATA, degrade=False), is_metric=False)
    seen = set()
    for number in range(6):
        one, other = plain(number), mirrored(number)
        for i in range(2):
            flips = not np.array_equal(one["pixel_values"][i], other["pixel_values"][i])
            step = -1 if flips else 1
            for name in one:
                np.testing.assert_array_equal(one[name][i][:, ::step], other[name][i])
            seen.add(flips)
    assert seen == {True, False}


def test_images_are_degraded_differently_each_time():
    """The two scenes of three epochs: six different images, near the plain ones, of the same depth."""
    data = replace(DATA, count=2, flip=False)
    plain, degraded = SceneBatches(replace(data, degrade=False), is_metric=True), SceneBatches(data, is_metric=True)
    seen = set()
    for number in range(3):
        one, other = plain(number), degraded(number)
        np.testing.assert_array_equal(one["labels"], other["labels"])
        assert 0.01 < np.abs(one["pixel_values"] - other["pixel_values"]).mean() < 0.7
        seen |= {image.tobytes() for image in np.asarray(other["pixel_values"])}
    assert len(seen) == 6


def test_labels_by_hand():
    depth = np.array([[[0.0, 2.0], [4.0, 0.0]]], np.float32)
    metric = labels(depth, is_metric=True)
    np.testing.assert_array_equal(metric["labels"], depth)
    np.testing.assert_array_equal(metric["mask"], depth > 0)
    relative = labels(depth, is_metric=False)
    np.testing.assert_array_equal(relative["labels"], [[[0, 0.5], [0.25, 0]]])
    assert relative["mask"].all()


def test_held_out_scenes_are_no_others():
    trained_on = SceneBatches(replace(DATA, flip=False, degrade=False), is_metric=True)
    seen = {float(depth.sum()) for number in range(3) for depth in trained_on(number)["labels"]}
    assert not seen & {float(depth.sum()) for depth in held_out_scenes(DATA).depth}
