"""What the network is traced for: the default device, unless a device or a target is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeded import pixels
from tiny import tiny_config

from dajax import DepthAnything
from dajax.errors import ConfigError
from dajax.kernels import Target, convolution_dtype, current_target, depth_dtype, product, target
from dajax.weights.random import random_params


class Device:
    def __init__(self, platform, **attributes):
        self.__dict__ |= {"platform": platform, **attributes}


def test_platform_is_the_default_devices(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert current_target() == Target("tpu")
    with jax.default_device(jax.devices("cpu")[1]):
        assert current_target() == Target("cpu")
        assert jax.jit(lambda: int(current_target().platform == "cpu"))() == 1
    with jax.default_device("cpu"):
        assert current_target() == Target("cpu")
    assert current_target() == Target("tpu")


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (Device("gpu", compute_capability="9.0"), Target("cuda", (9, 0))),
        (Device("gpu", compute_capability="12.1"), Target("cuda", (12, 1))),
        (Device("gpu", compute_capability="gfx942"), Target("rocm")),
        (Device("gpu"), Target("rocm")),
    ],
)
def test_gpus(monkeypatch, device, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [device])
    assert current_target() == expected


def test_targets_within_targets():
    with target("cuda", capability=(8, 0)) as outer:
        assert outer == current_target() == Target("cuda", (8, 0))
        with target(kernels="reference"):
            assert current_target() == Target("cuda", (8, 0), "reference")
            with target("tpu"):
                assert current_target() == Target("tpu", kernels="reference")
        assert current_target() == outer
    assert current_target() == Target("cpu")


@pytest.mark.parametrize(("options", "message"), [
    ({"platform": "gpu"}, "platform must be one of cpu, cuda, rocm, tpu, got 'gpu'"),
    ({"kernels": "fast"}, "kernels must be one of auto, reference, got 'fast'"),
])  # fmt: skip
def test_what_is_no_target(options, message):
    with pytest.raises(ConfigError, match=message), target(**options):
        pass


def test_programs_are_traced_for_each_target():
    """Layers are jitted functions within the program: what was traced for one target must not serve another."""
    seen = []

    @jax.jit
    def layer(x):
        seen.append(current_target())
        return x + 1

    program = jax.jit(lambda x: layer(x) * 2)
    program(1.0)
    with target("tpu"):
        program(1.0)
    with target(kernels="reference"):
        program(1.0)
    program(1.0)
    with jax.default_device(jax.devices("cpu")[1]):
        program(1.0)
    assert seen == [Target("cpu"), Target("tpu"), Target("cpu", kernels="reference"), Target("cpu")]


@pytest.mark.parametrize(
    ("platform", "dtype", "products", "convolutions", "last"),
    [
        ("cpu", "float32", "float32", "float32", "float32"),
        ("cpu", "bfloat16", "float32", "float32", "float32"),
        ("cpu", "float16", "float32", "float32", "float32"),
        ("cpu", "float64", "float64", "float64", "float64"),
        ("cuda", "float32", "float32", "float32", "float32"),
        ("cuda", "bfloat16", "bfloat16", "bfloat16", "float32"),
        ("tpu", "bfloat16", "float32", "bfloat16", "bfloat16"),
        ("tpu", "float16", "float32", "float16", "float32"),
        ("tpu", "float32", "float32", "float32", "float32"),
    ],
)
def test_types_of_products_and_convolutions(platform, dtype, products, convolutions, last):
    with target(platform), jax.enable_x64(dtype == "float64"):
        made = jax.make_jaxpr(lambda x: product("ab,bc->ac", x, x, dtype))(jnp.zeros((2, 2)))
        assert f"preferred_element_type={products}" in str(made)
        assert convolution_dtype(dtype) == convolutions
        assert depth_dtype(convolution_dtype(dtype)) == last


def test_the_models_own_choice():
    config = tiny_config()
    params, x = random_params(config), pixels(70, 84, batch=2)
    texts = {}
    for kernels in ("auto", "reference"):
        model = DepthAnything(config, kernels=kernels)
        texts[kernels] = str(jax.make_jaxpr(lambda p, x, m=model: m.apply({"params": p}, x).predicted_depth)(params, x))
    assert "scan[" in texts["auto"]
    assert "scan[" not in texts["reference"]
    depths = [
        np.asarray(DepthAnything(config, kernels=kernels).apply({"params": params}, x).predicted_depth)
        for kernels in ("auto", "reference")
    ]
    assert np.abs(depths[0] - depths[1]).max() / depths[0].std() < 3e-5
    with target(kernels="reference"):
        assert "scan[" not in str(
            jax.make_jaxpr(lambda p, x: DepthAnything(config).apply({"params": p}, x).predicted_depth)(params, x)
        )


def test_a_models_kernels_are_known():
    with pytest.raises(ConfigError, match="kernels must be one of auto, reference, got 'tpu'"):
        DepthAnything(tiny_config(), kernels="tpu").apply({"params": {}}, pixels(70, 84))
