"""The target: what the network is traced for, and whether its kernels are used.

The target decides how something is computed, never what. The choice is made when the network is traced, because
`jax.lax.platform_dependent` would trace every alternative and keep all of them in the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from dajax.errors import ConfigError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
KERNELS = ("auto", "reference")


class Target(NamedTuple):
    """What a program is made for.

    Attributes:
        platform: "cpu", "cuda" (NVIDIA's GPUs), "rocm" (other GPUs) or "tpu".
        capability: the CUDA compute capability, such as (9, 0); (0, 0) if it is not known.
        kernels: "auto" for the fastest implementation of each operation, "reference" for the plain formulas.
        interpreted: whether kernels for a TPU are interpreted, slowly, by the device that there is.
    """

    platform: str
    capability: tuple[int, int] = (0, 0)
    kernels: str = "auto"
    interpreted: bool = False


# A target that somebody chose with `target`, or None. jax keeps programs of different targets apart.
_chosen: Any = jax.make_user_context(None)


@contextmanager
def target(
    platform: str | None = None,
    *,
    capability: tuple[int, int] | None = None,
    kernels: str | None = None,
    interpreted: bool = False,
) -> Iterator[Target]:
    """Trace the network for another platform, or with other kernels, than those of the default device.

    It is meant for compilation, for example for a TPU on a machine that has none, and for tests. What is None stays as
    it is.

    Args:
        platform: "cpu", "cuda", "rocm" or "tpu".
        capability: the CUDA compute capability; only "cuda" has one.
        kernels: "auto" or "reference", see `Target`.
        interpreted: Interpret kernels for a TPU, to see what they compute where there is none.

    Yields:
        The target.

    Raises:
        ConfigError: the platform or `kernels` is another one.
    """
    if platform is not None and platform not in PLATFORMS:
        raise ConfigError(f"platform must be one of {', '.join(PLATFORMS)}, got {platform!r}")
    if kernels is not None:
        check_kernels(kernels)
    new = current_target() if platform is None else Target(platform, kernels=current_target().kernels)
    if capability is not None:
        new = new._replace(capability=capability)
    if kernels is not None:
        new = new._replace(kernels=kernels)
    if interpreted:
        new = new._replace(interpreted=True)
    with _chosen(new):
        yield new


def check_kernels(kernels: Any) -> None:
    """Raise a ConfigError unless `kernels` is "auto" or "reference"."""
    if kernels not in KERNELS:
        raise ConfigError(f"kernels must be one of {', '.join(KERNELS)}, got {kernels!r}")


def current_target() -> Target:
    """Return the target that `target` chose; else that of `jax.default_device`, else that of jax's default backend.

    A program that will run on other devices has to be traced under `jax.default_device`, as estimators do it.
    """
    chosen: Target | None = _chosen.value
    return _of_device() if chosen is None else chosen


def _of_device() -> Target:
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    named = device is None or isinstance(device, str)
    platform = (device or jax.default_backend()) if named else str(device.platform)
    if platform not in ("gpu", "cuda", "rocm"):
        return Target(platform)
    if named:
        device = jax.local_devices(backend=device)[0]
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    if major.isdecimal() and minor.isdecimal():
        return Target("cuda", (int(major), int(minor)))
    return Target("rocm")
