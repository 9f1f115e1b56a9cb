"""Attention on NVIDIA's GPUs, in programs that are lowered for one on a machine without one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeded import pixels
from tiny import tiny_config

from dajax import DepthAnything
from dajax.kernels import cuda, reference, target
from dajax.kernels.operations import choose
from dajax.weights.random import random_params


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "width", "expected"),
    [
        ("cuda", (9, 0), "bfloat16", 64, cuda.attention),
        ("cuda", (8, 0), "float16", 128, cuda.attention),
        ("cuda", (7, 5), "float16", 64, reference.attention),  # Colab's T4
        ("rocm", None, "bfloat16", 64, reference.attention),  # not NVIDIA's
        ("cuda", (9, 0), "float32", 64, reference.attention),
        ("cuda", (9, 0), "bfloat16", 60, reference.attention),
        ("cuda", (9, 0), "bfloat16", 136, reference.attention),
    ],
)
def test_where_attention_is_fused(platform, capability, dtype, width, expected):
    heads = jax.ShapeDtypeStruct((1, 9, 2, width), dtype)
    with target(platform, capability=capability):
        assert choose("attention", heads, heads, heads) is expected


# --- lowered for a GPU, on a machine without one -------------------------------------------------------------------


def lowered(monkeypatch, dtype, *, gradient=False, size=(70, 84)):
    """The program of a tiny model as it is handed to XLA for an NVIDIA GPU."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    if hasattr(cudnn, "is_cuda_compute_capability_equal"):
        monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    config = tiny_config()
    model, params = DepthAnything(config, dtype=dtype), random_params(config)

    def depth(params, x):
        return model.apply({"params": params}, x).predicted_depth

    function = jax.grad(lambda params, x: depth(params, x).sum()) if gradient else depth
    with target("cuda", capability=(9, 0)):
        traced = jax.jit(function).trace(params, jnp.asarray(pixels(*size, batch=2)))
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def executed(text, what):
    """How often a program runs `what`: layers of one shape are calls of one function."""
    functions = dict(re.findall(r"func\.func \w+ @([\w.]+)\((.*?)\n  }", text, re.S))

    def within(name):
        return functions[name].count(what) + sum(map(within, re.findall(r" call @([\w.]+)\(", functions[name])))

    return within("main")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gpu_program_in_half_precision(monkeypatch, dtype):
    text = lowered(monkeypatch, dtype)
    short = {"bfloat16": "bf16", "float16": "f16"}[dtype]
    assert executed(text, "custom_call @__cudnn$fmhaSoftmax(") == 4  # one for each layer; no scores are stored
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    # 3 lateral and down-sampling ones more than levels, 7 residual units of two, and the head's two.
    assert len(convolutions) == 4 + 1 + 14 + 2
    wide = [line for line in convolutions if f"x{short}>" not in line]
    assert len(wide) == 1, "the head's last convolution alone is float32"
    assert "stablehlo.while" not in text, "no loop over images, heads or strips"
    assert "callback" not in text, "nothing comes back to the host"


@pytest.mark.parametrize("size", [(70, 84), (70, 70)], ids=["31 tokens", "26 tokens"])
def test_gpu_gradient_in_half_precision(monkeypatch, size):
    """jax refuses an odd number of tokens here, unless they are padded."""
    text = lowered(monkeypatch, "bfloat16", gradient=True, size=size)
    assert executed(text, "custom_call @__cudnn$fmhaSoftmaxBackward(") == 4


def test_float32_is_float32_on_a_gpu(monkeypatch):
    text = lowered(monkeypatch, "float32")
    assert "cudnn" not in text
    products = [
        line for line in text.splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    assert len(products) > 40
    assert all("HIGHEST" in line for line in products), "TensorFloat-32 was not asked for"


def test_the_user_may_ask_for_less(monkeypatch):
    with jax.default_matmul_precision("tensorfloat32"):
        text = lowered(monkeypatch, "float32")
    products = [
        line for line in text.splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    # Positions are resampled in full precision whatever the user says: it is done once and costs nothing.
    assert sum("HIGHEST" in line for line in products) <= 2
    assert len(products) > 40


def test_the_gpu_s_way_gives_the_same_depth():
    """On this machine's processor: whole maps, all heads at once, gathers instead of strips."""
    config = tiny_config()
    model, params, x = DepthAnything(config), random_params(config), pixels(70, 84, batch=2)
    here = np.asarray(model.apply({"params": params}, x).predicted_depth)
    with target("cuda"):
        there = np.asarray(model.apply({"params": params}, x).predicted_depth)
    assert np.abs(here - there).max() / here.std() < 3e-5
