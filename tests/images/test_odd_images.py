"""Thousands of odd images of all formats: each is right, or refused with its kind; quickly, and in little memory."""

import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from odd_images import draw

from dajax.errors import ImageError
from dajax.images.read import read_image

SECONDS = 20
# All images are smaller than 70x70, and some say that they have 4,000 megapixels.
BYTES = 40_000_000


def problem(seed) -> str:
    """Return what is wrong with how a file is read; "" if nothing is."""
    odd = draw(seed)
    began = time.perf_counter()
    try:
        result, message = read_image(odd.data, max_pixels=200_000_000, **odd.options), ""
    except ImageError as error:
        result, message = None, str(error)
    except Exception as error:
        return f"{seed} {odd.name}: {type(error).__name__}: {error}"
    if time.perf_counter() - began > SECONDS:
        return f"{seed} {odd.name}: took {time.perf_counter() - began:.0f} s"
    if result is None:
        wanted = odd.refused or (".+" if odd.expected is None else "this is read")
        return "" if re.search(wanted, message) else f"{seed} {odd.name}: {message}"
    if odd.refused:
        return f"{seed} {odd.name}: was read"
    if odd.expected is None:
        return ""
    if result.shape != odd.expected.shape:
        return f"{seed} {odd.name}: {result.shape} instead of {odd.expected.shape}"
    off = np.abs(result - odd.expected).max()
    return "" if off <= odd.tolerance else f"{seed} {odd.name}: {off:.1f} off"


def problems(seeds) -> tuple[list[str], int]:
    """Return what is wrong, and by how many bytes the process has grown at its peak."""
    before = _peak()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [text for text in map(problem, seeds) if text]
    return found, _peak() - before


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def run(count) -> None:
    """Run in a new process, whose memory is that of the images alone."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = (
        f"import sys; sys.path[:0] = {folders!r}\n"
        "from test_odd_images import problems\n"
        "problems(range(30))\n"  # what is imported on first use
        f"found, grown = problems(range({count}))\n"
        "print('\\n'.join(found)); print(grown)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *found, grown = done.stdout.split("\n")[:-1]
    assert not any(found), "\n".join(found[:40])
    assert int(grown) < BYTES


def test_300_odd_images():
    run(300)


@pytest.mark.slow
def test_5000_odd_images():
    run(5_000)
