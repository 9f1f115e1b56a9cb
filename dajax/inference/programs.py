"""The programs of an estimator: which shapes it compiles, how long that took, and whether they came from disk."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

# jax reports this event in the thread that asks for a program, if the program came from the cache on disk.
_CACHE_HIT = "/jax/compilation_cache/cache_hits"
_here = threading.local()


@dataclass(frozen=True)
class CompiledProgram:
    """A program that `DepthEstimator.compile` has made ready.

    Attributes:
        shape: the shape of its pixels, [rows, height, width, 3].
        seconds: how long tracing and compiling, or reading it from disk, took. It is 0 if the estimator had it already.
        from_cache: whether the program came from the cache on disk; see `dajax.enable_compilation_cache`.
    """

    shape: tuple[int, ...]
    seconds: float
    from_cache: bool


def timed(shape: tuple[int, ...], compile_it: Callable[[], Any]) -> CompiledProgram:
    """Compile a program with `compile_it`, and say what that took."""
    _listen()
    before = getattr(_here, "hits", 0)
    began = time.monotonic()
    compile_it()
    return CompiledProgram(shape, time.monotonic() - began, getattr(_here, "hits", 0) > before)


@functools.cache
def _listen() -> None:
    # Listeners stay for the life of the process, so there is only one.
    def count(event: str, **_: Any) -> None:
        if event == _CACHE_HIT:
            _here.hits = getattr(_here, "hits", 0) + 1

    jax.monitoring.register_event_listener(count)
