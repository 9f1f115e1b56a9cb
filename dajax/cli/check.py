"""`dajax check`."""

from __future__ import annotations

from typing import Annotated

from dajax.cli.messages import say
from dajax.cli.model_options import DTYPES, Dtype
from dajax.cli.options import unset, value_of

INTERRUPTED = "interrupted"
_ADVICE = (
    "this device, or this version of jax, computes less exactly than it should. Run it again with JAX_PLATFORMS=cpu: "
    "if that is within the bounds, the package is whole, and the device, its driver or jax is at fault. Update them, "
    "or use a --dtype whose row says ok"
)


def check(
    dtype: Annotated[Dtype | None, value_of(str, choices=DTYPES), unset(f"{{{','.join(DTYPES)}}}", "all three")] = None,
    cache: bool = True,
) -> int:
    """Show that this machine computes the depth maps that it should, on all of its devices.

    Example: dajax check

    It runs tiny, the model that comes with dajax, on stored images, alone and in batches. It compares their depth maps
    with those that were computed in float64. Errors are in standard deviations of the depth map.

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
    is_right = True
    for name in BOUNDS if dtype is None else (dtype,):
        found = check_device(name, mesh="local" if several else None)
        errors = "".join(
            f"{error:12.1e}{bound:10.1e}"
            for error, bound in zip((found.mean, found.largest), found.bounds, strict=True)
        )
        verdict = "ok" if found.is_within else "NOT WITHIN"
        print(f"{name:10}{errors}{1000 * found.seconds:9.1f} ms   {verdict}", flush=True)
        is_right &= found.is_within
    if not is_right:
        say("check", _ADVICE)
    return 0 if is_right else 1
