"""The interpreter: data comes out, and nothing is imported, called or set."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import pathlib
import pickle
import re
import struct

import numpy as np
import pytest
from refusal import refused
from torch_parts import (
    ORDERED_DICT,
    mapping,
    name,
    number,
    numbers,
    pickled,
    stacked,
    storage,
    tensor,
    text,
    torch_file,
    unmemoised,
)

from dajax import limits
from dajax.errors import WeightsError
from dajax.weights.torch_files import torch_pickle
from dajax.weights.torch_files.torch_file import TorchFile
from dajax.weights.torch_files.torch_names import Global, Tensor
from dajax.weights.torch_files.torch_pickle import interpret

# Opcodes of torch.save with pickle_protocol 2 to 5. Written down once more: the table is not to grow by accident.
KNOWN = b".N\x88\x89KMJ\x8aGX\x8cCB\x96()\x85\x86\x87t}su]ae\x8f\x90\x91qr\x94hj\x95c\x93R\x81\x92bQ"


@pytest.mark.parametrize("code", [bytes([code]) for code in range(256) if code not in KNOWN])
def test_unknown_opcodes(code):
    """INST, OBJ, EXT1 to 4, PERSID, LONG4, GET, PUT, POP, DUP, BINUNICODE8, buffers, all others."""
    body = text("os") + text("system") + b"(" + text("true") + b"t" + code + b"os\nsystem\n" + bytes(16)
    refused(lambda: interpret(pickled(body), "model.pth"), WeightsError, r"^model\.pth: data\.pkl: opcode .* none that")


def test_known_opcodes():
    assert {code[0] for code in torch_pickle._HANDLERS} | {ord(".")} == {*KNOWN}


REBUILD = name("torch._utils", "_rebuild_tensor_v2")
NAMESPACE = name("argparse", "Namespace")
VIEW = storage() + number(0) + numbers((2, 3)) + numbers((3, 1))

# What uses allowed names and opcodes as torch.save never does.
MISUSES = {
    "call of a dict": (b"})R", "calls dict"),
    "call of an OrderedDict": (ORDERED_DICT + b")R", "calls OrderedDict"),
    "call of a string": (text("eval") + b")R", "calls str"),
    "call of a tuple": (b"))R", "calls tuple"),
    "call of a list": (b"])R", "calls a list"),
    "call of a tensor": (tensor() + b")R", "calls Tensor"),
    "call of what was called": (name("torch", "Size") + b")R)R", "calls an object"),
    "call of a storage's type": (name("torch", "FloatStorage") + b")R", "calls torch.FloatStorage"),
    "call of a dtype": (name("torch", "float32") + b")R", "calls torch.float32"),
    "call of Namespace": (NAMESPACE + b")R", "calls argparse.Namespace"),
    "call of ndarray": (name("numpy", "ndarray") + b")R", "calls numpy.ndarray"),
    "call with a list": (name("torch", "Size") + b"]R", "calls torch.Size"),
    "call with a name": (name("torch", "Size") * 2 + b"R", "calls torch.Size"),
    "OrderedDict of pairs": (name("collections", "OrderedDict") + b"]\x85R", "OrderedDict with arguments"),
    "tensor of nothing": (REBUILD + b")R", "_rebuild_tensor_v2 with arguments"),
    "tensor without a storage": (REBUILD + b"(NK\0))\x89" + ORDERED_DICT + b"tR", "with arguments"),
    "tensor on a tensor": (tensor(tensor()), "with arguments"),
    "tensor on a name": (tensor(name("torch", "FloatStorage")), "with arguments"),
    "tensor with hooks of a dict": (REBUILD + b"(" + VIEW + b"\x89}tR", "with arguments"),
    "tensor with shape of a list": (REBUILD + b"(" + storage() + b"K\0])\x89" + ORDERED_DICT + b"tR", "with arguments"),
    "negative view": (tensor().removesuffix(b"tR") + mapping({"neg": b"\x88"}) + b"tR", "with arguments"),
    "numbers of one type read as another": (
        tensor(rebuild="_rebuild_tensor_v3").removesuffix(b"tR") + name("torch", "int32") + b"tR", "with arguments"),
    "parameter of a dict": (
        name("torch._utils", "_rebuild_parameter") + b"}\x89" + ORDERED_DICT + b"\x87R", "with arguments"),
    "instance of a storage": (name("torch", "FloatStorage") + b")\x81", "instance of torch.FloatStorage"),
    "instance of OrderedDict": (name("collections", "OrderedDict") + b")\x81", "instance of collections.Ordered"),
    "instance of set": (name("builtins", "set") + b")\x81", "instance of builtins.set"),
    "instance with keywords": (NAMESPACE + b")}\x92", "instance of argparse.Namespace"),
    "call of an unknown name with a list": (name("pathlib", "PosixPath") + b"]R", "calls pathlib.PosixPath"),
    "tensor on what an unknown name made": (tensor(name("a", "b") + b")R"), "with arguments"),
    "defaultdict of a dict": (name("collections", "defaultdict") + b"}\x85R", "defaultdict with arguments"),
    "instance with arguments": (NAMESPACE + b"K\1\x85\x81", "instance of argparse.Namespace"),
    "instance of a string": (text("Namespace") + b")\x81", "instance of str"),
    "state of a function": (REBUILD + mapping({"__defaults__": b")"}) + b"b", "state of torch._utils._re"),
    "state of a function, with slots": (REBUILD + b"N" + mapping({"__defaults__": b")"}) + b"\x86b", "state of torch"),
    "state of a dict": (b"}}b", "state of dict"),
    "state of a tensor": (tensor() + mapping({"dtype": b"N"}) + b"b", "state of Tensor"),
    "state of a storage": (storage() + b"}b", "state of Storage"),
    "state of a list": (b"]}b", "state of a list"),
    "state of None": (b"N}b", "state of NoneType"),
    "items into a name": (name("collections", "OrderedDict") + text("fromkeys") + b"Ns", "into collections.Ordered"),
    "items into a tensor": (tensor() + text("shape") + b"Ns", "into Tensor"),
    "items into a list": (b"]NNs", "into a list"),
    "items into an array": (name("numpy", "dtype") + b")RNNs", "into an object"),
    "items without a value": (b"}(Nu", "1 keys and values"),
    "a key twice": (b"}" + (text("w") + b"Ns") * 2, "'w' stands twice"),
    "a key twice in one go": (b"}(" + (text("w") + b"N") * 2 + b"u", "'w' stands twice"),
    "append to a dict": (b"}Na", "dict stands where a list"),
    "append to a tuple": (b")Na", "tuple stands where a list"),
    "append to a set": (b"\x8fNa", "a set stands where a list"),
    "add to a list": (b"](N\x90", "a list stands where a set"),
    "storage of a string": (text("0") + b"Q", "storage is described"),
    "tensor on a storage of an unknown name": (tensor(storage(module="builtins", kind="eval")), "with arguments"),
    "storage of a function": (storage(module="torch._utils", kind="_rebuild_tensor_v2"), "storage is described"),
    "storage of a dtype": (storage(kind="float32"), "storage is described"),
    "storage that is a module": (b"(" + text("module") + name("torch", "FloatStorage") + b"NNtQ", "storage is desc"),
    "storage with a path of bytes": (
        b"(" + text("storage") + name("torch", "FloatStorage") + b"C\x010" + text("cpu") + b"K\6tQ", "storage is desc"),
    "storage with a view": (storage().removesuffix(b"tQ") + b"NtQ", "storage is desc"),
    "storage with half an element": (
        b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"G" + bytes(8) + b"tQ",
        "storage is desc"),
    "name of numbers": (b"K\1K\2\x93", "two strings"),
    "name without an end": (b"c" + b"x" * 1000, "does not end"),
    "name that is not UTF-8": (b"c\xff\nx\n", "not UTF-8"),
    "text that is not UTF-8": (b"X\1\0\0\0\xff", "not UTF-8"),
    "surrogate": (b"X\3\0\0\0\xed\xa0\x80", "not UTF-8"),
    "memo of nothing": (b"q\0", "too little"),
    "memo that is not set": (b"h\7", "memo 7 is used"),
    "memo that is not set, far off": (b"j\xff\xff\xff\xff", "memo 4294967295 is used"),
    "tuple of nothing": (b"\x87", "too little"),
    "tuple of less": (b"N\x86", "too little"),
    "across a mark": (b"NN(\x86", "too little"),
    "pop across a mark": (name("torch", "Size") + b"()R", "too little"),
    "no mark": (b"Nt", "no mark"),
    "open mark": (b"N(", "does not end where"),
    "nothing": (b"", "does not end where"),
    "two things": (b"NN", "does not end where"),
    "more after the end": (b"N.N", "does not end where"),
    "a second beginning": (b"\x80\2N", r"opcode b'\\x80'"),
    "frame past the end": (b"\x95" + b"\xff" * 8 + b"N", "a frame is longer"),
    "text past the end": (b"X\xff\xff\xff\x7f", "2,147,483,647 bytes wanted"),
    "bytes past the end": (b"\x96" + b"\xff" * 8, "18,446,744,073,709,551,615 bytes wanted"),
    "number past the end": (b"\x8a\xff\1", "255 bytes wanted"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISUSES)
def test_misuse(kind):
    body, match = MISUSES[kind]
    message = refused(lambda: interpret(pickled(body), "model.pth"), WeightsError, match)
    assert message.startswith("model.pth: data.pkl: ")
    assert len(message) < 500


MANY = limits.MAX_TORCH_OPCODES
MOST = limits.MAX_TORCH_PICKLE_BYTES - 3


def counted(code, count=MANY):
    return b"".join(code % struct.pack("<I", index) for index in range(count))


TENSOR_PARTS = REBUILD + b"q\0" + storage() + b"q\1" + ORDERED_DICT + b"q\2"

# What takes most time or memory of all that was tried.
BOMBS = {
    "marks": lambda: b"(" * MANY,
    "dicts": lambda: b"}" * MANY,
    "dicts with a key": lambda: text("a") + b"q\1" + b"}h\1Ns" * (MANY // 4),
    "tuples in tuples": lambda: b")" + b"\x85" * MANY,
    "tuples that double": lambda: b")" + b"\x94h\0\x86q\0" * (MANY // 4),
    "a memo": lambda: b"N" + counted(b"r%s"),
    "texts beyond the BMP": lambda: b"".join(
        b"\x8c\x0a%06d\xf0\x9f\x98\x80" % index for index in range(MANY // 2)) + b"N",
    "one text": lambda: text("a" * (MOST - 10) + "😀") + b"N",
    "long numbers": lambda: (b"\x8a\xff" + b"\x7f" * 255) * (MOST // 257),
    "tensors of 100,000 axes": lambda: b"".join(
        [TENSOR_PARTS, b"(", b"K\1" * 100_000, b"tq\3", b"h\0(h\1K\0h\3h\3\x88h\2tR" * 9000]),
    "names of half the file": lambda: text("a" * (MOST - 10 * (MANY // 4))) + b"q\1" + b"h\1h\1\x93" * (MANY // 4),
    # Python's dicts become slow with such keys.
    "keys of one hash": lambda: b"}" + b"".join(number(index * (2**61 - 1)) + b"Ns" for index in range(30_000)) + b"N",
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs(kind):
    body = BOMBS[kind]()
    assert len(body) <= MOST + 9
    refused(lambda: interpret(pickled(body), "model.pth"), WeightsError, "opcodes: far more|cut off|does not end")


def interpreted(body):
    return interpret(pickled(body), "model.pth").value


def test_self_reference():
    """Nothing walks the data, and so nothing ends up in a circle."""
    itself = interpreted(b"}q\0" + text("model") + b"h\0s")
    assert itself["model"] is itself
    assert interpreted(b"]q\0h\0a").kind == "a list"
    assert interpreted(ORDERED_DICT + b"q\0h\0b") == {}


def test_depth(tmp_path):
    """Tens of thousands of dicts or tuples in one another are built and let go without recursion."""
    dicts = b"}" + (text("a") + b"}") * 50_000 + b"s" * 50_000
    tuples = b")" + b"\x85" * 100_000
    path = tmp_path / "model.pth"
    for body in (dicts, tuples, mapping({"model": dicts})):
        path.write_bytes(torch_file(body))
        with pytest.raises(WeightsError, match=r"model\.pth"):
            TorchFile(path)
    path.write_bytes(torch_file(mapping({"w": tensor(), "x": tuples})))
    with TorchFile(path) as file:
        assert list(file.tensors) == ["w"]


def test_values():
    """What real files have, in the forms of protocols 2 to 5."""
    assert interpreted(mapping({"a": b"K\7", "b": b"M\1\1", "c": b"J\xff\xff\xff\xff", "d": number(-(2**80))})) == {
        "a": 7, "b": 257, "c": -1, "d": -(2**80),
    }  # fmt: skip
    assert interpreted(b"(\x88\x89N)t") == (True, False, None, ())
    assert interpreted(b"\x8c\x05caf\xc3\xa9") == "café"
    found = interpreted(mapping({"w": tensor(storage("7", "HalfStorage", 12, location="cuda:1"), 6, (3, 2), (1, 3))}))[
        "w"
    ]
    assert isinstance(found, Tensor)
    assert (found.offset, found.shape, found.strides) == (6, (3, 2), (1, 3))
    assert (found.storage.kind, found.storage.key, found.storage.count) == ("HalfStorage", "7", 12)
    assert isinstance(interpreted(stacked("torch", "float16")), Global)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_values_of_python(protocol):
    """Everything but tensors is made by Python's own pickle module, and its numpy."""
    saved = {
        "epoch": 3, "big": 10**30, "loss": 0.5, "none": None, "flag": True, "name": "vits", "bytes": b"abc",
        "list": [1, [2.0, "three"]], "set": {1, 2}, "tuple": (1, (2, 3)), "counter": collections.Counter([1, 1, 2]),
        "arguments": argparse.Namespace(lr=1e-4, encoder="vits"), "ordered": collections.OrderedDict(a=1),
        "best": {"d1": np.float64(0.9), "n": np.int64(3), "half": np.float16(1), "array": np.arange(6.0).reshape(2, 3)},
        "groups": {0: {"lr": 0.1}, None: 1, (1, 2): 3},
    }  # fmt: skip
    found, foreign = interpret(pickle.dumps(saved, protocol), "model.pth")
    assert foreign == []
    assert isinstance(found, dict)
    assert found.keys() == saved.keys()
    assert (found["epoch"], found["big"], found["name"], found["tuple"]) == (3, 10**30, "vits", (1, (2, 3)))
    assert found["ordered"] == {"a": 1}
    assert len(found["groups"]) == 1


@dataclasses.dataclass
class Arguments:
    """A training script's own class."""

    folder: pathlib.Path
    rates: list[float]


class Level(enum.Enum):
    """An enumeration of a training script."""

    LOW = 1


class Slots:
    """A class whose instances need keywords to be made."""

    def __new__(cls, *, size):
        made = super().__new__(cls)
        made.size = size
        return made

    def __getnewargs_ex__(self):
        return (), {"size": self.size}


class Names(list):
    """A list of a training script."""


FOREIGN = {
    "a path": (pathlib.PurePosixPath("runs/1"), "pathlib.*PurePosixPath"),
    "a date": (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "datetime.datetime"),
    "a duration": (datetime.timedelta(1), "datetime.timedelta"),
    "a default dict of lists": (collections.defaultdict(list, loss=[0.5]), "list"),
    "a deque": (collections.deque([1, 2], 3), "collections.deque"),
    "an own class": (Arguments(pathlib.PurePosixPath("a"), [0.1]), "Arguments"),
    "an own enumeration": (Level.LOW, "Level"),
    "an own list": (Names(["a", "b"]), "Names"),
    "a class with keywords": (Slots(size=3), "Slots|partial"),
    "a class": (Arguments, "Arguments"),
    "a complex number": (1j, "complex"),
    "a decimal": (decimal.Decimal("0.1"), "decimal.Decimal"),
    "a function with arguments": (functools.partial(print, 1), "functools.partial"),
    "states of random numbers": (np.random.default_rng(0), "numpy.random"),
    "a range": (range(3), "range"),
}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("kind", FOREIGN)
def test_values_of_other_classes(tmp_path, kind, protocol):
    """They are skipped and named, and the weights around them are read."""
    value, expected = FOREIGN[kind]
    items = {"before": unmemoised(value, protocol), "w": tensor(), "after": unmemoised([value], protocol)}
    path = tmp_path / "model.pth"
    path.write_bytes(torch_file(mapping(items)))
    with TorchFile(path) as file:
        assert list(file.tensors) == ["w"]
        np.testing.assert_array_equal(file.read("w"), np.arange(6, dtype=np.float32).reshape(2, 3))
        assert re.search(expected, " ".join(file.foreign))


def test_tensors_in_a_default_dict(tmp_path):
    path = tmp_path / "model.pth"
    made = name("collections", "defaultdict") + name("builtins", "list") + b"\x85R"
    path.write_bytes(torch_file(mapping({"model": mapping({"w": tensor()}, start=made)})))
    with TorchFile(path) as file:
        assert list(file.tensors) == ["w"]


def test_storages_of_other_types(tmp_path):
    """Tensors on them are made by other functions, which are skipped."""
    made = name("torch._utils", "_rebuild_qtensor") + b"(" + storage(kind="QInt8Storage") + b"tR"
    path = tmp_path / "model.pth"
    path.write_bytes(torch_file(mapping({"w": tensor(), "q": made})))
    with TorchFile(path) as file:
        assert list(file.tensors) == ["w"]
        assert file.unusable["q"].endswith("got torch._utils._rebuild_qtensor")


def test_frozen_sets():
    assert interpreted(b"(K\1K\2\x91").kind == "a set"


def test_the_first_names_are_kept():
    """However many there are, and however long."""
    body = b"(" + b"".join(name(f"module{i}", "x" * 90) for i in range(100)) + b"t"
    found = interpret(pickled(body), "model.pth")
    assert found.foreign == [f"module{i}.{'x' * 90}" for i in range(20)]
    assert found.value[99].kind == f"module99.{'x' * 90}"
    assert len(interpreted(name("a" * 150, "b")).kind) == 102


def test_every_truncation():
    content = pickled(mapping({"model": mapping({"w": tensor()}), "epoch": b"K\3", "x": stacked("torch", "Size")}))
    for size in range(len(content)):
        with pytest.raises(WeightsError, match=r"data\.pkl"):
            interpret(content[:size], "model.pth")
