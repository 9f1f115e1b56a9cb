"""One to eight devices: the same maps, params in their places, and clear words about meshes that cannot be used."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from seeded import make_image, pixels, write_checkpoint
from tiny import tiny_config

import dajax
from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError
from dajax.inference import estimator as estimator_module
from dajax.inference.estimator import _adapt
from dajax.inference.parallel import (
    batch_axes,
    data_parallel_size,
    distribute,
    param_shardings,
    place_params,
    resolve_mesh,
)
from dajax.kernels import current_target
from dajax.weights.random import random_params
from dajax.weights.shapes import parameter_shapes

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SHAPES = json.loads((TESTS / "references" / "data" / "shapes.json").read_text())["tiny"]
# Of the deviation, where devices get batches of another size. Tiny models: up to 7e-6 was measured.
ROUNDING = 1e-5
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
BOTH = pytest.mark.parametrize("parallel", ["jit", "pmap"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config().to_dict(), SHAPES)
    fields = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(fields | {"size": {"height": 70, "width": 70}}))
    return folder


@pytest.fixture(scope="module")
def pair():
    """A model and numpy params."""
    return dajax.DepthAnything(tiny_config()), random_params(tiny_config())


class Quick(dajax.DepthEstimator):
    """An estimator whose network takes no time to compile: each pixel's sum, times a param."""

    def _depth(self, params, pixels):
        return jax.lax.erf(pixels).sum(-1) * params["head"]["conv3"]["bias"][0].astype(pixels.dtype)


@pytest.fixture(scope="module", params=["jit", "pmap"])
def quick(pair, request):
    return Quick(pair, input_size=70, mesh="local", parallel=request.param)


@pytest.fixture(scope="module")
def single(pair):
    return Quick(pair, input_size=70)


def mesh_of(*devices, names=("data",), shape=(-1,)):
    return Mesh(np.array(devices or jax.devices(), dtype=object).reshape(shape), names)


def leaves(params):
    return jax.tree.leaves(params)


# --- one, four and eight devices -----------------------------------------------------------------------------------


# They take a dozen compilations.
eight_devices = pytest.mark.slow


@pytest.fixture(scope="module")
def on_eight():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}
    script = Path(__file__).with_name("eight_devices.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@eight_devices
def test_one_four_and_eight_devices_agree(on_eight):
    assert on_eight["deviation"] > 0.1
    assert len(on_eight["maps"]) == 9
    for what, (same_bits, difference) in on_eight["maps"].items():
        print(f"{what}: {'bit-equal' if same_bits else f'{difference:.1e} of the deviation'}")
        assert same_bits or "one image on each" not in what, what
        assert difference <= ROUNDING, what


@eight_devices
def test_padding_and_nan_images_change_no_other(on_eight):
    assert on_eight["alone"] == {"jit": [True, True], "pmap": [True, True]}


@eight_devices
def test_sharded_params_leave_the_batch_sharded(on_eight):
    assert on_eight["sharded"] == {"fsdp": ["data"], "tensor": ["data"]}


# --- two devices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_pixels_of_any_number(single, quick, count):
    x = pixels(28, 14, batch=5)[:count]
    for given in (x, jnp.asarray(x)):
        depth = quick.predict(given)
        assert isinstance(depth, jax.Array)
        assert (depth.shape, depth.dtype) == ((count, 28, 14), np.float32)
        np.testing.assert_allclose(depth, single.predict(x), **CLOSE)
    if count == 2:
        assert {shard.device for shard in depth.addressable_shards} == set(jax.devices())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_images_of_any_number_keep_their_order(single, quick, count):
    images = [make_image(*size) for size in ((60, 80), (80, 60), (61, 80), (62, 80), (81, 60))[:count]]
    for batch_size in (None, 1, 3):
        for depth, image in zip(quick(images, batch_size=batch_size), images, strict=True):
            np.testing.assert_allclose(depth, single(image), **CLOSE)


def test_within_jit(pair, single):
    x = pixels(14, 14, batch=3)
    np.testing.assert_allclose(jax.jit(Quick(pair, mesh="local").predict)(x), single.predict(x), **CLOSE)


def test_gradients(single, quick):
    x = jnp.asarray(pixels(14, 14, batch=3))
    slopes = [jax.grad(lambda x, e=estimator: e.predict(x).sum())(x) for estimator in (single, quick)]
    np.testing.assert_allclose(*slopes, **CLOSE)


@pytest.mark.parametrize(
    ("batch_size", "counts", "rows"),
    [
        (1, (1, 3), [2, 2, 2, 2]),
        (2, (1, 2, 3), [2, 2, 2, 2]),
        (3, (3, 4), [4, 4, 2]),
        (6, (6, 1, 3, 5), [6, 2, 4, 6]),
        (8, (8, 2, 3, 5), [8, 2, 4, 8]),
    ],
)
def test_batch_size_counts_the_images_on_all_devices(quick, monkeypatch, batch_size, counts, rows):
    """Each device gets a power of two, and at most its share of the batch size."""
    seen = []
    monkeypatch.setattr(
        quick, "predict", lambda pixels: seen.append(len(pixels)) or np.asarray(pixels).sum(-1, dtype=np.float32)
    )
    for count in counts:
        assert len(quick([make_image(60, 80)] * count, batch_size=batch_size)) == count
    assert seen == rows


def test_one_image_for_each_device_unless_it_is_said(pair):
    assert dajax.DepthEstimator(pair).batch_size == 1
    assert dajax.DepthEstimator(pair, mesh="local").batch_size == 2
    assert dajax.DepthEstimator(pair, mesh="local", batch_size=1).batch_size == 1
    model_only = mesh_of(names=("data", "model"), shape=(1, 2))
    assert dajax.DepthEstimator(pair, mesh=model_only).batch_size == 1


@BOTH
def test_batches_overlap(parallel):
    """While a batch is on the devices the host goes on: a result that is not there yet is given all the same."""
    may_finish, finished = threading.Event(), []

    def wait(x):
        finished.append(may_finish.wait(timeout=20))
        return np.asarray(x)

    def slow(params, x):
        x = x.sum(-1) * params["scale"]
        return jax.pure_callback(wait, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    mesh = mesh_of()
    params = place_params({"scale": np.float32(2)}, mesh, parallel)
    depth = distribute(slow, mesh, parallel, params)(params, np.ones((4, 14, 14, 3), np.float32))
    may_finish.set()
    np.testing.assert_array_equal(depth, np.full((4, 14, 14), 6, np.float32))
    assert finished == [True, True]


def test_devices_with_whole_params_send_each_other_nothing():
    """XLA's own partitioning would gather what a loop over images, such as attention's on CPUs, goes over."""

    def forward(params, x):
        return jax.lax.map(lambda one: one.sum(-1) * params["scale"], x)

    params = place_params({"scale": np.float32(2)}, mesh_of(), "jit")
    run = distribute(forward, mesh_of(), "jit", params)
    x = jax.device_put(np.ones((4, 14, 14, 3), np.float32), NamedSharding(mesh_of(), PartitionSpec("data")))
    program = jax.jit(run.run).lower(params, x).compile().as_text()
    assert "num_partitions=2" in program
    assert not re.findall(r"all-gather|all-reduce|all-to-all|collective-permute", program)


@pytest.mark.parametrize("how", ["jit", "pmap", "sharded"])
def test_whole_batches_change_no_bit(pair, how):
    """At any place in a batch, on any of the devices, beside any other images, and alone at the end."""
    model, params = pair
    if how == "sharded":
        params = jax.tree.map(jax.device_put, params, param_shardings(model.config, mesh_of()))
    parallel = "pmap" if how == "pmap" else "jit"
    estimator = dajax.DepthEstimator((model, params), input_size=70, mesh=mesh_of(), parallel=parallel)
    images = [make_image(60 + i, 80) for i in range(7)]
    options = {"batch_size": 4, "whole_batches": True, "source_size": False}
    expected = list(estimator.stream(images, **options))
    for order in ([6, 5, 4, 3, 2, 1, 0], [3], [1, 6], [2, 0, 5, 4, 1]):
        for place, depth in zip(order, estimator.stream([images[i] for i in order], **options), strict=True):
            np.testing.assert_array_equal(depth, expected[place])


# --- which devices -------------------------------------------------------------------------------------------------


def test_meshes_that_are_meant():
    first, second = jax.devices()
    assert resolve_mesh(None, "jit") is None
    assert list(resolve_mesh("local", "jit").devices.flat) == jax.local_devices()
    assert list(resolve_mesh(mesh_of(second), "pmap").devices.flat) == [second]
    assert list(resolve_mesh(mesh_of(second, first), "jit").devices.flat) == [second, first]
    with jax.default_device(second):
        assert list(resolve_mesh(None, "pmap").devices.flat) == [second]


@pytest.mark.parametrize(
    ("names", "batch", "parts"),
    [
        (("data",), ("data",), 2),
        (("x",), ("x",), 2),
        (("data", "model"), ("data",), 2),
        (("model", "data"), ("data",), 1),
        (("batch", "model"), ("batch",), 2),
        (("x", "y"), ("x", "y"), 2),
        (("data", "x", "batch"), ("data", "batch"), 2),
    ],
)
def test_the_axes_that_a_batch_is_cut_over(names, batch, parts):
    mesh = mesh_of(names=names, shape=(2, 1, 1)[: len(names)])
    assert batch_axes(mesh) == batch
    assert data_parallel_size(mesh) == parts
    assert data_parallel_size(None) == 1


def test_device_says_how_many(pair):
    kind = jax.devices()[0].device_kind
    assert dajax.DepthEstimator(pair).device == kind
    assert dajax.DepthEstimator(pair, mesh=mesh_of(jax.devices()[1])).device == kind
    assert dajax.DepthEstimator(pair, mesh="local").device == f"2 x {kind}"


@BOTH
def test_order_of_the_devices_does_not_matter(pair, single, parallel):
    first, second = jax.devices()
    x = pixels(14, 14, batch=4)
    reverse = Quick(pair, mesh=mesh_of(second, first, names=("z",)), parallel=parallel)
    np.testing.assert_allclose(reverse.predict(x), single.predict(x), **CLOSE)


@BOTH
def test_the_callers_mesh_does_not_disturb(pair, single, parallel):
    mesh = jax.make_mesh((2,), ("data",))
    x = pixels(14, 14, batch=3)
    expected = single.predict(x)
    with jax.set_mesh(mesh):
        for given in (mesh, "local", mesh_of(jax.devices()[1])):
            np.testing.assert_allclose(Quick(pair, mesh=given, parallel=parallel).predict(x), expected, **CLOSE)
        # What has no mesh stays on one device.
        assert Quick(pair, parallel=parallel).predict(x).devices() == {jax.devices()[0]}


class FakeDevice:
    def __init__(self, process_index=0, platform="cpu"):
        self.process_index, self.platform, self.device_kind, self.id = process_index, platform, platform, 99


BAD_MESHES = {
    "string": ("all", "got 'all'"),
    "empty string": ("", "got ''"),
    "number": (8, "got int"),
    "list": ([0, 1], "Mesh\\(.*makes one.*got list"),
    "abstract": (mesh_of(names=("x",)).abstract_mesh, "got AbstractMesh"),
    "empty": (Mesh(np.array([]), ("data",)), "no devices"),
    "no axes": (Mesh(np.array(jax.devices()[0]), ()), "no devices"),
    "twice": (mesh_of(jax.devices()[0], jax.devices()[0]), "twice"),
    "other process": (mesh_of(jax.devices()[0], FakeDevice(3)), 'mesh="local".*process_index'),
    "two platforms": (mesh_of(jax.devices()[0], FakeDevice(platform="gpu")), "cpu and gpu"),
}


@BOTH
@pytest.mark.parametrize("bad", BAD_MESHES)
def test_bad_meshes(tmp_path, bad, parallel):
    mesh, message = BAD_MESHES[bad]
    # The tests' checks of annotations (TypeError) come first where the type is wrong.
    kind = ConfigError if isinstance(mesh, str | Mesh) else (ConfigError, TypeError)
    with pytest.raises(kind, match=message if kind is ConfigError else "mesh"):
        dajax.DepthEstimator(tmp_path / "none", mesh=mesh, parallel=parallel)  # before anything is loaded
    with pytest.raises(kind, match=message if kind is ConfigError else "mesh"):
        param_shardings(tiny_config(), mesh) if not isinstance(mesh, str) else resolve_mesh(mesh, parallel)


@pytest.mark.parametrize("parallel", ["vmap", "", "JIT", "pjit"])
def test_bad_parallel(tmp_path, parallel):
    with pytest.raises(ConfigError, match=f'"jit" or "pmap", got {parallel!r}'):
        dajax.DepthEstimator(tmp_path / "none", parallel=parallel)


def test_pmap_takes_flat_meshes():
    with pytest.raises(ConfigError, match=r"'data': 1, 'model': 2.*ravel.*parallel='jit'"):
        resolve_mesh(mesh_of(names=("data", "model"), shape=(1, 2)), "pmap")


@BOTH
def test_the_network_is_traced_for_the_meshs_platform(pair, monkeypatch, parallel):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    asked = []
    monkeypatch.setattr(Quick, "_depth", lambda self, params, x: asked.append(current_target().platform) or x.sum(-1))
    for mesh in ("local", mesh_of(jax.devices()[1]), None):
        Quick(pair, mesh=mesh, parallel=parallel).predict(pixels(14, 14, batch=2))
    assert set(asked) == {"cpu"}


# --- where params go -----------------------------------------------------------------------------------------------


@BOTH
def test_named_weights_go_straight_to_their_place(checkpoint, monkeypatch, parallel):
    options = []
    load = estimator_module.load
    monkeypatch.setattr(estimator_module, "load", lambda *args, **given: options.append(given) or load(*args, **given))
    estimator = dajax.DepthEstimator(checkpoint, mesh="local", parallel=parallel)
    whole = NamedSharding(estimator.mesh, PartitionSpec())
    assert options[0]["sharding"] == whole
    assert all(leaf.sharding == whole for leaf in leaves(estimator.params))


def pointers(params):
    return [shard.data.unsafe_buffer_pointer() for leaf in leaves(params) for shard in leaf.addressable_shards]


def test_params_are_placed_once(pair, quick):
    assert all(leaf.is_fully_replicated and leaf.devices() == set(jax.devices()) for leaf in leaves(quick.params))
    # Already there: kept as they are.
    again = Quick((pair[0], quick.params), mesh=mesh_of())
    assert pointers(again.params) == pointers(quick.params)
    x = jnp.asarray(pixels(56, 70, batch=2))
    quick.predict(x)
    with jax.transfer_guard_host_to_device("disallow_explicit"):
        quick.predict(x)


def test_half_precision_params(pair, checkpoint):
    for model in (pair, checkpoint):
        estimator = dajax.DepthEstimator(model, dtype="bfloat16", mesh="local")
        assert estimator.params["backbone"]["layer_0"]["mlp"]["fc1"]["kernel"].dtype == jnp.bfloat16
        assert all(leaf.is_fully_replicated for leaf in leaves(estimator.params))
        assert len(leaves(estimator.params)[0].devices()) == 2


def test_params_of_a_pair_go_onto_the_mesh():
    first, second = jax.devices()
    both = mesh_of(first, second)
    for given in (np.ones((4, 2), np.float32), jnp.ones((4, 2)), jax.device_put(np.ones((4, 2)), second)):
        placed = place_params({"a": given}, both, "jit")["a"]
        assert placed.sharding == NamedSharding(both, PartitionSpec())
    alone = place_params({"a": jnp.ones(3)}, mesh_of(second), "pmap")["a"]
    assert alone.devices() == {second}
    assert place_params({"a": np.ones(3, np.float32)}, None, "jit")["a"].devices() == {first}
    assert place_params({"a": jax.device_put(np.ones(3), second)}, None, "jit")["a"].devices() == {second}


def test_params_elsewhere(pair):
    first, second = jax.devices()
    on_second = jax.device_put(pair[1], second)
    for parallel in ("jit", "pmap"):
        with pytest.raises(ConfigError, match=r"backbone/embeddings/cls_token.*device_get"):
            dajax.DepthEstimator((pair[0], on_second), mesh=mesh_of(first), parallel=parallel)
    # In another order a shard would be on another device than the mesh says.
    turned = NamedSharding(mesh_of(second, first), PartitionSpec("data"))
    with pytest.raises(ConfigError, match=r"a/b.*NamedShardings on this mesh"):
        place_params({"a": {"b": jax.device_put(np.ones(4), turned)}}, mesh_of(first, second), "jit")
    on_both = jax.device_put(pair[1], NamedSharding(mesh_of(), PartitionSpec()))
    with pytest.raises(ConfigError, match=r"on 2 devices .*mesh=…"):
        dajax.DepthEstimator((pair[0], on_both))


def test_no_params(pair):
    for mesh in (None, "local"):
        with pytest.raises(ConfigError, match="no arrays"):
            dajax.DepthEstimator((pair[0], {}), mesh=mesh)


# --- sharded params ------------------------------------------------------------------------------------------------


def test_sharded_params_stay_as_they_are(pair):
    model, params = pair
    mesh = jax.make_mesh((2,), ("data",))
    sharding = param_shardings(model.config, mesh)
    placed = jax.tree.map(jax.device_put, params, sharding)
    estimator = dajax.DepthEstimator((model, placed), mesh=mesh)
    assert pointers(estimator.params) == pointers(placed)
    assert [leaf.sharding for leaf in leaves(estimator.params)] == leaves(sharding)
    with pytest.raises(ConfigError, match=r"cls_token is sharded: use parallel='jit'"):
        dajax.DepthEstimator((model, placed), mesh=mesh, parallel="pmap")
    dense = {"kernel": placed["backbone"]["layer_0"]["mlp"]["fc1"]["kernel"]}
    kernel = {"backbone": {"layer_0": dense}}
    half = place_params(_adapt(model, kernel, dtype="bfloat16", style=None)[1], resolve_mesh(mesh, "jit"), "jit")
    assert half["backbone"]["layer_0"]["kernel"].dtype == jnp.bfloat16
    assert half["backbone"]["layer_0"]["kernel"].sharding == sharding["backbone"]["layer_0"]["mlp"]["fc1"]["kernel"]


def test_explicit_axes_are_taken_as_automatic_ones():
    """Newer versions of `jax.make_mesh` make them, and then the network's reshapes would have to say how they shard."""
    mesh = jax.make_mesh((2,), ("data",))
    placed = jax.device_put(np.ones((4, 2), np.float32), NamedSharding(mesh, PartitionSpec("data")))
    found = place_params({"a": placed}, resolve_mesh(mesh, "jit"), "jit")["a"]
    assert found.sharding == NamedSharding(mesh_of(), PartitionSpec("data"))
    assert pointers(found) == pointers(placed)


def test_sharded_params_by_name(checkpoint):
    mesh = mesh_of(names=("data", "model"), shape=(1, 2))
    sharding = param_shardings(tiny_config(), mesh)
    estimator = dajax.DepthEstimator(checkpoint, mesh=mesh, sharding=sharding)
    assert [leaf.sharding for leaf in leaves(estimator.params)] == leaves(sharding)


def test_param_shardings_cut_inputs_or_outputs():
    config = tiny_config(neck_hidden_sizes=(7, 12, 16, 24))
    mesh = mesh_of(names=("data", "model"), shape=(1, 2))
    found = flatten_dict(param_shardings(config, mesh), sep="/")
    assert found.keys() == parameter_shapes(config).keys()
    expected = {
        "backbone/layer_0/mlp/fc1/kernel": (None, "model"),  # 32, 128
        "backbone/layer_0/mlp/fc2/kernel": ("model", None),  # 128, 32
        "backbone/layer_0/attention/query/kernel": (None, "model"),  # 32, 32
        "backbone/layer_0/attention/query/bias": (),
        "backbone/layer_0/norm1/scale": (),
        "backbone/embeddings/position_embeddings": (None, None, "model"),  # 1, 26, 32
        "neck/reassemble_0/projection/kernel": ("model", None),  # 32, 7
        "neck/conv_0/kernel": (None, None, None, "model"),  # 3, 3, 7, 16
        "neck/reassemble_0/upsample/kernel": (),  # 4, 4, 7, 7
    }
    for path, spec in expected.items():
        assert found[path] == NamedSharding(mesh, PartitionSpec(*spec)), path
    over_data = flatten_dict(param_shardings(config, mesh, axis="data"), sep="/")
    assert over_data["backbone/layer_0/mlp/fc1/kernel"].spec == PartitionSpec(None, "data")
    with pytest.raises(ConfigError, match="'data', 'model', got 'fsdp'"):
        param_shardings(config, mesh, axis="fsdp")


@pytest.mark.parametrize("size", ["small", "large"])
def test_param_shardings_halve_what_a_device_holds(size):
    config = getattr(DepthAnythingConfig, size)()
    shapes, shardings = parameter_shapes(config), flatten_dict(param_shardings(config, mesh_of()), sep="/")
    on_each = sum(int(np.prod(shardings[path].shard_shape(shape))) for path, shape in shapes.items())
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    print(f"{size}: {on_each / total:.2%} on each of two devices")
    assert on_each < 0.503 * total
