"""The platform that is traced for: the default one, unless a device is named; and what is chosen for each."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeded import pixels
from tiny import tiny_config

from dajax import DepthAnything
from dajax.model import platform
from dajax.model.platform import convolution_dtype, has_fused_attention, product_dtype, target_platform
from dajax.weights.random import random_params


@pytest.fixture(autouse=True)
def _forget_programs():
    """What was traced for another platform, which jax takes to be one that does not change."""
    yield
    jax.clear_caches()


def on(monkeypatch, name, capability=(0, 0)):
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", lambda: name)
    monkeypatch.setattr(platform, "compute_capability", lambda: capability)


def test_platform_is_the_default_devices(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert target_platform() == "tpu"
    with jax.default_device(jax.devices("cpu")[1]):
        assert target_platform() == "cpu"
        assert jax.jit(lambda: int(target_platform() == "cpu"))() == 1
    with jax.default_device("cpu"):
        assert target_platform() == "cpu"
    assert target_platform() == "tpu"


def test_programs_are_traced_for_each_default_device():
    """Layers are jitted functions within the program: what was traced for one platform must not serve another."""
    seen = []

    @jax.jit
    def layer(x):
        seen.append(jax.config.jax_default_device)
        return x + 1

    program = jax.jit(lambda x: layer(x) * 2)
    program(1.0)
    with jax.default_device(jax.devices("cpu")[1]):
        program(1.0)
    program(1.0)
    assert seen == [None, jax.devices("cpu")[1]]


@pytest.mark.parametrize(
    ("backend", "dtype", "product", "convolution"),
    [
        ("cpu", "float32", "float32", "float32"),
        ("cpu", "bfloat16", "float32", "float32"),
        ("cpu", "float16", "float32", "float32"),
        ("cpu", "float64", "float64", "float64"),
        ("gpu", "float32", "float32", "float32"),
        ("gpu", "bfloat16", "bfloat16", "bfloat16"),
        ("tpu", "bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_types_of_products_and_convolutions(monkeypatch, backend, dtype, product, convolution):
    on(monkeypatch, backend)
    assert product_dtype(dtype) == product
    assert convolution_dtype(dtype) == convolution


@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "width", "expected"),
    [
        ("gpu", (9, 0), "bfloat16", 64, True),
        ("gpu", (8, 0), "float16", 128, True),
        ("gpu", (7, 5), "float16", 64, False),  # Colab's T4
        ("gpu", (0, 0), "bfloat16", 64, False),  # not NVIDIA's
        ("gpu", (9, 0), "float32", 64, False),
        ("gpu", (9, 0), "bfloat16", 60, False),
        ("gpu", (9, 0), "bfloat16", 136, False),
        ("tpu", (9, 0), "bfloat16", 64, False),
        ("cpu", (9, 0), "bfloat16", 64, False),
    ],
)
def test_where_attention_is_fused(monkeypatch, backend, capability, dtype, width, expected):
    on(monkeypatch, backend, capability)
    assert has_fused_attention(dtype, width) is expected


class Device:
    def __init__(self, **attributes):
        self.__dict__ |= attributes


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (Device(compute_capability="9.0"), (9, 0)),
        (Device(compute_capability="12.1"), (12, 1)),
        (Device(compute_capability="gfx942"), (0, 0)),
        (Device(), (0, 0)),
    ],
)
def test_compute_capability(monkeypatch, device, expected):
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [device])
    assert platform.compute_capability() == expected


# --- lowered for a GPU, on a machine without one -------------------------------------------------------------------


def lowered(monkeypatch, dtype, *, gradient=False, size=(70, 84)):
    """The program of a tiny model as it is handed to XLA for an NVIDIA GPU."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    on(monkeypatch, "gpu", (9, 0))
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    if hasattr(cudnn, "is_cuda_compute_capability_equal"):
        monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    config = tiny_config()
    model, params = DepthAnything(config, dtype=dtype), random_params(config)

    def depth(params, x):
        return model.apply({"params": params}, x).predicted_depth

    function = jax.grad(lambda params, x: depth(params, x).sum()) if gradient else depth
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


def test_the_gpu_s_way_gives_the_same_depth(monkeypatch):
    """On this machine's processor: whole maps, all heads at once, gathers instead of strips."""
    config = tiny_config()
    model, params, x = DepthAnything(config), random_params(config), pixels(70, 84, batch=2)
    here = np.asarray(model.apply({"params": params}, x).predicted_depth)
    on(monkeypatch, "gpu")
    there = np.asarray(model.apply({"params": params}, x).predicted_depth)
    assert np.abs(here - there).max() / here.std() < 3e-5
