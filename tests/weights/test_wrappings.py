"""Checkpoints whose names went through training scripts: the very model that is meant, or a short refusal."""

import datetime
import pathlib
import re
import warnings

import numpy as np
import pytest
from checkpoint_files import assert_params, tensors_of, write_file
from tiny import tiny_config, tiny_swiglu_config
from torch_parts import ORDERED_DICT, mapping, storage, tensor, torch_file, unmemoised

import dajax
from dajax.errors import WeightsError
from dajax.weights.random import random_params

TABLES = ("huggingface", "huggingface-5", "official", "flax")
PREFIXES = (
    "module.",
    "model.",
    "net.",
    "backbone.",
    "student.",
    "_orig_mod.",
    "module._orig_mod.",
    "a.b.",
    "ema_model.",
)
INFIXES = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module", "module")
OUTSIDE = ("loss.weight", "metric.count", "optimizer_step", "criterion.ssim.window", "num_batches")


def infixed(name, wrapper):
    """Put a wrapper behind an attribute of the model, as a wrapped module has it."""
    attribute, _, rest = name.partition(".")
    return f"{attribute}.{wrapper}.{rest}"


def load(path, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        params = dajax.load(path, **options)[1]
    return params, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_wrappings(tmp_path, count):
    """Prefixes, infixes, things beside the model, running means, several models, adapters."""
    rng = np.random.default_rng(0)
    config, other = tiny_config(), tiny_swiglu_config()
    states = {table: tensors_of(config, table) for table in TABLES}
    second = {table: tensors_of(other, table) for table in TABLES}
    mean = tensors_of(config, "official", seed=1)
    expected, expected_mean = random_params(config), random_params(config, 1)
    path = tmp_path / "model.safetensors"
    for number in range(count):
        table = str(rng.choice(TABLES))
        prefix = "" if table == "flax" or rng.random() < 0.3 else str(rng.choice(PREFIXES))
        infix = str(rng.choice(INFIXES)) if table != "flax" and rng.random() < 0.4 else ""
        tensors = {prefix + (infixed(name, infix) if infix else name): t for name, t in states[table].items()}
        outside = [str(name) for name in rng.choice(OUTSIDE, rng.integers(0, 4), replace=False)]
        tensors |= {name: np.ones(int(rng.integers(0, 3)), np.float32) for name in outside}
        extra = str(rng.choice(["none", "none", "none", "mean", "second", "adapter", "inside", "half"]))
        prefixes = {"mean": "ema.", "second": "teacher."}
        if extra == "mean":
            tensors |= {f"ema.{name}": t for name, t in mean.items()}
        elif extra == "second":
            tensors |= {f"teacher.{name}": t for name, t in second[table].items()}
        elif extra == "adapter":
            tensors[prefix + "pretrained.blocks.0.attn.qkv.lora_A.weight"] = np.ones((4, 32), np.float32)
        elif extra == "inside":
            root = {"official": "depth_head.", "flax": "head/"}.get(table, "head.")
            tensors[f"{prefix}{root}unknown"] = np.ones(3, np.float32)
        elif extra == "half":
            tensors |= {f"exp_avg.{name}": t for i, (name, t) in enumerate(mean.items()) if i % 7}
        names = list(tensors)
        rng.shuffle(names)
        write_file(path, {name: tensors[name] for name in names})
        print(number, table, repr(prefix), infix, extra, outside)
        if extra in ("none", "half"):
            params, said = load(path, config=config)
            assert_params(params, expected)
            assert len(said) == (extra == "half" or bool(outside))
            assert not outside or extra == "half" or all(name in said[0] for name in outside)
            continue
        with pytest.raises(WeightsError) as refusal:
            load(path, config=config)
        message = str(refusal.value)
        assert len(message.encode()) < 2000
        if extra in prefixes:
            assert f"{prefix!r}, {prefixes[extra]!r}" in message or f"{prefixes[extra]!r}, {prefix!r}" in message
            assert_params(load(path, config=config, prefix=prefix)[0], expected)
        if extra == "mean":
            assert_params(load(path, config=config, prefix="ema")[0], expected_mean)


@pytest.mark.parametrize("table", TABLES)
def test_extra_tensors_of_other_types_do_not_matter(tmp_path, table):
    """Counters and masks beside the model, in a file made by the safetensors package."""
    from safetensors.numpy import save_file

    config = tiny_config()
    others = {"metric.count": np.arange(3), "mask": np.ones((2, 2), bool), "step": np.full((), 7)}
    # The package writes the memory of an array, whatever the order of its axes.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors_of(config, table).items()}
    save_file(tensors | others, tmp_path / "a.safetensors")
    params, said = load(tmp_path / "a.safetensors", config=config)
    assert_params(params, random_params(config))
    assert "3 tensors do not belong to the model" in said[0]


def test_values_of_other_classes_beside_the_model(tmp_path):
    """What a training script saves beside its weights: its folder, and the time at which it began."""
    config = tiny_config()
    tensors = {
        name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors_of(config, "official").items()
    }
    strides = {name: np.array(tensor.strides) // 4 for name, tensor in tensors.items()}
    items = {
        name: tensor(storage(str(key), count=one.size), shape=one.shape, strides=strides[name].tolist())
        for key, (name, one) in enumerate(tensors.items())
    }
    others = {
        "folder": unmemoised(pathlib.PurePosixPath("a"), 2),
        "started": unmemoised(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), 2),
    }
    body = mapping({"model": mapping(items, ORDERED_DICT), **others})
    path = tmp_path / "latest.pth"
    path.write_bytes(torch_file(body, {str(key): one.tobytes() for key, one in enumerate(tensors.values())}))
    params, said = load(path, config=config)
    assert_params(params, random_params(config))
    (warning,) = said
    assert re.search(r"latest\.pth holds more than tensors: values of pathlib.*PurePosixPath.* were skipped", warning)
    assert "datetime.datetime" in warning


def test_a_tensor_of_another_type_in_the_model_is_refused(tmp_path):
    from safetensors.numpy import save_file

    tensors = tensors_of(tiny_config(), "official")
    tensors["depth_head.projects.0.bias"] = tensors["depth_head.projects.0.bias"].astype(np.int64)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"wrong type: depth_head\.projects\.0\.bias: expected F16.*got I64"):
        dajax.load(tmp_path / "a.safetensors", config=tiny_config())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.weight", "b.bias"], r"its 2 tensors are named a\.weight, b\.bias\. The nearest names are those of"),
        (["cls_token", "blocks.0.norm1.weight"], "is a DINOv2 encoder without neck and head"),
        (
            ["pretrained.cls_token", "pretrained.norm.weight"],
            "has an encoder .* without depth_head: it is no depth model",
        ),
        ([f"layer.{i}.weight" for i in range(9000)], r"named layer\.0\.weight.* and 8,996 more"),
    ],
)
def test_what_is_no_model(tmp_path, names, message):
    write_file(tmp_path / "a.safetensors", {name: np.zeros(1, np.float32) for name in names})
    with pytest.raises(WeightsError, match=message) as error:
        dajax.load(tmp_path / "a.safetensors")
    assert len(str(error.value).encode()) < 2000


def test_one_file_with_the_names_of_two_implementations(tmp_path):
    """Whichever came last was loaded once."""
    config = tiny_config()
    both = tensors_of(config, "official") | tensors_of(config, "huggingface", seed=1)
    write_file(tmp_path / "a.safetensors", both)
    with pytest.raises(WeightsError, match="2 models with one prefix"):
        dajax.load(tmp_path / "a.safetensors", config=config)


def test_messages_are_short_in_every_script(tmp_path):
    """Bytes, not characters: three for each of these."""
    names = [f"pretrained.{'深' * 600}{i}" for i in range(40)]
    tensors = tensors_of(tiny_config(), "official") | {name: np.zeros(1, np.float32) for name in names}
    write_file(tmp_path / "a.safetensors", tensors)
    with pytest.raises(WeightsError, match="not in the model") as error:
        dajax.load(tmp_path / "a.safetensors", config=tiny_config())
    assert len(str(error.value).encode()) < 2000
    many = {f"{'p' * 700}{i}.{name}": tensor for i in range(9) for name, tensor in tensors_of(tiny_config()).items()}
    write_file(tmp_path / "b.safetensors", many)
    with pytest.raises(WeightsError, match="has 9 models") as error:
        dajax.load(tmp_path / "b.safetensors", config=tiny_config())
    assert len(str(error.value).encode()) < 2000
