"""The table says what is computed how."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jax
import pytest
from environment import as_here

from dajax import kernels
from dajax.kernels import operations, reference, target
from dajax.kernels.operations import TABLE, choose

DOCS = Path(__file__).parents[2] / "docs" / "performance.md"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.operation} on {row.platform}")
def test_rows_are_functions(row):
    assert callable(getattr(operations, row.operation))
    assert callable(getattr(reference, row.operation))
    assert callable(getattr(import_module(f"dajax.kernels.{row.platform}"), row.operation))


def test_every_implementation_stands_in_the_table():
    rows = {(row.operation, row.platform) for row in TABLE}
    for platform in ("cpu", "cuda", "tpu"):
        module = import_module(f"dajax.kernels.{platform}")
        for operation in kernels.__all__:
            if callable(getattr(reference, operation, None)) and operation in vars(module):
                own = getattr(module, operation) is not getattr(reference, operation)
                assert not own or (operation, platform) in rows, (operation, platform)


def test_reference_takes_the_plain_formula_everywhere():
    heads = jax.ShapeDtypeStruct((1, 9, 2, 64), "bfloat16")
    for platform in ("cpu", "cuda", "tpu"):
        with target(platform, capability=(9, 0)):
            assert choose("attention", heads, heads, heads) is not reference.attention
            with target(kernels="reference"):
                assert choose("attention", heads, heads, heads) is reference.attention


def test_other_gpus_take_the_plain_formula():
    heads = jax.ShapeDtypeStruct((1, 9, 2, 64), "bfloat16")
    with target("rocm"):
        assert choose("attention", heads, heads, heads) is reference.attention


def test_the_table_of_the_docs():
    lines = ["| operation | platform | how | what it takes | gradient |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {row.operation} | {row.platform} | {row.what} | {row.limits or 'everything'} | {row.gradient} |"
        for row in TABLE
    ]
    assert "\n".join(lines) in DOCS.read_text()


def test_a_cpu_does_not_import_pallas():
    program = """
        import sys
        import dajax
        model, params = dajax.load("tiny")
        import numpy as np
        model.apply({"params": params}, np.zeros((1, 14, 14, 3), np.float32))
        print("jax.experimental.pallas" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in program.splitlines())],
        capture_output=True, text=True, check=True, env=as_here(),
    )  # fmt: skip
    assert done.stdout.strip() == "False"
