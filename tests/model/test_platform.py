"""The platform that is traced for: the default one, unless a device is named."""

import jax

from dajax.model.platform import target_platform


def test_platform_is_the_default_devices(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert target_platform() == "tpu"
    with jax.default_device(jax.devices("cpu")[1]):
        assert target_platform() == "cpu"
        assert jax.jit(lambda: int(target_platform() == "cpu"))() == 1
    with jax.default_device("cpu"):
        assert target_platform() == "cpu"
    assert target_platform() == "tpu"
