"""`dajax check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from dajax.cli.messages import say
from dajax.cli.model_options import DTYPES, Dtype
from dajax.cli.options import unset, value_of

if TYPE_CHECKING:
    from dajax.inference.self_check import Agreement

INTERRUPTED = "interrupted"
_KERNEL = (
    "a kernel is wrong on this device: the plain formulas are within the bounds. Pass --kernels reference to the "
    'commands, or kernels="reference" in Python, and report it with what is printed above'
)
_DEVICE = (
    "this device, or this version of jax, computes less exactly than it should, by the plain formulas too. Run it "
    "again with JAX_PLATFORMS=cpu: if that is within the bounds, the package is whole, and the device, its driver or "
    "jax is at fault. Update them, or use a --dtype whose row says ok"
)


def check(
    dtype: Annotated[Dtype | None, value_of(str, choices=DTYPES), unset(f"{{{','.join(DTYPES)}}}", "all three")] = None,
    cache: bool = True,
) -> int:
    """Show that this machine computes the depth maps that it should, on all of its devices.

    Example: dajax check

    It runs tiny, the model that comes with dajax, on stored images, alone and in batches. tiny uses every kernel of
    this device. The depth maps are compared with those that were computed in float64. Errors are in standard
    deviations of the depth map. A type that is not within the bounds is run again by the plain formulas: that tells
    what is at fault.

    Exit status: 0 within the bounds, 1 not within them, 2 bad usage, 130 interrupted.

    Args:
        dtype: the type in which the network computes.
        cache: Keep compiled programs in ~/.cache/dajax for the next run.
    """
    import jax

    from dajax.inference.compilation_cache import enable_compilation_cache
    from dajax.inference.self_check import BOUNDS, check_device

    if cache:
        enable_compilation_cache()
    several = jax.local_device_count() > 1
    print(f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{'':10}{'mean error':>12}{'allowed':>10}{'largest':>12}{'allowed':>10}{'an image':>12}", flush=True)
    advice = None
    for name in BOUNDS if dtype is None else (dtype,):
        mesh = "local" if several else None
        if _print(name, check_device(name, mesh=mesh)):
            continue
        is_kernel = _print("  plain", check_device(name, mesh=mesh, kernels="reference"))
        advice = _KERNEL if is_kernel and advice in (None, _KERNEL) else _DEVICE
    if advice is not None:
        say("check", advice)
    return 0 if advice is None else 1


def _print(name: str, found: Agreement) -> bool:
    """Print a row, and return whether the errors are within the bounds."""
    errors = "".join(
        f"{error:12.1e}{bound:10.1e}" for error, bound in zip((found.mean, found.largest), found.bounds, strict=True)
    )
    verdict = "ok" if found.is_within else "NOT WITHIN"
    print(f"{name:10}{errors}{1000 * found.seconds:9.1f} ms   {verdict}", flush=True)
    return found.is_within
