"""Programs that compile in a quarter of the time, for tests that ask what a program does rather than how fast it is.

Two things are left out: LLVM's optimisation, and XLA's newer emitters of fused loops, which cost more than the older
ones whatever LLVM does. The second is an option of XLA, and jax has no setting for it; hence the wrapped function.
"""

import os
from contextlib import contextmanager

import jax
from jax._src import compiler

OPTION = "xla_cpu_use_fusion_emitters"

FLAG = f"--{OPTION}=false"
# Newer versions of XLA have only the newer emitters, and refuse the option.
HAS_OPTION = jax.version.__version_info__ < (0, 11)


def is_quick() -> bool:
    """Whether programs are compiled quickly now."""
    return jax.config.read("jax_disable_most_optimizations")


def quick_environment() -> dict[str, str]:
    """Return what another process needs in its environment to compile quickly."""
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return quick | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAG}".strip()} if HAS_OPTION else quick


@contextmanager
def quick_compilation():
    """Compile quickly within the block."""
    original = compiler.get_compile_options

    def get_compile_options(*args, **kwargs):
        options = original(*args, **kwargs)
        if HAS_OPTION and is_quick():
            options.env_option_overrides = [*options.env_option_overrides, (OPTION, False)]
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
