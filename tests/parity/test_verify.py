"""PyTorch against Flax, stage by stage: what passes, and which stage is named when a table is wrong."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from authors import official_shapes, official_state, write_official
from cases import CASES
from PIL import Image
from reference import load_reference
from seeded import make_image, write_checkpoint
from tiny import tiny_config, tiny_metric_config, tiny_swiglu_config

import convert.__main__ as command
import convert.verify as module
from convert.to_flax import to_flax
from convert.to_pytorch import to_pytorch
from convert.verify import random_pixels, verify, verify_conversion
from convert.verify_table import first_failure, table
from dajax import DepthImageProcessor
from dajax.errors import ConfigError, WeightsError
from dajax.weights import mapping

SHAPES = json.loads((Path(__file__).parents[1] / "references" / "data" / "shapes.json").read_text())
CONFIGS = {"relative": tiny_config(), "metric": tiny_metric_config(), "swiglu": tiny_swiglu_config()}
SIZE = (56, 84)  # 4x6 patches: not square, even, and not the training grid
PIXELS = random_pixels(*SIZE)


def assert_passes(source, **options):
    rows = verify(source, pixels=PIXELS, **options)
    print(table(rows))
    assert first_failure(rows) is None, table(rows)
    return rows


def hf(folder, name="tiny"):
    return write_checkpoint(folder / name, CASES[name][0].to_dict(), SHAPES[name])


def as_torch(state):
    return {name: torch.from_numpy(value) for name, value in state.items()}


# --- what passes


@pytest.mark.parametrize(
    "name",
    [
        "tiny", "tiny-swiglu",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("tiny-metric", "tiny-sparse-taps", "tiny-plain")),
    ],
)  # fmt: skip
def test_transformers(tmp_path, name):
    rows = assert_passes(hf(tmp_path, name))
    layers = CASES[name][0].backbone_config.num_hidden_layers
    assert len(rows) == 2 + layers + 4 * 4 + 1
    assert [row.stage for row in rows][:3] == ["patches", "embeddings", "block 0"]
    assert rows[-1].stage == "depth"


@pytest.mark.parametrize("kind", ["modules of Transformers 5", "wrapped", "no config", "shards"])
def test_other_files_of_transformers(tmp_path, kind):
    folder = hf(tmp_path)
    model = load_reference(folder, torch.float32)
    match kind:
        case "modules of Transformers 5":
            source = tmp_path / "five" / "state.safetensors"
            source.parent.mkdir()
            safetensors.torch.save_file(model.state_dict(), source)
            (source.parent / "config.json").write_text((folder / "config.json").read_text())
            assert_passes(source)
        case "wrapped":
            state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
            torch.save({"epoch": 3, "model": state}, tmp_path / "wrapped.pth")
            assert_passes(tmp_path / "wrapped.pth", config=CONFIGS["relative"])
        case "no config":
            assert_passes((folder / "model.safetensors").rename(tmp_path / "lone.safetensors"), config=tiny_config())
        case "shards":
            model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
            assert len(list((tmp_path / "shards").glob("model-*"))) > 2
            assert_passes(tmp_path / "shards")


@pytest.mark.parametrize(
    ("kind", "style"), [("relative", None), ("relative", "huggingface"), ("metric", None), ("swiglu", None)]
)
def test_official(tmp_path, kind, style):
    path = write_official(tmp_path / "mine.safetensors", CONFIGS[kind])
    assert_passes(path, config=CONFIGS[kind], style=style)


@pytest.mark.parametrize("kind", ["plain", "training", "chunked", "distill", "compiled"])
def test_files_of_the_authors_code(tmp_path, kind):
    """What PyTorch itself saves."""
    state = as_torch(official_state(CONFIGS["relative"]))
    match kind:
        case "training":
            weights = {f"module.{name}": tensor for name, tensor in state.items()}
            optimizer = torch.optim.AdamW([torch.nn.Parameter(tensor) for tensor in state.values()])
            state = {"model": weights, "optimizer": optimizer.state_dict(), "epoch": 7, "previous_best": {"d1": 0.9}}
        case "chunked":
            state = {name.replace("blocks.", "blocks.0."): tensor for name, tensor in state.items()}
        case "distill":
            state = {name.replace("pretrained.", "backbone."): tensor for name, tensor in state.items()}
        case "compiled":
            state = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "mine.pth")
    assert_passes(tmp_path / "mine.pth", config=CONFIGS["relative"])


def test_pytorch_in_float32(tmp_path):
    """Its own rounding is in the errors then, and the bounds allow for it."""
    single, double = (assert_passes(hf(tmp_path), torch_dtype=dtype) for dtype in ("float32", "float64"))
    assert all(row.bound == 5 * other.bound for row, other in zip(single, double, strict=True))


# --- what fails, and where


def edited(changes):
    """Return how to change the rows whose Flax path has certain parts: {part: row -> row}."""

    def edit(rows):
        return [next((change(row) for part, change in changes.items() if part in row.flax), row) for row in rows]

    return edit


def renamed(old, new):
    return lambda row: row._replace(torch=tuple(name.replace(old, new) for name in row.torch))


def moved_part(index):
    return lambda row: row._replace(part=row.part._replace(number=index))


def as_transform(name):
    return lambda row: row._replace(transform=name)


def exchanged(key, first, second):
    """Return how to exchange the tensors of two names that a general row stands for."""

    def edit(rows):
        general = [row for row in rows if f"{{{key}}}" in row.flax]
        return [
            row._replace(flax=row.flax.replace(f"{{{key}}}", flax), torch=(row.torch[0].replace(f"{{{key}}}", torch),))
            for row in general
            for flax, torch in ((first, second), (second, first))
        ] + rows

    return edit


def reversed_levels(rows):
    return [
        row._replace(torch=tuple(re.sub(r"refinenet(\d)", lambda m: f"refinenet{5 - int(m[1])}", n) for n in row.torch))
        for row in rows
    ]


# name -> (table, change of its rows, the stage that must be named)
BREAKAGES = {
    "query and key": ("huggingface", exchanged("qkv", "query", "key"), "block 0"),
    "query and value": ("huggingface", exchanged("qkv", "query", "value"), "block 0"),
    "norms of a layer": ("huggingface", exchanged("norm", "norm1", "norm2"), "block 0"),
    "scales of a layer": (
        "huggingface",
        exchanged("scale", "layer_scale1", "layer_scale2"),
        "block 0",
    ),
    "a square matrix not transposed": (
        "huggingface",
        edited({"attention/output/kernel": as_transform("same")}),
        "block 0",
    ),
    "convolutions, rows and columns": ("huggingface", ("conv", (3, 2, 1, 0)), "patches"),
    "enlargement, in and out": ("huggingface", ("deconv", (2, 3, 1, 0)), "reassembled 0"),
    "units of a fusion stage": (
        "huggingface",
        exchanged("unit", "residual_layer1", "residual_layer2"),
        "fused 0",
    ),
    "query and key, official": (
        "official",
        edited({"attention/query": moved_part(1), "attention/key": moved_part(0)}),
        "block 0",
    ),
    "refinenets reversed": ("official", reversed_levels, "fused 0"),
    "lateral, in and out": ("official", edited({"neck/conv_2/kernel": as_transform("swapped")}), "lateral 2"),
    "second convolution of the head": ("official", edited({"head/conv2/kernel": as_transform("swapped")}), "depth"),
    "norm's scale and bias": (
        "official",
        edited(
            {
                "backbone/layernorm/scale": renamed("weight", "bias"),
                "backbone/layernorm/bias": renamed("bias", "weight"),
            }
        ),
        "tap 0",
    ),
    "gate and up": (
        "huggingface-5",
        edited({"mlp/weights_in": lambda row: row._replace(torch=row.torch[::-1])}),
        "block 0",
    ),
}


@pytest.fixture
def break_table(monkeypatch):
    def break_table(name):
        table, change, _ = BREAKAGES[name]
        if isinstance(change, tuple):
            kind, axes = change
            back = tuple(np.argsort(axes))
            wrong = mapping.Transform(lambda x: x.transpose(axes), lambda x: x.transpose(back))
            rows = [row._replace(transform="wrong") if row.transform == kind else row for row in mapping.TABLES[table]]
        else:
            # OIHW -> HWOI: for as many channels in as out
            wrong = mapping.Transform(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))
            rows = change(mapping.TABLES[table])
        monkeypatch.setitem(mapping.TRANSFORMS, "wrong", wrong)
        monkeypatch.setitem(mapping.TRANSFORMS, "swapped", wrong)
        assert rows != mapping.TABLES[table]
        monkeypatch.setitem(mapping.TABLES, table, rows)

    return break_table


def source_of(folder, name):
    """Return a checkpoint that the broken table is for, and its config."""
    match BREAKAGES[name][0]:
        case "huggingface":
            return hf(folder), CONFIGS["relative"]
        case "official":
            return write_official(folder / "mine.safetensors", CONFIGS["relative"]), CONFIGS["relative"]
        case _:
            state = load_reference(hf(folder, "tiny-swiglu"), torch.float32).state_dict()
            safetensors.torch.save_file(state, folder / "mine.safetensors")
            return folder / "mine.safetensors", CONFIGS["swiglu"]


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_wrong_table_fails_at_its_stage(tmp_path, break_table, name):
    source, config = source_of(tmp_path, name)
    break_table(name)
    failure = first_failure(verify(source, config=config, pixels=PIXELS))
    assert failure is not None
    print(f"{failure.stage}: {failure.max_error:.1e}, {failure.max_error / failure.bound:.0f} times its bound")
    assert failure.stage == BREAKAGES[name][2]
    assert failure.max_error > 10 * failure.bound


def test_weights_of_another_checkpoint_fail(tmp_path):
    other = write_checkpoint(tmp_path / "other", CONFIGS["relative"].to_dict(), SHAPES["tiny"], seed=1)
    assert first_failure(verify(hf(tmp_path), flax=other, pixels=PIXELS)).stage == "patches"


def test_the_wrong_kind_fails(tmp_path):
    """The tensors of relative and metric models are the same: only the numbers tell."""
    flax = to_flax(hf(tmp_path), tmp_path / "flax", config=CONFIGS["metric"])
    assert first_failure(verify(tmp_path / "tiny", flax=flax, pixels=PIXELS)).stage == "depth"


# --- refused


def test_transformers_has_one_style(tmp_path):
    with pytest.raises(ConfigError, match="style huggingface"):
        verify(hf(tmp_path), style="official", pixels=PIXELS)


def test_what_pytorch_does_not_open(tmp_path):
    """A pickle that dajax reads past, and that weights_only=True refuses."""
    state = as_torch(official_state(CONFIGS["relative"]))
    torch.save({"model": state, "best": np.float64(0.5)}, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=r"mine\.pth is not opened by PyTorch"):
        verify(tmp_path / "mine.pth", config=CONFIGS["relative"], pixels=PIXELS)


def test_tensors_that_transformers_misses(tmp_path):
    """dajax reads the config without mask token as it stands; Transformers is told another one."""
    folder = hf(tmp_path, "tiny-plain")
    files = module.find_files(folder, {})
    with pytest.raises(WeightsError, match=r"missing: backbone\.embeddings\.mask_token"):
        module._torch_stages(files, "transformers", CONFIGS["relative"], CONFIGS["relative"], PIXELS, "float64", None)


# --- conversions


@pytest.mark.parametrize("kind", CONFIGS)
def test_transformers_loads_what_the_authors_file_became(tmp_path, kind):
    """Strictly, and every number at its place."""
    config = CONFIGS[kind]
    write_official(tmp_path / "mine.safetensors", config)
    model = load_reference(to_pytorch(tmp_path / "mine.safetensors", tmp_path / "hf", config=config), torch.float32)
    found, given = model.state_dict(), as_torch(official_state(config))
    for i in range(config.backbone_config.num_hidden_layers):
        for name in ("weight", "bias"):
            parts = [found[f"backbone.encoder.layer.{i}.attention.{x}_proj.{name}"] for x in "qkv"]
            assert torch.equal(torch.cat(parts), given[f"pretrained.blocks.{i}.attn.qkv.{name}"])
    for i in range(4):
        fused = found[f"neck.fusion_stage.layers.{i}.residual_layer2.convolution1.weight"]
        assert torch.equal(fused, given[f"depth_head.scratch.refinenet{4 - i}.resConfUnit2.conv1.weight"])
        assert torch.equal(found[f"neck.convs.{i}.weight"], given[f"depth_head.scratch.layer{i + 1}_rn.weight"])
    assert sum(tensor.numel() for tensor in found.values()) == sum(tensor.numel() for tensor in given.values())


@pytest.mark.parametrize("kind", CONFIGS)
def test_official_there_and_back(tmp_path, kind):
    """Names, shapes, types and values that PyTorch reads are those that were given."""
    config = CONFIGS[kind]
    given = as_torch(official_state(config))
    torch.save(given, tmp_path / "mine.pth")
    to_flax(tmp_path / "mine.pth", tmp_path / "flax", config=config)
    to_pytorch(tmp_path / "flax", tmp_path / "official", format="official")
    found = torch.load(tmp_path / "official" / "model.pth", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == official_shapes(config)
    for name, expected in given.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], expected), name


@pytest.mark.parametrize(
    ("first", "second", "tables"),
    [("hf", "flax", 1), ("flax", "hf", 1), ("flax", "official", 1), ("hf", "official", 2), ("official", "hf", 2)],
)
def test_both_ways(tmp_path, first, second, tables):
    source, written = tmp_path / "tiny", tmp_path / "written"
    hf(tmp_path)
    if first == "flax":
        source = to_flax(source, tmp_path / "flax")
    elif first == "official":
        source = to_pytorch(source, tmp_path / "official", format="official")
    if second == "flax":
        to_flax(source, written)
    else:
        to_pytorch(source, written, format=second)
    runs = list(verify_conversion(source, written, pixels=PIXELS))
    assert len(runs) == tables
    for run in runs:
        assert {run.torch, run.flax} == {str(source), str(written)}
        assert first_failure(run.rows) is None, table(run.rows)


def test_between_two_folders_of_flax_there_is_nothing_to_run(tmp_path):
    source = to_flax(hf(tmp_path), tmp_path / "flax")
    with pytest.raises(ConfigError, match="nothing that PyTorch could run"):
        list(verify_conversion(source, to_flax(source, tmp_path / "again")))


def test_rounding_on_purpose_is_no_error(tmp_path):
    """The same rounded weights on both sides; what is computed in is float32 and float64 all the same."""
    written = to_pytorch(hf(tmp_path), tmp_path / "half", dtype="bfloat16")
    for run in verify_conversion(tmp_path / "tiny", written, dtype="bfloat16", pixels=PIXELS):
        assert first_failure(run.rows) is None, table(run.rows)
    assert first_failure(verify(tmp_path / "tiny", flax=written, pixels=PIXELS)).stage == "patches"


# --- the command line


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setattr(module, "SIZE", SIZE)

    def run(main, *arguments):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        return ended.value.code, *capsys.readouterr()

    return run


def test_convert_and_verify(run, tmp_path):
    status, out, err = run(command.main, hf(tmp_path), "--out", tmp_path / "out", "--verify")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[2].startswith(f"{tmp_path / 'tiny'}: {tmp_path / 'tiny'} in PyTorch (float64), {tmp_path / 'out'}")
    assert lines[-1].startswith("all 23 stages are within their bounds")
    assert [line.split()[0] for line in lines[3:6]] == ["stage", "patches", "embeddings"]


def test_convert_with_a_wrong_table(run, tmp_path, break_table):
    """Flax params that were read wrongly are not proven right by being read back."""
    hf(tmp_path)
    break_table("query and key")
    status, out, err = run(command.main, tmp_path / "tiny", "--out", tmp_path / "out", "--verify")
    assert status == 1
    assert out.splitlines()[-1] == "FAILED: block 0 is the first stage over its bound"
    assert f"do not use {tmp_path / 'out' / 'tiny'}" in err


def test_verify_a_file(run, tmp_path, break_table):
    folder = hf(tmp_path)
    options = (folder, "--size", *SIZE, "--seed", 1)
    status, out, err = run(module.main, *options)
    assert (status, err) == (0, "")
    assert "errors in deviations of PyTorch's stage" in out.splitlines()[0]
    break_table("convolutions, rows and columns")
    status, out, _ = run(module.main, *options)
    assert status == 1
    assert out.splitlines()[-1] == "FAILED: patches is the first stage over its bound"


def test_verify_with_a_image(run, tmp_path, monkeypatch):
    """The processor's pixels, in the processor's size."""
    seen = []
    monkeypatch.setattr(module, "verify", lambda source, pixels, **options: seen.append(pixels) or [])
    monkeypatch.setattr(module, "table", lambda rows: "")
    Image.fromarray(make_image(60, 80)).save(tmp_path / "image.png")
    assert run(module.main, "small", "--image", tmp_path / "image.png")[0] == 0
    np.testing.assert_array_equal(seen[0], DepthImageProcessor()(tmp_path / "image.png")["pixel_values"])
