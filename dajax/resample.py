"""Resampling as PyTorch and OpenCV do it, as tables of weights for code in numpy and in jax.numpy.

Both filters are separable, so every function here works on one axis at a time. They are written out because
`jax.image.resize` does not have the a = -0.75 kernel and aligned corners in every jax that dajax supports, and Pillow's
bicubic filter has a = -0.5 and antialiasing.
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32

# The size of one block of output rows, so that it stays in a core's cache.
_BLOCK_BYTES = 1 << 18


def cubic_matrix(
    size_in: int,
    size_out: int,
    *,
    a: float = -0.75,
    scale: float | None = None,
    coordinates: Literal["torch", "opencv"] = "torch",
) -> Float64[np.ndarray, "size_out size_in"]:
    """Return the weights of the bicubic filter without antialiasing along one axis: `resized = matrix @ values`.

    The kernel is R. Keys' cubic convolution (IEEE Trans. ASSP 29(6), 1981) with parameter `a`; a = -0.75 is that of
    `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` and of OpenCV's `INTER_CUBIC`. Output i reads
    the four inputs around (i + 0.5) * scale - 0.5. Taps beyond the border read the border.

    Args:
        size_in: Length of the axis before, at least 1.
        size_out: Length of the axis after, at least 1.
        a: the kernel's parameter.
        scale: the number of input pixels per output pixel; `size_in / size_out` if None. PyTorch's `scale_factor=f` is
            `scale=1 / f`.
        coordinates: When the source coordinate is rounded to float32. "torch" rounds the scale and then the coordinate,
            as PyTorch does for float32 input where multiply and add are fused into one instruction; "opencv" rounds
            only the coordinate. A thousand pixels from the origin they differ by 1e-4 of a pixel.

    Returns:
        float64 [size_out, size_in]; every row sums to 1 and has at most four entries.

    Raises:
        ValueError: a size is less than 1, or `scale` is not positive.
    """
    _check_sizes(size_in, size_out)
    if scale is None:
        scale = size_in / size_out
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    index = np.arange(size_out)
    if coordinates == "torch":
        scale = float(np.float32(scale))
    source = ((index + 0.5) * scale - 0.5).astype(np.float32)
    low = np.floor(source)
    t = (source - low).astype(np.float64)
    # Keys' polynomials at the distances 1 + t, t, 1 - t and 2 - t from the four taps.
    weights = np.stack([_far(1 + t, a), _near(t, a), _near(1 - t, a), _far(2 - t, a)])
    taps = np.clip(low.astype(np.int64) + np.arange(-1, 3)[:, None], 0, size_in - 1)
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.broadcast_to(index, taps.shape), taps), weights)
    return matrix


def _near(x: np.ndarray, a: float) -> np.ndarray:
    """Return Keys' kernel for |x| <= 1."""
    return ((a + 2) * x - (a + 3)) * x * x + 1


def _far(x: np.ndarray, a: float) -> np.ndarray:
    """Return Keys' kernel for 1 <= |x| <= 2."""
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


def linear_taps(
    size_in: int, size_out: int
) -> tuple[Int32[np.ndarray, " size_out"], Int32[np.ndarray, " size_out"], Float64[np.ndarray, " size_out"]]:
    """Return the taps of the bilinear filter with aligned corners along one axis.

    `resized = values[low] * (1 - fraction) + values[high] * fraction`: output i reads input
    i * (size_in - 1) / (size_out - 1), as `torch.nn.functional.interpolate(mode="bilinear", align_corners=True)` does.
    The fraction is exact. PyTorch computes it in the input's dtype and loses its last five digits in float32, which
    causes most of the difference between PyTorch's float32 and float64 models.

    Args:
        size_in: Length of the axis before, at least 1.
        size_out: Length of the axis after, at least 1.

    Returns:
        low, high: int32 [size_out], the indices of the two inputs that each output reads.
        fraction: float64 [size_out], the weight of `high`; that of `low` is 1 - fraction.

    Raises:
        ValueError: a size is less than 1.
    """
    _check_sizes(size_in, size_out)
    steps = max(size_out - 1, 1)
    low, rest = np.divmod(np.arange(size_out, dtype=np.int64) * (size_in - 1), steps)
    high = np.minimum(low + 1, size_in - 1)
    fraction = rest / steps
    return low.astype(np.int32), high.astype(np.int32), fraction


def _check_sizes(size_in: int, size_out: int) -> None:
    if size_in < 1 or size_out < 1:
        raise ValueError(f"both sizes must be at least 1, got {size_in} -> {size_out}")


def apply_rows(matrix: Float[np.ndarray, "size_out size_in"], values: Any) -> np.ndarray:
    """Return `matrix @ values` along the first axis, for a matrix whose rows have few entries near each other.

    It adds up the few rows that count, one block of output rows at a time, and never copies all of `values`, which
    may be huge. It is not a matrix product because BLAS divides even a small one among threads; if other work occupies
    the cores (the network, for example), the product waits for its threads a hundred times longer than it computes.

    Args:
        matrix: the weights, for example those of `cubic_matrix`. The result has their dtype.
        values: an array or a memory map [size_in, ...] of any real dtype.

    Returns:
        [size_out, ...]. A NaN or an infinity in `values` spreads to the rows that read it.
    """
    taps, weights = _entries(matrix)
    weights = weights.reshape(*weights.shape, *[1] * (values.ndim - 1))
    result = np.empty((matrix.shape[0], *values.shape[1:]), matrix.dtype)
    row_bytes = max(result[:1].nbytes, 1)
    step = max(_BLOCK_BYTES // row_bytes, 1)
    for start in range(0, matrix.shape[0], step):
        out = result[start : start + step]
        # Neighbouring output rows read mostly the same input rows, which are fetched once. This also makes them
        # contiguous if `values` is a transposed view.
        used, places = np.unique(taps[:, start : start + step], return_inverse=True)
        rows = values[used].astype(matrix.dtype, order="C", copy=False)
        places, term = places.reshape(len(taps), -1), np.empty_like(out)
        for k in range(len(taps)):
            rows.take(places[k], axis=0, out=term if k else out, mode="clip")  # "raise" would go through a copy
            np.multiply(term if k else out, weights[k, start : start + step], out=term if k else out)
            if k:
                out += term
    return result


def _entries(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns and the values of each row's entries, [most entries of a row, rows].

    Rows with fewer entries are filled up with entries of zero.
    """
    row, tap = np.nonzero(matrix)
    count = np.bincount(row, minlength=len(matrix))
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    # A row with fewer entries reads its first input again, with weight zero.
    first = np.zeros(len(matrix), np.int64)
    first[row[::-1]] = tap[::-1]
    taps = np.tile(first, (max(count.max(initial=0), 1), 1))
    weights = np.zeros(taps.shape, matrix.dtype)
    taps[place, row] = tap
    weights[place, row] = matrix[row, tap]
    return taps, weights


def resize_cubic(
    depth_hw: Float[np.ndarray, "height width"], size: tuple[int, int], a: float = -0.75
) -> Float32[np.ndarray, "new_height new_width"]:
    """Resize a depth map as `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` does, in float32.

    The filter overshoots at edges by up to a fifth of the step. The result is not clipped, so a depth map without
    negative values may become slightly negative. The unit (relative inverse depth or metres) stays that of the input.

    Args:
        depth_hw: [height, width].
        size: (new_height, new_width).
        a: the kernel's parameter, see `cubic_matrix`.

    Returns:
        float32 [new_height, new_width], within 1e-5 of PyTorch's, relative to the largest value.
    """
    matrices = [
        cubic_matrix(n_in, n_out, a=a).astype(np.float32) for n_in, n_out in zip(depth_hw.shape, size, strict=True)
    ]
    return _apply_both(matrices[0], matrices[1], depth_hw)


def resize_linear(
    depth_hw: Float[np.ndarray, "height width"], size: tuple[int, int]
) -> Float32[np.ndarray, "new_height new_width"]:
    """Resize a depth map as `torch.nn.functional.interpolate(mode="bilinear", align_corners=True)` does, in float32.

    The unit (relative inverse depth or metres) stays that of the input. Except for rounding, no value leaves the
    input's range.

    Args:
        depth_hw: [height, width].
        size: (new_height, new_width).

    Returns:
        float32 [new_height, new_width].
    """
    matrices = [linear_matrix(n_in, n_out) for n_in, n_out in zip(depth_hw.shape, size, strict=True)]
    return _apply_both(matrices[0], matrices[1], depth_hw)


def linear_matrix(size_in: int, size_out: int, dtype: Any = np.float32) -> np.ndarray:
    """Return `linear_taps` as a matrix [size_out, size_in] of `dtype`: `resized = matrix @ values`."""
    low, high, fraction = linear_taps(size_in, size_out)
    fraction = fraction.astype(dtype)
    matrix = np.zeros((size_out, size_in), dtype)
    index = np.arange(size_out)
    matrix[index, low] = 1 - fraction
    matrix[index, high] += fraction  # `low` and `high` are equal at the last input, so their weights add up
    return matrix


def _apply_both(rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return `rows @ values @ columns.T`, computed in the order whose intermediate array is smaller."""
    if rows.shape[0] * columns.shape[1] <= rows.shape[1] * columns.shape[0]:
        return np.ascontiguousarray(apply_rows(columns, apply_rows(rows, values).T).T)
    return apply_rows(rows, np.ascontiguousarray(apply_rows(columns, values.T).T))
