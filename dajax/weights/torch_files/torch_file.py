"""Reads PyTorch's .pth, .pt and .bin files tensor by tensor, without PyTorch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dajax import limits
from dajax.errors import WeightsError, shown
from dajax.files import open_regular, wrong_download
from dajax.weights.report import raise_problems
from dajax.weights.safetensors_io import FLOAT_DTYPES
from dajax.weights.torch_files.torch_names import Foreign, Placeholder, Tensor
from dajax.weights.torch_files.torch_pickle import interpret
from dajax.weights.torch_files.torch_zip import Record, TorchZip

# PyTorch's names of the types that parameters have.
FLOAT_STORAGES: dict[str, np.dtype] = {
    "HalfStorage": FLOAT_DTYPES["F16"],
    "BFloat16Storage": FLOAT_DTYPES["BF16"],
    "FloatStorage": FLOAT_DTYPES["F32"],
    "DoubleStorage": FLOAT_DTYPES["F64"],
}


class TorchTensor(NamedTuple):
    """A view of a record: the place of its first element and the strides of its axes, in bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    record: str
    start: int

    @property
    def span(self) -> int:
        """The number of bytes from the first element to the end of the last one."""
        return _span(self.shape, self.strides, self.dtype.itemsize)


class TorchFile:
    """An open file of `torch.save`. Everything but the tensors' values has been read and checked.

    Nothing in the file is imported or called; see `torch_pickle`. The file is a state dict, or a training checkpoint
    with one or several of them, each under a key. If there are several, names begin with their keys.

    Attributes:
        tensors: {name as in the file: where it lies}, of those of floating-point numbers.
        unusable: {name: why it is no param}, of everything else in the model.
        foreign: names of the classes and functions that made other values in the file. These values were skipped.

    Raises:
        WeightsError: the file is not there, not a regular file, damaged, or of another kind; or no tensors can be found
            in it without running what it names.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = open_regular(self.path, error=WeightsError)
        try:
            _refuse_other_files(self._file.read(512), self.path)
            self._zip = TorchZip(self._file, self.path)
            self._swapped = self._is_big_endian()
            found = interpret(self._zip.content("data.pkl", limits.MAX_TORCH_PICKLE_BYTES), self.path)
            self.foreign = found.foreign
            model = _find_model(found.value, self.path)
            self.tensors, self.unusable = _check_tensors(model, self._zip.records, self.path)
        except BaseException:
            self._file.close()
            raise

    def _is_big_endian(self) -> bool:
        # Files from before PyTorch 2.1 do not have this record.
        order = self._zip.content("byteorder", 100) if "byteorder" in self._zip.records else b"little"
        if order not in (b"little", b"big"):
            raise WeightsError(f"{self.path}: byteorder must be little or big, got {shown(order)}")
        return order == b"big"

    def read(self, name: str, buffer: np.ndarray | None = None) -> np.ndarray:
        """Return one tensor, after checking its record against its checksum. Several threads may read at once.

        Args:
            name: of the tensor.
            buffer: uint8, as long as the largest tensor's values take. If it is given, the result may lie in it, until
                the next call.

        Returns:
            The tensor as it is stored: where PyTorch had a transposed, sliced or expanded view, this is one too.
        """
        tensor = self.tensors[name]
        span = tensor.span
        raw = np.empty(span, np.uint8) if buffer is None or span > len(buffer) else buffer[:span]
        try:
            self._zip.read(tensor.record, tensor.start, raw.data)
        except WeightsError as error:
            raise WeightsError(f"{error} (tensor {shown(name)})") from None
        if self._swapped:
            raw.view(f"u{tensor.dtype.itemsize}").byteswap(inplace=True)
        return np.ndarray(tensor.shape, tensor.dtype, raw, strides=tensor.strides)

    def verify_rest(self) -> None:
        """Check every record that was not read yet against its checksum, such as an optimizer's state.

        Raises:
            WeightsError: one is damaged, and so the file is not what was saved.
        """
        for name in self._zip.records:
            self._zip.verify(name)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_AGAIN = "torch.save(torch.load(path, weights_only=True), path) with a current PyTorch"
_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")


def _refuse_other_files(head: bytes, path: Path) -> None:
    """Say what a file is that is often found under this name.

    Raises:
        WeightsError: it is anything else than a zip archive.
    """
    if head.startswith(b"PK\3\4") and len(head) > 22:  # the length of an archive's end
        return
    if len(head) <= 22:
        what = f"has {len(head)} bytes: too short for a PyTorch file"
    elif wrong := wrong_download(head, "weights"):
        what = wrong
    elif head[0] == 0x80 and _LEGACY_MAGIC in head[:32]:
        what = f"is in the format of PyTorch before 1.6, which has no checksums: save it again, {_AGAIN}"
    elif head[257:262] == b"ustar":
        what = f"is a tar archive: unpack it, or, if PyTorch before 0.1.10 wrote it, save it again, {_AGAIN}"
    elif head[0] == 0x80:
        what = "is a bare pickle, not a file of torch.save"
    elif head[8:9] == b"{":
        what = "looks like a safetensors file: name it .safetensors"
    else:
        what = f"is not a PyTorch file: it begins with {head[:8]!r}"
    raise WeightsError(f"{path} {what}")


def _find_model(top: object, path: Path) -> Mapping[Any, Any]:
    """Return the dict of tensors in what was saved. Of several dicts, return all tensors: "key.name" is their name.

    Raises:
        WeightsError: there is none.
    """
    if not isinstance(top, dict):
        what = f"an object of {shown(top.kind)}, which dajax does not run" if isinstance(top, Foreign) else _kind(top)
        raise WeightsError(f"{path} holds {what}; expected a dict of tensors: save model.state_dict()")
    dicts = [key for key, value in top.items() if isinstance(value, dict) and _has_tensors(value)]
    floats = [key for key, value in top.items() if isinstance(value, Tensor) and value.storage.kind in FLOAT_STORAGES]
    if len(dicts) == 1 and not floats:
        return top[dicts[0]]
    if not dicts and _has_tensors(top):
        return top
    if not dicts:
        listed = ", ".join(_key(key, top[key]) for key in list(top)[:20] if isinstance(key, str)) or "none"
        raise WeightsError(f"{path} has no tensors, neither at its top, where the keys are {listed}, nor below a key")
    pairs = [(key, top[key]) for key in floats]
    pairs += [(f"{key}.{name}", value) for key in dicts for name, value in top[key].items()]
    if len(found := dict(pairs)) < len(pairs):
        raise WeightsError(f"{path} has two tensors whose keys and names, joined by dots, are the same")
    return found


def _key(key: str, value: object) -> str:
    """Return a key for a message, and the class of its value if that could not be read."""
    made_by = f" (an object of {shown(value.kind)}: save its state_dict())" if isinstance(value, Foreign) else ""
    return f"{shown(key)}{made_by}"


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(item, Tensor) for item in value.values())


def _check_tensors(
    model: Mapping[Any, Any], records: Mapping[str, Record], path: Path
) -> tuple[dict[str, TorchTensor], dict[str, str]]:
    """Return the tensors that can be params, and why the other values cannot."""
    if len(model) > limits.MAX_TENSORS:
        raise WeightsError(f"{path} holds {len(model):,} tensors; at most {limits.MAX_TENSORS:,} are read")
    tensors, unusable, problems = {}, {}, []
    for name, value in model.items():
        kind = value.storage.kind if isinstance(value, Tensor) else _kind(value)
        if isinstance(name, str) and kind not in FLOAT_STORAGES:
            unusable[name] = f"expected {', '.join(map(str, FLOAT_STORAGES.values()))}, got {kind}"
            continue
        found = _check_tensor(value, records) if isinstance(name, str) else "names of tensors are strings"
        if isinstance(found, str):
            problems.append(f"{shown(name) if isinstance(name, str) else _kind(name)}: {found}")
        else:
            tensors[name] = found
    raise_problems(f"{path} cannot be read as a model", problems)
    return tensors, unusable


def _check_tensor(value: Tensor, records: Mapping[str, Record]) -> TorchTensor | str:
    """Return the place of a tensor, or what is wrong with it."""
    storage, shape = value.storage, value.shape
    dtype = FLOAT_STORAGES[storage.kind]
    record = records.get(name := f"data/{storage.key}")
    if record is None:
        return f"record {shown(name)} is missing"
    if storage.count * dtype.itemsize != record.size:
        return (
            f"{shown(storage.count)} elements of {dtype} do not take the {record.size:,} bytes of record {shown(name)}"
        )
    if len(shape) != len(value.strides) or len(shape) > limits.MAX_TORCH_RANK:
        return f"has {len(shape)} axes and {len(value.strides)} strides; at most {limits.MAX_TORCH_RANK} are read"
    if not all(type(number) is int and number >= 0 for number in (value.offset, *shape, *value.strides)):
        return "offset, shape and strides must be whole numbers, not negative"
    if value.offset + _span(shape, value.strides, 1) > storage.count:
        return f"reaches beyond the {storage.count:,} elements of record {shown(name)}: {_view(value)}"
    if _span(shape, value.strides, 1) > max(4 * math.prod(shape), limits.MAX_TORCH_EXPANDED_ELEMENTS):
        return f"is spread over too much of record {shown(name)}: {_view(value)}"
    # An axis of length 0 counts as 1 here, because numpy limits the other axes of empty arrays.
    if math.prod(max(size, 1) for size in shape) > max(storage.count, limits.MAX_TORCH_EXPANDED_ELEMENTS):
        return f"shape {shown(shape)} repeats the {storage.count:,} elements of record {shown(name)} too often"
    # Without a second element the stride means nothing and may be any number.
    used = [stride if size > 1 and 0 not in shape else 1 for size, stride in zip(shape, value.strides, strict=True)]
    strides = [stride * dtype.itemsize for stride in used]
    return TorchTensor(dtype, shape, tuple(strides), name, value.offset * dtype.itemsize)


def _span(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> int:
    if 0 in shape:
        return 0
    return itemsize + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _view(tensor: Tensor) -> str:
    return f"offset {shown(tensor.offset)}, shape {shown(tensor.shape)}, strides {shown(tensor.strides)}"


def _kind(value: object) -> str:
    return value.kind if isinstance(value, Placeholder) else type(value).__name__
