"""One set of weights in every form that people have it in: the same params, bit for bit."""

import re

import numpy as np
import pytest
import safetensors.torch
import torch
from flax.traverse_util import flatten_dict
from reference import load_reference
from tiny import tiny_config, tiny_metric_config, tiny_swiglu_config
from transformers import DepthAnythingConfig as ReferenceConfig
from transformers import DepthAnythingForDepthEstimation

import dajax

CONFIGS = {
    "gelu": tiny_config(),
    "metric": tiny_metric_config(),
    "swiglu": tiny_swiglu_config(),
    "small": dajax.DepthAnythingConfig.small(),
}

# Transformers' names -> the authors', written here by hand and from the other side than dajax's table.
RULES = [
    (r"backbone\.embeddings\.(cls_token|mask_token)", r"pretrained.\1"),
    (r"backbone\.embeddings\.position_embeddings", "pretrained.pos_embed"),
    (r"backbone\.embeddings\.patch_embeddings\.projection\.(\w+)", r"pretrained.patch_embed.proj.\1"),
    (r"backbone\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"pretrained.blocks.\1.attn.proj.\2"),
    (r"backbone\.encoder\.layer\.(\d+)\.(norm[12]\.\w+)", r"pretrained.blocks.\1.\2"),
    (r"backbone\.encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"pretrained.blocks.\1.ls\2.gamma"),
    (r"backbone\.encoder\.layer\.(\d+)\.mlp\.(fc[12]\.\w+)", r"pretrained.blocks.\1.mlp.\2"),
    (r"backbone\.encoder\.layer\.(\d+)\.mlp\.weights_in\.(\w+)", r"pretrained.blocks.\1.mlp.w12.\2"),
    (r"backbone\.encoder\.layer\.(\d+)\.mlp\.weights_out\.(\w+)", r"pretrained.blocks.\1.mlp.w3.\2"),
    (r"backbone\.layernorm\.(\w+)", r"pretrained.norm.\1"),
    (r"neck\.reassemble_stage\.layers\.(\d)\.projection\.(\w+)", r"depth_head.projects.\1.\2"),
    (r"neck\.reassemble_stage\.layers\.(\d)\.resize\.(\w+)", r"depth_head.resize_layers.\1.\2"),
    (r"neck\.convs\.(\d)\.weight", lambda m: f"depth_head.scratch.layer{int(m[1]) + 1}_rn.weight"),
    (
        r"neck\.fusion_stage\.layers\.(\d)\.projection\.(\w+)",
        lambda m: f"depth_head.scratch.refinenet{4 - int(m[1])}.out_conv.{m[2]}",
    ),
    (
        r"neck\.fusion_stage\.layers\.(\d)\.residual_layer(\d)\.convolution(\d)\.(\w+)",
        lambda m: f"depth_head.scratch.refinenet{4 - int(m[1])}.resConfUnit{m[2]}.conv{m[3]}.{m[4]}",
    ),
    (r"head\.conv1\.(\w+)", r"depth_head.scratch.output_conv1.\1"),
    (r"head\.conv2\.(\w+)", r"depth_head.scratch.output_conv2.0.\1"),
    (r"head\.conv3\.(\w+)", r"depth_head.scratch.output_conv2.2.\1"),
]


def official(state: dict) -> dict:
    """The authors' names for a state dict with the Hub's names."""
    renamed = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"backbone\.encoder\.layer\.(\d+)\.attention\.attention\.query\.(\w+)", name):
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            renamed[f"pretrained.blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat(parts)
        elif ".attention.attention." not in name:
            (found,) = [match.expand(new) if isinstance(new, str) else new(match)
                        for old, new in RULES if (match := re.fullmatch(old, name))]  # fmt: skip
            renamed[found] = tensor
    return renamed


def training_checkpoint(state: dict) -> dict:
    """What the authors' training script saves, after a real step of its optimizer on a few of the tensors."""
    tensors = {f"module.{name}": torch.nn.Parameter(tensor.clone()) for name, tensor in state.items()}
    groups = [{"params": list(tensors.values())[:5], "lr": 0.0}, {"params": list(tensors.values())[5:9], "lr": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    sum(parameter.square().sum() for group in groups for parameter in group["params"]).backward()
    optimizer.step()
    best = {"d1": 0.97, "abs_rel": np.float64(0.05), "rmse": float("inf")}
    return {"model": tensors, "optimizer": optimizer.state_dict(), "epoch": 3, "previous_best": best}


def forms(state: dict, folder):
    """Write every form; yield its name and path."""
    names = official(state)
    chunked = {name.replace("pretrained.blocks.", "pretrained.blocks.0."): value for name, value in names.items()}
    distilled = {name.replace("pretrained.", "backbone."): value for name, value in chunked.items()}
    writers = {
        "official.pth": lambda path: torch.save(names, path),
        "latest.pth": lambda path: torch.save(training_checkpoint(names), path),
        "chunked.pth": lambda path: torch.save(chunked, path),
        "pytorch_model.bin": lambda path: torch.save(state, path),
        "official.safetensors": lambda path: safetensors.torch.save_file(names, path),
        "distilled.safetensors": lambda path: safetensors.torch.save_file(distilled, path),
    }
    for name, write in writers.items():
        write(folder / name)
        yield name, folder / name


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_form_gives_the_same_params(tmp_path, kind):
    config = CONFIGS[kind]
    torch.manual_seed(0)
    model = DepthAnythingForDepthEstimation(ReferenceConfig(**config.to_dict()))
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape))
    model.save_pretrained(tmp_path / "hf")
    _, params = dajax.load(tmp_path / "hf")
    expected = flatten_dict(params, sep="/")
    state = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    seen = []
    for name, path in forms(state, tmp_path):
        found = flatten_dict(dajax.load(path, config=config)[1], sep="/")
        assert found.keys() == expected.keys()
        for flax_path, leaf in found.items():
            assert np.array_equal(np.asarray(leaf), np.asarray(expected[flax_path])), (name, flax_path)
        seen.append(name)
        path.unlink()
    assert len(seen) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_back_to_pytorch_in_both_layouts(tmp_path, kind, dtype):
    """The same tensors under the same names, none missing and none more."""
    config = CONFIGS[kind]
    torch.manual_seed(1)
    model = DepthAnythingForDepthEstimation(ReferenceConfig(**config.to_dict())).to(dtype)
    model.save_pretrained(tmp_path / "hf")
    state = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    loaded = dajax.load(tmp_path / "hf")
    dajax.save(tmp_path / "official", *loaded, format="official")
    written = torch.load(tmp_path / "official" / "model.pth", weights_only=True)
    expected = official(state)
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == dtype
        assert torch.equal(written[name], tensor), name
    dajax.save(tmp_path / "again", *dajax.load(tmp_path / "official"), format="hf")
    again = load_reference(tmp_path / "again", dtype).state_dict()  # strict: it checks for missing and unexpected names
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
