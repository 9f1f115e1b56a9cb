"""Bad input is refused quickly, in little memory, by one error."""

import gc
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest


def refused(call: Callable[[], object], error: type[Exception], match: str) -> str:
    """Return the message of the error that `call` raises, in under a second and 64 MB.

    Called twice: to trace memory takes several times as long as the call itself.
    """
    gc.freeze()  # what other tests have left behind is not to be searched for garbage on this one's time
    try:
        start = time.process_time()
        with pytest.raises(error, match=f"(?s){match}"):
            call()
        seconds = time.process_time() - start
    finally:
        gc.unfreeze()
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{seconds * 1e3:.1f} ms, {peak / 1e6:.1f} MB")
    assert seconds < 1, f"took {seconds:.2f} s"
    assert peak < 64e6, f"took {peak / 1e6:.0f} MB"
    return str(caught.value)


def put_no_file(path: Path, kind: str) -> None:
    """Put at `path` what can be opened like a file and is none."""
    match kind:
        case "missing":
            pass
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/null")
        case "endless device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to(path.parent / "nothing")
        case other:
            raise ValueError(other)
