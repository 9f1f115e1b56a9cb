"""Programs that compile in a quarter of the time, for tests that ask what a program does rather than how fast it is.

Two things are left out: LLVM's optimisation, and XLA's newer emitters of fused loops, which cost more than the older
ones whatever LLVM does. And a program is one module for LLVM, not many for the threads that compile it: a worker of the
tests has one core. The last two are options of XLA, and jax has no setting for them; hence the wrapped function.
"""

import os
from contextlib import contextmanager

import jax
from jax._src import compiler

OPTIONS: dict[str, bool | int] = {"xla_cpu_parallel_codegen_split_count": 1}
# Newer versions of XLA have only the newer emitters, and refuse the option.
if jax.version.__version_info__ < (0, 11):
    OPTIONS["xla_cpu_use_fusion_emitters"] = False


def is_quick() -> bool:
    """Whether programs are compiled quickly now."""
    return jax.config.read("jax_disable_most_optimizations")


def quick_environment() -> dict[str, str]:
    """Return what another process needs in its environment to compile quickly."""
    flags = [os.environ.get("XLA_FLAGS", ""), *(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())]
    return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": " ".join(flags).strip()}


@contextmanager
def quick_compilation():
    """Compile quickly within the block."""
    original = compiler.get_compile_options

    def get_compile_options(*args, **kwargs):
        options = original(*args, **kwargs)
        if is_quick():
            options.env_option_overrides = [*options.env_option_overrides, *OPTIONS.items()]
        return options

    compiler.get_compile_options = get_compile_options
    with _most_optimizations_disabled(True):
        yield
    compiler.get_compile_options = original


@contextmanager
def full_compilation():
    """Compile as users do within the block, also where the rest is compiled quickly."""
    with _most_optimizations_disabled(False):
        yield


@contextmanager
def _most_optimizations_disabled(value: bool):
    before = is_quick()
    jax.config.update("jax_disable_most_optimizations", value)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
