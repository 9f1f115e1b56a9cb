import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from checkpoint_files import assert_params
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import save_file
from tiny import tiny_config, tiny_metric_config, tiny_swiglu_config

import dajax
from dajax.checkpoints import alias_of_file
from dajax.config import DepthAnythingConfig
from dajax.errors import DajaxError, WeightsError
from dajax.preprocessing.processor import DepthImageProcessor
from dajax.weights.mapping import sources
from dajax.weights.random import random_params
from dajax.weights.safetensors_io import SafetensorsFile
from dajax.weights.saving import weights_name
from dajax.weights.torch_files.torch_file import TorchFile

CONFIGS = {"gelu": tiny_config(), "metric": tiny_metric_config(), "swiglu": tiny_swiglu_config()}
HF_FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}


def save_random(folder, config=None, seed=0, dtype="float32", format="hf"):
    config = config or tiny_config()
    params = jax.tree.map(lambda x: x.astype(dtype), random_params(config, seed))
    dajax.save(folder, dajax.DepthAnything(config), params, format=format)
    return params


def names(folder):
    return set(os.listdir(folder))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_hf_there_and_back(tmp_path, kind, dtype):
    """Load and save again: every file byte for byte."""
    config = CONFIGS[kind]
    params = save_random(tmp_path / "first", config, dtype=dtype)
    model, loaded = dajax.load(tmp_path / "first")
    assert model.config == config
    assert_params(loaded, params)
    dajax.save(tmp_path / "second", model, loaded)
    assert names(tmp_path / "first") == names(tmp_path / "second") == HF_FILES
    for name in HF_FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert json.loads((tmp_path / "first" / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_file_of_the_package_comes_back(tmp_path, kind, dtype):
    """What the safetensors package wrote, from arrays that dajax never saw, is what dajax writes."""
    config = CONFIGS[kind]
    flat = flatten_dict(random_params(config), sep="/")
    tensors = {
        source.names[0]: np.ascontiguousarray(source.transform.to_torch(flat[path])).astype(dtype)
        for path, source in sources("huggingface", flat).items()
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    dajax.save(tmp_path / "again", *dajax.load(tmp_path))
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_flax_there_and_back(tmp_path, kind, dtype):
    config = CONFIGS[kind]
    params = save_random(tmp_path / "first", config, dtype=dtype, format="flax")
    assert names(tmp_path / "first") == {"config.json", "params.safetensors", "preprocessor_config.json"}
    model, loaded = dajax.load(tmp_path / "first")
    assert model.config == config
    assert_params(loaded, params)
    dajax.save(tmp_path / "second", model, loaded, format="flax")
    dajax.save(tmp_path / "hf", model, loaded)
    assert_params(dajax.load(tmp_path / "hf")[1], params)
    for name in names(tmp_path / "first"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    with SafetensorsFile(tmp_path / "first" / "params.safetensors") as file:
        assert file.tensors.keys() == flatten_dict(params, sep="/").keys()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_official_there_and_back(tmp_path, kind, dtype):
    config = CONFIGS[kind]
    params = save_random(tmp_path / "first", config, dtype=dtype, format="official")
    assert names(tmp_path / "first") == {"config.json", "model.pth", "preprocessor_config.json"}
    model, loaded = dajax.load(tmp_path / "first")
    assert model.config == config
    assert_params(loaded, params)
    dajax.save(tmp_path / "second", model, loaded, format="official")
    for name in names(tmp_path / "first"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    with TorchFile(tmp_path / "first" / "model.pth") as file:
        assert (
            len(file.tensors) == len(flatten_dict(params, sep="/")) - 2 * 2 * 4
        )  # one qkv weight and bias for three, in 4 layers
        assert file.tensors["pretrained.blocks.0.attn.qkv.weight"].shape == (96, 32)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (DepthAnythingConfig.small(), "depth_anything_v2_vits.pth"),
        (DepthAnythingConfig.large().with_style("official"), "depth_anything_v2_vitl.pth"),
        (DepthAnythingConfig.metric_indoor("base"), "depth_anything_v2_metric_hypersim_vitb.pth"),
        (DepthAnythingConfig.metric_outdoor("small"), "depth_anything_v2_metric_vkitti_vits.pth"),
        (DepthAnythingConfig.v1("large"), "depth_anything_vitl14.pth"),
        (DepthAnythingConfig.giant(), "model.pth"),
        (replace(DepthAnythingConfig.metric_indoor("small"), max_depth=10), "model.pth"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_official_names_of_files(config, name):
    """A name that the authors use says what the file is; what they did not release gets none of theirs."""
    assert weights_name("official", config) == name
    assert (alias_of_file(name) is None) == (name == "model.pth")


def test_official_file_with_parts_of_several_types(tmp_path):
    params = random_params(tiny_config())
    params["backbone"]["layer_1"]["attention"]["key"]["bias"] = np.zeros(32, np.float16)
    message = assert_refused(tmp_path / "folder", "become one tensor must be of one type", params, format="official")
    assert "layer_1/attention/query/bias and backbone/layer_1/attention/key/bias" in message
    assert not (tmp_path / "folder").exists()
    dajax.save(
        tmp_path / "folder", dajax.DepthAnything(tiny_config()), params
    )  # in Transformers' layout they are three


def test_neck_that_the_authors_code_cannot_have(tmp_path):
    config = tiny_config(reassemble_factors=(2, 1, 1, 0.5))
    with pytest.raises(WeightsError, match="cannot be saved for the authors' code"):
        dajax.save(tmp_path / "folder", dajax.DepthAnything(config), random_params(config), format="official")
    assert not (tmp_path / "folder").exists()


def test_unnamed_file_without_its_config_does_not_load(tmp_path):
    """It could be anything: so a save that was cut short is not taken for a relative model."""
    save_random(tmp_path, tiny_metric_config(), format="official")
    (tmp_path / "config.json").unlink()
    assert load_or_none(tmp_path) is None


def test_processor_goes_along(tmp_path):
    processor = DepthImageProcessor(input_size=252)
    dajax.save(tmp_path, dajax.DepthAnything(tiny_config()), random_params(tiny_config()), processor=processor)
    assert DepthImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_mixed_types(tmp_path):
    config = tiny_config()
    flat = flatten_dict(random_params(config), sep="/")
    kinds = [np.float32, jnp.bfloat16, np.float16]
    params = unflatten_dict({path: leaf.astype(kinds[i % 3]) for i, (path, leaf) in enumerate(flat.items())}, sep="/")
    dajax.save(tmp_path, dajax.DepthAnything(config), params)
    assert_params(dajax.load(tmp_path)[1], params)
    assert "torch_dtype" not in json.loads((tmp_path / "config.json").read_text())


def test_special_values(tmp_path):
    """NaN payloads, infinities, signed zeros and denormal numbers keep their bits."""
    config = tiny_config()
    params = random_params(config)
    bits = np.random.default_rng(0).integers(0, 2**32, params["head"]["conv1"]["kernel"].shape, np.uint32)
    bits.flat[:6] = 0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001
    params["head"]["conv1"]["kernel"] = bits.view(np.float32)
    dajax.save(tmp_path, dajax.DepthAnything(config), params)
    loaded = dajax.load(tmp_path, check_finite=False)[1]["head"]["conv1"]["kernel"]
    np.testing.assert_array_equal(np.asarray(loaded).view(np.uint32), bits)


def test_unused_tensors_are_kept(tmp_path):
    save_random(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        kept = set(file.keys())
    assert "backbone.embeddings.mask_token" in kept
    assert "neck.fusion_stage.layers.0.residual_layer1.convolution1.weight" in kept


@pytest.mark.parametrize("kind", ["jax", "sharded", "frozen", "read-only", "strided"])
def test_any_params(tmp_path, kind):
    config = tiny_config()
    model, params = dajax.DepthAnything(config), random_params(config)
    match kind:
        case "jax":
            params = jax.tree.map(jnp.asarray, params)
        case "sharded":
            sharding = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
            params = jax.tree.map(lambda x: jax.device_put(x, sharding) if x.shape[0] % 2 == 0 else x, params)
        case "frozen":
            params = flax.core.freeze(params)
        case "read-only":
            for leaf in jax.tree.leaves(params):
                leaf.flags.writeable = False
        case "strided":
            params = jax.tree.map(lambda x: np.repeat(x, 2, axis=-1)[..., ::2], params)
    before = jax.tree.map(np.array, params)
    dajax.save(tmp_path, model, params)
    assert_params(params, before)
    assert_params(dajax.load(tmp_path)[1], params)


def test_config_and_processor_files(tmp_path):
    config = tiny_metric_config().with_style("official")
    save_random(tmp_path, config)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["model_type"], written["max_depth"]) == ("depth_anything", 20)
    assert dajax.DepthAnythingConfig.from_pretrained(tmp_path) == config
    assert DepthImageProcessor.from_pretrained(tmp_path).to_dict() == DepthImageProcessor("official").to_dict()
    assert dajax.load(tmp_path)[0].config == config
    assert dajax.load(tmp_path, style="huggingface")[0].config == tiny_metric_config()
    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / name).read_bytes().endswith(b"}\n")


# --- what is refused


def assert_refused(folder, match, params, **options):
    with pytest.raises(WeightsError, match=match) as caught:
        dajax.save(folder, dajax.DepthAnything(tiny_config()), params, **options)
    assert isinstance(caught.value, DajaxError)
    return str(caught.value)


def test_everything_that_is_wrong_is_in_one_error(tmp_path):
    params = random_params(tiny_config())
    del params["head"]["conv1"]["bias"], params["backbone"]["layer_3"]
    params["extra"] = {"kernel": np.zeros(3, np.float32)}
    params["head"]["conv2"]["kernel"] = np.zeros((1, 2), np.float32)
    params["head"]["conv3"]["bias"] = 3.0
    message = assert_refused(tmp_path / "folder", "params do not fit the model", params)
    for line in (
        "missing: head/conv1/bias [8]",
        "missing: backbone/layer_3/attention/query/kernel [32, 32]",
        "not in the model: extra/kernel",
        "wrong shape: head/conv2/kernel: the model has [3, 3, 8, 8], params [1, 2]",
        "not an array: head/conv3/bias is float",
    ):
        assert line in message
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("params", "match"),
    [(None, "nested dict, got NoneType"), ([1], "nested dict, got list"), ({}, "missing"), ({"params": {}}, "missing")],
)
def test_not_params(tmp_path, params, match):
    assert_refused(tmp_path / "folder", match, params)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", ">f4", "object", "float8_e4m3fn"])
def test_types_that_are_not_written(tmp_path, dtype):
    params = random_params(tiny_config())
    params["head"]["conv1"]["bias"] = np.zeros(8, jnp.dtype(dtype))
    assert_refused(tmp_path / "folder", "must be float16, bfloat16, float32 or float64", params)
    assert not (tmp_path / "folder").exists()


def test_unknown_format(tmp_path):
    assert_refused(tmp_path / "folder", "format must be one of", random_params(tiny_config()), format="msgpack")


@pytest.mark.parametrize(("first", "other"), [*itertools.permutations(["hf", "flax", "official"], 2)])
def test_other_format_in_the_folder(tmp_path, first, other):
    """Two files of weights in one folder would be two truths."""
    params = save_random(tmp_path, format=first)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert_refused(tmp_path, "already holds", random_params(tiny_config(), 1), format=other)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert_params(dajax.load(tmp_path)[1], params)


def test_sharded_checkpoint_in_the_folder(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert_refused(tmp_path, "already holds model.safetensors.index.json", random_params(tiny_config()))


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(tmp_path / "file", "file' is a file: name another folder", random_params(tiny_config()))
    assert_refused(
        tmp_path / "file" / "below", "file' is a file, so '.*below' cannot be a folder", random_params(tiny_config())
    )
    assert_refused("/proc/nothing/here", "cannot be written", random_params(tiny_config()))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_folders_in_the_way(tmp_path, name):
    """Before anything is replaced."""
    params = save_random(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert_refused(tmp_path, f"has folders where files are to be written: {name}", params)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_path_that_is_none():
    assert_refused("a\0b", "cannot be written", random_params(tiny_config()))


# --- interruptions


class Killed(BaseException):
    pass


class Disk:
    """Counts the calls that change a folder; from the `limit`th on the process is dead, or the disk full."""

    def __init__(self, monkeypatch, error, dead=True):
        self.calls, self.limit, self.error, self.dead = 0, 10**9, error, dead
        for name in ("replace", "unlink", "fsync"):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))
        opener = Path.open
        monkeypatch.setattr(Path, "open", self._wrap(opener))

    def _wrap(self, function):
        def wrapped(*args, **options):
            if function.__name__ == "open" and not {"w", "x"} & {*str(args[1:])}:
                return function(*args, **options)
            self.calls += 1
            if self.calls == self.limit or (self.dead and self.calls > self.limit):
                raise self.error
            return function(*args, **options)

        return wrapped


def load_or_none(folder):
    try:
        model, params = dajax.load(folder)
    except WeightsError:
        return None
    return model.config, params


STEPS = [(False, step) for step in range(1, 11)] + [(True, step) for step in range(1, 10)]


@pytest.mark.parametrize(("same_config", "step"), STEPS)
def test_killed_over_an_old_checkpoint(tmp_path, monkeypatch, same_config, step):
    """Wherever the process dies there is the old checkpoint, the new one or none, and with equal configs always one."""
    old = tiny_config()
    new = old if same_config else replace(old, depth_estimation_type="metric", max_depth=20)  # the same shapes
    old_params = save_random(tmp_path, old, seed=1)
    new_params = random_params(new, seed=2)
    disk = Disk(monkeypatch, Killed())
    disk.limit = step
    with pytest.raises(Killed):
        dajax.save(tmp_path, dajax.DepthAnything(new), new_params)
    disk.limit = 10**9

    found = load_or_none(tmp_path)
    replaced = (tmp_path / "model.safetensors").read_bytes() != written_weights(tmp_path, old, old_params)
    print(f"step {step}: weights {'new' if replaced else 'old'}, loads: {found is not None}")
    if found is None:
        assert not same_config
        assert not (tmp_path / "config.json").exists()
    else:
        assert found[0] == (new if replaced else old)
        assert_params(found[1], new_params if replaced else old_params)
    # The next save puts all right.
    dajax.save(tmp_path, dajax.DepthAnything(new), new_params)
    model, params = dajax.load(tmp_path)
    assert model.config == new
    assert_params(params, new_params)


def written_weights(tmp_path, config, params):
    folder = tmp_path.with_name(tmp_path.name + "-reference")
    dajax.save(folder, dajax.DepthAnything(config), params)
    return (folder / "model.safetensors").read_bytes()


def test_all_steps_are_covered(tmp_path, monkeypatch):
    """The tests above and below die at each of ten steps, or nine where the config stays: as many as a save has."""
    save_random(tmp_path, tiny_config())
    disk = Disk(monkeypatch, Killed())
    save_random(tmp_path, tiny_metric_config())
    assert disk.calls == 10
    disk.calls = 0
    save_random(tmp_path, tiny_metric_config(), seed=1)
    assert disk.calls == 9


@pytest.mark.parametrize("step", range(1, 10))
def test_killed_in_a_new_folder(tmp_path, monkeypatch, step):
    disk = Disk(monkeypatch, Killed())
    disk.limit = step + (step > 2)  # there is no old config to remove, but it is tried
    folder = tmp_path / "new"
    with pytest.raises(Killed):
        save_random(folder)
    disk.limit = 10**9
    assert load_or_none(folder) is None
    save_random(folder)
    assert_params(dajax.load(folder)[1], random_params(tiny_config()))


@pytest.mark.parametrize("step", range(1, 11))
def test_disk_full(tmp_path, monkeypatch, step):
    """An error that the process survives: no partial file stays, and the old weights too if they were not replaced."""
    old = save_random(tmp_path, tiny_config())
    disk = Disk(monkeypatch, OSError(28, "No space left on device"), dead=False)
    disk.limit = step
    with pytest.raises(WeightsError, match="cannot be written: No space left on device"):
        save_random(tmp_path, tiny_metric_config(), seed=1)
    disk.limit = 10**9
    assert names(tmp_path) <= HF_FILES
    if step <= 3:
        assert_params(dajax.load(tmp_path)[1], old)
    elif (found := load_or_none(tmp_path)) is not None:
        assert found[0] == tiny_metric_config()


def test_failing_while_tensors_are_fetched(tmp_path):
    """An array that cannot be had, half way: the old checkpoint is as it was, and nothing else."""

    class Gone:
        dtype, shape = np.dtype(np.float32), (8,)

        def __array__(self, *args, **options):
            raise RuntimeError("device lost")

    old = save_random(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    params = random_params(tiny_config(), 1)
    params["head"]["conv1"]["bias"] = Gone()
    with pytest.raises(RuntimeError, match="device lost"):
        dajax.save(tmp_path, dajax.DepthAnything(tiny_config()), params)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert_params(dajax.load(tmp_path)[1], old)


def test_really_killed(tmp_path):
    """A process that dies while it writes the tensors leaves the old checkpoint, and its rest harms nobody."""
    old = save_random(tmp_path)
    code = """if True:
        import os, sys
        sys.path.insert(0, "tests")
        import dajax
        from dajax.weights import saving as module
        from dajax.weights.random import random_params
        from tiny import tiny_config

        def fsync(file):
            os.kill(os.getpid(), 9)

        os.fsync = fsync
        dajax.save(sys.argv[1], dajax.DepthAnything(tiny_config()), random_params(tiny_config(), 1))
    """
    root = Path(dajax.__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert run.returncode == -9, run.stderr
    assert len(names(tmp_path) - HF_FILES) == 1
    assert_params(dajax.load(tmp_path)[1], old)
    new = save_random(tmp_path, seed=2)
    assert_params(dajax.load(tmp_path)[1], new)
