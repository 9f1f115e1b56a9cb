"""One encoder layer and the head are compiled for a TPU and cost no more than benchmarks/compiled/bounds.json says."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.compiled.tables import derived

ROOT = Path(__file__).parents[2]
BOUNDS = json.loads((ROOT / "benchmarks" / "compiled" / "bounds.json").read_text())


@pytest.mark.parametrize("part", ["layer", "head"])
def test_a_part_of_the_network_costs_at_most(part, tmp_path):
    if find_spec("libtpu") is None and os.environ.get("DAJAX_TPU_COMPILER") != "required":
        pytest.skip("libtpu is not installed")
    written = tmp_path / "case.json"
    # In a process of its own: the tests compile quickly, for the processor, and multiply in full precision.
    command = [sys.executable, "-m", "benchmarks.compiled", "--part", part, "--json", str(written)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    case = json.loads(written.read_text())
    assert case["uncharged"] == []
    assert case["unknown_loops"] == []
    figures, most = derived(case), BOUNDS[part]
    assert 0 < figures["both"] <= most["mega_cycles"]
    assert 0 < figures["both_gb"] <= most["gigabytes"]
