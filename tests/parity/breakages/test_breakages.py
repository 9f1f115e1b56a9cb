"""A test that cannot fail proves nothing: each known mistake is made in a copy of dajax, and a test has to notice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .breakages import BREAKAGES

ROOT = Path(__file__).parents[3]

# Minutes: .ci/run runs them after the main suite.
slow = pytest.mark.slow


def run_references(package: Path, killers: str) -> subprocess.CompletedProcess:
    """Run the torch-free tests of parity against the dajax in `package`."""
    command = [sys.executable, "-m", "pytest", ROOT / "tests" / "references", "-c", ROOT / "pyproject.toml"]
    command += [f"--rootdir={ROOT}", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", killers]
    # Without the root, whose dajax would come before the copy.
    command += ["-o", "pythonpath=tests tests/references tests/parity"]
    # The first place that is searched is the working directory.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        command, cwd=package, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "dajax", tmp_path / "dajax", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name.replace(" ", "-"))
def test_there_is_what_is_to_be_broken(breakage):
    """In the main suite: whoever changes a line that a mistake is made in has to move the mistake."""
    assert (ROOT / "dajax" / breakage.file).read_text().count(breakage.old) == 1, breakage.old


@slow
@pytest.mark.parametrize("killers", sorted({breakage.killers for breakage in BREAKAGES}))
def test_unbroken_copy_passes(copy, killers):
    result = run_references(copy, killers)
    assert result.returncode == 0, result.stdout + result.stderr


@slow
@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name.replace(" ", "-"))
def test_breakage_is_killed(copy, breakage):
    file = copy / "dajax" / breakage.file
    file.write_text(file.read_text().replace(breakage.old, breakage.new))
    result = run_references(copy, breakage.killers)
    # Killed by a number that is off, not by a program that no longer runs.
    assert result.returncode == 1, f"not noticed:\n{result.stdout}{result.stderr}"
    assert "AssertionError: " in result.stdout, f"does not run at all:\n{result.stdout}"
