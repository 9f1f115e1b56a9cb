"""Writes files that `torch.load(path, weights_only=True)` opens, without PyTorch."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np

from dajax.weights.layout import contiguous
from dajax.weights.safetensors_io import dtype_code
from dajax.weights.torch_files.torch_file import FLOAT_STORAGES

_ROOT = "archive"  # torch.save's name of the folder if it does not write to a named file
_ALIGNMENT = 64  # of tensors in the file, as in torch.save
_WIDE = 2_000_000_000  # bytes of a record; a little above this, zipfile itself changes to 64 bits
_KINDS = {dtype: kind for kind, dtype in FLOAT_STORAGES.items()}
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def write_torch(
    file: BinaryIO, infos: Mapping[str, tuple[np.dtype, tuple[int, ...]]], get: Callable[[str], np.ndarray]
) -> None:
    """Write a state dict, tensor by tensor; the same tensors make the same bytes.

    Args:
        file: where to write; must be seekable.
        infos: {name: (dtype, shape)} of all tensors, in the order of the state dict.
        get: called with each name in that order; returns the tensor, of that type and shape.

    Raises:
        WeightsError: a tensor is not float16, bfloat16, float32 or float64.
    """
    pickle = _pickle(infos)
    with zipfile.ZipFile(file, "w") as archive:
        _write_record(archive, file, "data.pkl", memoryview(pickle))
        _write_record(archive, file, "byteorder", memoryview(b"little"))
        for key, name in enumerate(infos):
            array = contiguous(get(name))
            _write_record(archive, file, f"data/{key}", array.reshape(-1).view(np.uint8).data)
        _write_record(archive, file, "version", memoryview(b"3\n"))


def _write_record(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: memoryview) -> None:
    info = zipfile.ZipInfo(f"{_ROOT}/{name}", (1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # zipfile's own choice depends on the machine
    info.file_size = len(data)
    wide = len(data) > _WIDE
    # An extra field pads the header of 30 bytes and the name, as in torch.save. Sizes of 64 bits are another such
    # field, of 20 bytes.
    before = file.tell() + 30 + len(info.filename) + 4 + (20 if wide else 0)
    padding = -before % _ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    with archive.open(info, "w", force_zip64=wide) as record:
        record.write(data)


def _pickle(infos: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> bytes:
    """Return what torch.save would pickle: a protocol 2 pickle of an OrderedDict, without a memo."""
    tensors = [_text(name) + _tensor(key, dtype, shape) for key, (name, (dtype, shape)) in enumerate(infos.items())]
    return b"".join([b"\x80\x02", _ORDERED_DICT, b"(", *tensors, b"u."])


def _tensor(key: int, dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    dtype_code(dtype)  # refuses types that parameters cannot have
    kind = f"ctorch\n{_KINDS[dtype]}\n".encode()
    storage = [b"(", _text("storage"), kind, _text(str(key)), _text("cpu"), _number(math.prod(shape)), b"tQ"]
    # As in PyTorch, an axis of length 0 counts as 1 for the strides of the axes before it.
    strides = [math.prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape))]
    view = [_number(0), _sizes(shape), _sizes(strides), b"\x89", _ORDERED_DICT]
    return b"".join([b"ctorch._utils\n_rebuild_tensor_v2\n(", *storage, *view, b"tR"])


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def _number(number: int) -> bytes:
    if number < 2**31:
        return b"J" + number.to_bytes(4, "little")
    return b"\x8a\x09" + number.to_bytes(9, "little")


def _sizes(sizes: tuple[int, ...] | list[int]) -> bytes:
    return b"".join([b"(", *map(_number, sizes), b"t"])
