"""Copies arrays between PyTorch's and Flax's order of axes."""

from __future__ import annotations

import numpy as np

# How many rows are copied together: their elements in one column then lie in common cache lines of 64 bytes.
_ROWS = 16


def copy_rearranged(target: np.ndarray, source: np.ndarray) -> None:
    """Copy `source` into `target`, of the same shape, casting; either may be a transposed view.

    numpy alone walks transposed matrices with a stride, touching a cache line for every number: eight times as slow.
    """
    if target.ndim < 2 or (target.flags.c_contiguous and source.flags.c_contiguous):
        np.copyto(target, source, casting="unsafe")
        return
    for start in range(0, len(target), _ROWS):
        np.copyto(target[start : start + _ROWS], source[start : start + _ROWS], casting="unsafe")


def contiguous(source: np.ndarray) -> np.ndarray:
    """Return `source`, or a C-contiguous copy of it."""
    if source.flags.c_contiguous:
        return source
    target = np.empty(source.shape, source.dtype)
    copy_rearranged(target, source)
    return target
