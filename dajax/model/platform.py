"""The one place that says what platform is traced for. It decides how something is computed, never what."""

from __future__ import annotations

import jax


def target_platform() -> str:
    """Return "cpu", "gpu" or "tpu": where `jax.default_device` says, else what jax runs on by itself.

    A choice at trace time: `jax.lax.platform_dependent` would trace every way and carry all of them along. Whoever runs
    a program on other devices than the default ones traces it under `jax.default_device`, as estimators do.
    """
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else str(device.platform)
