"""Reads and writes safetensors files tensor by tensor.

The safetensors package (0.8) is not used, because its memory map kills the process (SIGBUS) if a file is cut while it
is open, and its pages add to the memory (1.95 times the file; here 1.07). Its writer takes all tensors at once, which
would double the memory of a transposed model, and it scrambles arrays that are not contiguous. The tests compare with
it. The format: eight bytes of header length (little endian), a JSON header, the tensors' bytes without holes or
overlaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from dajax import limits
from dajax.errors import WeightsError, shown
from dajax.files import open_regular, wrong_download
from dajax.json_fields import no_repeats
from dajax.weights.layout import contiguous

# In the order of the format's own enumeration, which determines the order of tensors in a file.
FLOAT_DTYPES: dict[str, np.dtype] = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_CODES = {dtype: code for code, dtype in FLOAT_DTYPES.items()}


# Bits of the other types. No param has them, but counters and masks beside a model may.
_OTHER_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

_OTHER = np.dtype(np.void)


class TensorInfo(NamedTuple):
    """The place of one tensor in a file. The type is void if no param can have it."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """An open file whose header has been read and checked against the file's size.

    Attributes:
        tensors: {name: where it lies}, of those of floating-point numbers.
        unusable: {name: why it is no param}, of the others.
        metadata: the file's `__metadata__`.

    Raises:
        WeightsError: the file is not there, not a regular file, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = open_regular(self.path, error=WeightsError)
        try:
            header, self._data_start, size = _read_header(self._file, self.path)
            self.metadata: dict[str, str] = _check_metadata(header.pop("__metadata__", {}), self.path)
            self.tensors = _check_header(header, size - self._data_start, self.path)
            codes = {name: header[name]["dtype"] for name, info in self.tensors.items() if info.dtype == _OTHER}
            self.unusable = {name: f"expected {', '.join(FLOAT_DTYPES)}, got {code}" for name, code in codes.items()}
            self.tensors = {name: info for name, info in self.tensors.items() if info.dtype != _OTHER}
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str, buffer: np.ndarray | None = None) -> np.ndarray:
        """Return one tensor. If `buffer` is given (uint8, long enough), the tensor lies in it until the next call."""
        info = self.tensors[name]
        count = info.stop - info.start
        raw = np.empty(count, np.uint8) if buffer is None else buffer[:count]
        # pread keeps no position, so threads can read at the same time.
        done, view = 0, raw.data
        while done < count:
            got = os.preadv(self._file.fileno(), [view[done:]], self._data_start + info.start + done)
            if not got:
                raise WeightsError(f"{self.path}: the file became shorter while tensor {shown(name)} was read")
            done += got
        return raw.view(info.dtype).reshape(info.shape)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _read_header(file: BinaryIO, path: Path) -> tuple[dict[str, Any], int, int]:
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    if len(head) < 8:
        raise WeightsError(f"{path} has {size} bytes: too short for a safetensors file")
    length = int.from_bytes(head, "little")
    if length > limits.MAX_SAFETENSORS_HEADER_BYTES:  # eight letters, read as a number, are more than any length
        _refuse_disguise(head + file.read(56), path)
    if length == 0 or length > limits.MAX_SAFETENSORS_HEADER_BYTES:
        raise WeightsError(
            f"{path} is not a safetensors file, or is damaged: its header claims {length:,} bytes "
            f"(1 to {limits.MAX_SAFETENSORS_HEADER_BYTES:,} are possible)"
        )
    if 8 + length > size:
        raise WeightsError(f"{path} is cut off: its header claims {length:,} bytes and the file has {size:,}")
    if length > limits.MAX_TENSORS * 200:
        raise WeightsError(f"{path} has a header of {length:,} bytes: far more than any model's")
    file.seek(8)
    text = file.read(length)
    # This stands before the parser, which would need a second for the tensors of an attack. No name has a bare
    # quotation mark.
    if (count := text.count(b'"dtype":')) > limits.MAX_TENSORS:
        raise WeightsError(f"{path} holds {count:,} tensors; at most {limits.MAX_TENSORS:,} are read")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=no_repeats)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} has a damaged header: {error or type(error).__name__}") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path} has a damaged header: a JSON object was expected, got {type(header).__name__}")
    return header, 8 + length, size


def _refuse_disguise(head: bytes, path: Path) -> None:
    """Say what a file is that is often found under this name."""
    if what := wrong_download(head, "weights"):
        raise WeightsError(f"{path} {what}")
    if head.startswith(b"PK\x03\x04"):
        raise WeightsError(f"{path} is a zip archive (a PyTorch .pth or .bin?), not a safetensors file")


def _check_metadata(metadata: Any, path: Path) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WeightsError(f"{path} has a damaged header: __metadata__ must map strings to strings")
    return metadata


def _check_header(header: Mapping[str, Any], data_size: int, path: Path) -> dict[str, TensorInfo]:
    if len(header) > limits.MAX_TENSORS:
        raise WeightsError(f"{path} holds {len(header):,} tensors; at most {limits.MAX_TENSORS:,} are read")
    tensors = {name: _check_entry(name, entry, path) for name, entry in header.items()}
    # The format demands no holes, no overlaps and no bytes behind the last tensor. That leaves no place to hide things.
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != position:
            what = "overlaps the tensor before it" if info.start < position else "leaves a hole before it"
            raise WeightsError(f"{path}: tensor {shown(name)} at bytes {info.start}..{info.stop} {what}")
        position = info.stop
    if position != data_size:
        what = "cut off" if position > data_size else "followed by bytes that belong to no tensor"
        raise WeightsError(f"{path} is {what}: its tensors take {position:,} bytes and it has {data_size:,}")
    return tensors


def _check_entry(name: str, entry: Any, path: Path) -> TensorInfo:
    def damaged(what: str) -> WeightsError:
        return WeightsError(f"{path}: tensor {shown(name)}: {what}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise damaged(f"expected dtype, shape and data_offsets, got {shown(entry)}")
    code = entry["dtype"]
    if not isinstance(code, str) or (code not in FLOAT_DTYPES and code not in _OTHER_BITS):
        raise damaged(f"dtype must be one of {', '.join(FLOAT_DTYPES)}, got {shown(code)}")
    dtype = FLOAT_DTYPES.get(code, _OTHER)
    bits = _OTHER_BITS[code] if dtype == _OTHER else 8 * dtype.itemsize
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > 32:
        raise damaged(f"shape must be a list of sizes, got {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(f"data_offsets must be two rising positions, got {shown(offsets)}")
    # Python's integers do not overflow, so a product beyond 2^64 is simply wrong.
    if math.prod(shape) * bits != 8 * (offsets[1] - offsets[0]):
        raise damaged(f"{code} of shape {shown(shape)} does not take the {offsets[1] - offsets[0]:,} bytes it has")
    return TensorInfo(dtype, tuple(shape), *offsets)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def dtype_code(dtype: np.dtype) -> str:
    """Return the format's name of a type.

    Raises:
        WeightsError: it is not a floating-point type of the format.
    """
    if dtype not in _CODES:
        raise WeightsError(f"parameters must be float16, bfloat16, float32 or float64 to be saved, got {dtype}")
    return _CODES[dtype]


def write_safetensors(
    file: BinaryIO,
    infos: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    get: Callable[[str], np.ndarray],
    *,
    metadata: Mapping[str, str],
) -> None:
    """Write a file, tensor by tensor, byte for byte as the safetensors package does.

    Args:
        file: the open file to write to.
        infos: {name: (dtype, shape)} of all tensors.
        get: called with each name in the order of the file; returns the tensor, of that type and shape.
        metadata: goes into the header.
    """
    ranks = {dtype: rank for rank, dtype in enumerate(FLOAT_DTYPES.values())}
    order = sorted(infos, key=lambda name: (-ranks[infos[name][0]], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        dtype, shape = infos[name]
        stop = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": dtype_code(dtype), "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        # Only C-contiguous arrays have their bytes in the order that the header promises.
        array = contiguous(get(name))
        file.write(array.reshape(-1).view(np.uint8).data)
