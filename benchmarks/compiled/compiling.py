"""Compiles a program for a TPU on a machine that has none, and says what the compiler says of it."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from importlib.util import find_spec
from typing import Any

# jax itself runs on the processor: libtpu only compiles. It is told not to ask the cloud for its machine, and that
# other processes may compile at the same time.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dajax import kernels

from .account import account
from .charges import recorded, work
from .hlo import parse
from .programs import Program
from .targets import CHIPS

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "keras", "keras-hub")


def check() -> None:
    """Exit with a message if libtpu, the compiler, is not installed."""
    if find_spec("libtpu") is None:
        raise SystemExit(
            "libtpu, the compiler for TPUs, is not installed: `make .venv-tpu/.installed` makes an environment with it"
        )


def device(target: str) -> Any:
    """Return one device of a target, to compile for; it does not exist."""
    from jax.experimental import topologies

    chip = CHIPS[target]
    topology: Any = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology, **chip.options)
    return topology.devices[0]


def compiled(program: Program, target: str) -> tuple[dict[str, Any], str]:
    """Compile a program for one chip of a target.

    Returns:
        The figures, as JSON has them, for all images of the batch; and the text of the compiled program.
    """
    chip = CHIPS[target]
    sharding = NamedSharding(Mesh(np.array([device(target)]), ("data",)), PartitionSpec())
    params, arrays = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), (program.params, program.arrays)
    )
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache would take no time
    with kernels.target("tpu"), recorded(chip) as charges:
        begin = time.perf_counter()
        lowered = jax.jit(program.function).trace(params, arrays).lower()
        traced_at = time.perf_counter()
    executable = lowered.compile()
    done = time.perf_counter()
    text, memory = executable.as_text(), executable.memory_analysis()
    figures = {
        "trace_s": round(traced_at - begin, 2),
        "compile_s": round(done - traced_at, 1),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
        "flop": arithmetic(program),
        "pallas_kernels": len({charge.name for charge in charges}),
        "versions": versions(),
    }
    return figures | account(parse(text), chip, charges).summary(), text


def arithmetic(program: Program) -> int:
    """Return the operations of the products and convolutions that the plain formulas consist of."""
    with kernels.target("tpu", kernels="reference"):
        jaxpr = jax.make_jaxpr(program.function)(program.params, program.arrays)
    return work(jaxpr.jaxpr, 1).flop


def versions() -> dict[str, str]:
    """Return the versions of Python, of the compiler and of what was compiled."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        if find_spec(package.replace("-", "_")) is not None:
            found[package] = metadata.version(package)
    return found
