"""The names of Python that a PyTorch file may mention, and the plain data that they become.

Nothing is imported and nothing is called: a name is a key of the table below, and "calling" it runs a function of this
module on data that has been read already. What no model needs (lists, sets, numbers, arrays, a training script's
arguments) becomes a placeholder and its content is dropped. So does whatever is made with a name that is not in the
table.

What torch.save emits: PyTorch, torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False, slots=True)
class Placeholder:
    """A value in the file that no model needs."""

    kind: str


@dataclass(frozen=True, eq=False, slots=True)
class Foreign(Placeholder):
    """A name that is not in the table, or whatever the file makes with it. `kind` is the name."""


LIST, SET, NUMBER, BYTES, OBJECT = map(Placeholder, ("a list", "a set", "a number", "bytes", "an object"))


class OrderedDict(dict[Any, Any]):
    """What collections.OrderedDict becomes: a dict that may be given attributes, which are dropped."""

    __slots__ = ()


Arguments = tuple[Any, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A name of Python. `build` returns what calling it makes, or None if it is not called with such arguments."""

    module: str
    name: str
    build: Callable[[Arguments], object | None] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """The place of values: `kind` is PyTorch's name of the type, `key` names the record, `count` is in elements."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A view of a storage as the file describes it, with offset and strides in elements. Nothing is checked yet."""

    storage: Storage
    offset: Any
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


def _rebuild_tensor(arguments: Arguments) -> Tensor | None:
    match arguments:
        case (Storage() as storage, offset, tuple() as shape, tuple() as strides):
            return Tensor(storage, offset, shape, strides)
    return None


def _rebuild_tensor_v2(arguments: Arguments) -> Tensor | None:
    match arguments:
        # A seventh argument would make the tensor a conjugate or negative view, whose values are not those that are
        # stored.
        case (storage, offset, shape, strides, bool(), OrderedDict()):
            return _rebuild_tensor((storage, offset, shape, strides))
    return None


def _rebuild_tensor_v3(arguments: Arguments) -> Tensor | None:
    match arguments:
        # The type, which no model's tensors have, is the last argument; the storage is one of bytes.
        case (Storage(kind="UntypedStorage"), _, _, _, bool(), OrderedDict(), Global(module="torch")):
            return _rebuild_tensor(arguments[:4])
    return None


def _rebuild_parameter(arguments: Arguments) -> Tensor | None:
    match arguments:
        case (Tensor() as tensor, bool(), OrderedDict()) | (Tensor() as tensor, bool(), OrderedDict(), _):
            return tensor
    return None


def _ordered_dict(arguments: Arguments) -> OrderedDict | None:
    return None if arguments else OrderedDict()


def _default_dict(arguments: Arguments) -> OrderedDict | None:
    match arguments:
        case () | (None | Global() | Foreign(),):  # what would make missing values
            return OrderedDict()
    return None


def _object(arguments: Arguments) -> Placeholder:
    return OBJECT


_FLOATS = ("Double", "Float", "Half", "BFloat16", "ComplexDouble", "ComplexFloat")
_INTEGERS = ("Long", "Int", "Short", "Char", "Byte", "Bool")
STORAGES = {("torch", f"{kind}Storage") for kind in _FLOATS + _INTEGERS} | {("torch.storage", "UntypedStorage")}

_FLOAT_DTYPES = ("float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128")
_INTEGER_DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


# Besides tensors: what optimizers, schedulers, argparse and metrics computed with numpy leave in training checkpoints.
_CALLED: dict[tuple[str, str], Callable[[Arguments], object | None]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _default_dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): _object,
    ("torch", "device"): _object,
    ("collections", "Counter"): _object,
    ("__builtin__", "set"): _object,
    ("builtins", "set"): _object,
    ("_codecs", "encode"): _object,
    ("numpy", "dtype"): _object,
    ("numpy.core.multiarray", "scalar"): _object,
    ("numpy._core.multiarray", "scalar"): _object,
    ("numpy.core.multiarray", "_reconstruct"): _object,
    ("numpy._core.multiarray", "_reconstruct"): _object,
    ("numpy.core.numeric", "_frombuffer"): _object,
    ("numpy._core.numeric", "_frombuffer"): _object,
}
_MENTIONED = (
    STORAGES
    | {("torch", name) for name in _FLOAT_DTYPES + _INTEGER_DTYPES}
    | {("numpy", "ndarray"), ("argparse", "Namespace")}
)

# This is the whole list: any other name becomes a `Foreign`.
GLOBALS = {pair: Global(*pair) for pair in _MENTIONED} | {pair: Global(*pair, build) for pair, build in _CALLED.items()}
# The one class whose instances are made without a call.
NAMESPACE = GLOBALS["argparse", "Namespace"]
