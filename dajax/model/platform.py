"""The one place that says what platform is traced for. It decides how something is computed, never what."""

from __future__ import annotations

import jax


def target_platform() -> str:
    """Return "cpu", "gpu" or "tpu": what jax runs on unless it is told otherwise.

    A choice at trace time: `jax.lax.platform_dependent` would trace every way and carry all of them along.
    """
    return jax.default_backend()
