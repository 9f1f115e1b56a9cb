"""No file of weights runs code: nothing that it names is imported or called."""

import argparse
import os
import pickle
import struct
import sys

import numpy as np
import pytest
from refusal import refused
from torch_parts import (
    NUMBERS,
    archive,
    mapping,
    name,
    pickled,
    stacked,
    tensor,
    text,
    torch_file,
    unmemoised,
)

from dajax.errors import WeightsError
from dajax.weights.torch_files import torch_names
from dajax.weights.torch_files.torch_file import TorchFile
from dajax.weights.torch_files.torch_names import GLOBALS, Foreign
from dajax.weights.torch_files.torch_pickle import interpret

OTHER_NAMES = [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("subprocess", "run"),
    ("builtins", "eval"), ("builtins", "exec"), ("builtins", "getattr"), ("builtins", "setattr"), ("builtins", "open"),
    ("builtins", "__import__"), ("builtins", "compile"), ("builtins", "globals"), ("builtins", "type"),
    ("builtins", "object"), ("builtins", "dict"), ("builtins", "list"), ("builtins", "tuple"), ("builtins", "map"),
    ("__builtin__", "eval"), ("__builtin__", "getattr"), ("__builtin__", "apply"), ("__builtin__", "file"),
    ("operator", "attrgetter"), ("operator", "methodcaller"), ("operator", "itemgetter"), ("functools", "partial"),
    ("functools", "reduce"), ("itertools", "starmap"), ("types", "FunctionType"), ("types", "CodeType"),
    ("importlib", "import_module"), ("runpy", "run_path"), ("pickle", "loads"), ("_pickle", "loads"),
    ("marshal", "loads"), ("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor"), ("copyreg", "__newobj__"),
    ("code", "interact"), ("pty", "spawn"), ("socket", "create_connection"), ("webbrowser", "open"),
    ("shutil", "rmtree"), ("ctypes", "CDLL"), ("cffi", "FFI"), ("pathlib", "PosixPath"), ("sys", "exit"),
    ("antigravity", "webbrowser"), ("this", "s"), ("codecs", "encode"), ("codecs", "decode"), ("_codecs", "decode"),
    ("numpy", "load"), ("numpy", "fromfile"), ("numpy", "save"), ("numpy", "core"), ("numpy", "testing"),
    ("numpy", "f2py"), ("numpy.testing", "measure"), ("numpy.testing._private.utils", "runstring"),
    ("numpy.f2py.capi_maps", "load_f2cmap_file"), ("numpy.f2py.crackfortran", "myeval"), ("numpy.ma.core", "eval"),
    ("numpy.core.multiarray", "fromfile"), ("numpy.core.multiarray", "_vec_string"), ("io", "open"),
    ("numpy.distutils.exec_command", "exec_command"), ("numpy._core.records", "fromfile"),
    ("numpy.lib.npyio", "load"), ("numpy.random", "__randomstate_ctor"), ("torch", "_utils"),
    ("jax", "numpy"), ("jax.experimental", "host_callback"), ("dajax", "load"), ("dajax.weights.loading", "load"),
    ("torch", "load"), ("torch", "hub"), ("torch", "Tensor"), ("torch", "nn"), ("torch", "storage"),
    ("torch.hub", "load"), ("torch.serialization", "load"), ("torch.storage", "_load_from_bytes"),
    ("torch.storage", "TypedStorage"), ("torch.storage", "FloatStorage"), ("torch", "UntypedStorage"),
    ("torch.jit", "unsupported_tensor_ops"), ("torch.utils.cpp_extension", "load_inline"), ("torch._dynamo", "config"),
    ("torch.utils.collect_env", "run"), ("torch.utils._config_module", "load_config"), ("torch._utils", "__builtins__"),
    ("torch._utils", "_rebuild_tensor_v4"), ("torch._utils", "_rebuild_meta_tensor_no_storage"),
    ("torch._utils", "_rebuild_wrapper_subclass"), ("torch._utils", "torch"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.nn.modules.linear", "Linear"), ("depth_anything_v2.dpt", "DepthAnythingV2"), ("__main__", "Model"),
    ("collections", "abc"), ("argparse", "ArgumentParser"), ("argparse", "_sys"),
    ("torch.Storage", ""), ("", "eval"), ("", ""), ("torch ", "FloatStorage"), ("torch", "FloatStorage "),
    ("Torch", "FloatStorage"), ("torch", "floatStorage"), ("torch", "FloatStorage\0"), ("torch", "ＦloatStorage"),
    # Dots would be followed attribute by attribute from protocol 4 on.
    ("collections", "OrderedDict.__init__"), ("collections", "OrderedDict.fromkeys.__self__"),
    ("collections", "_sys.exit"),
    ("collections", "_sys.modules"), ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch", "Size.__reduce__.__globals__"), ("torch", "storage.UntypedStorage"), ("torch.storage.UntypedStorage", ""),
    ("torch._utils", "warnings.sys.modules"), ("_codecs", "encode.__self__"), ("builtins", "set.__class__"),
    ("numpy", "dtype.__init_subclass__"), ("argparse", "Namespace.__init__.__globals__"),
    ("collections.OrderedDict", ""),
]  # fmt: skip


@pytest.mark.parametrize("form", [name, stacked], ids=["GLOBAL", "STACK_GLOBAL"])
@pytest.mark.parametrize("pair", OTHER_NAMES, ids=".".join)
def test_other_names(tmp_path, pair, form):
    """A name that is not on the list becomes a placeholder, and so does whatever is made with it."""
    before = {*sys.modules}
    uses = {
        "mentioned": b"", "called": b")R", "called with what it made": b")R" + form(*pair) + b")R\x85R",
        "instance": b")\x81", "instance with keywords": b")}\x92",
        "state": b")R}b", "state of itself": mapping({"__defaults__": b")"}) + b"b",
        "items": b")R" + text("a") + b"Ns", "list items": b")R(NNe", "set items": b")\x81(NN\x90",
    }  # fmt: skip
    for use in uses.values():
        found = interpret(pickled(form(*pair) + use), "model.pth")
        assert isinstance(found.value, Foreign)
        assert found.value.kind == ".".join(pair)
        assert found.foreign == [".".join(pair)]
    assert {*sys.modules} == before
    path = tmp_path / "model.pth"
    path.write_bytes(torch_file(form(*pair) + b")R"))
    message = refused(lambda: TorchFile(path), WeightsError, "which dajax does not run")
    assert repr(".".join(pair)) in message


def test_names_are_data():
    """The list itself holds no Python objects, and names what it is meant to name."""
    for (module, attribute), found in GLOBALS.items():
        assert (found.module, found.name) == (module, attribute)
        assert found.build is None or found.build.__module__ == torch_names.__name__
    modules = {module for module, _ in GLOBALS}
    assert modules == {
        "torch", "torch.storage", "torch._utils", "collections", "argparse", "builtins", "__builtin__", "_codecs",
        "numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric",
    }  # fmt: skip
    from_builtins = {attribute for module, attribute in GLOBALS if module in ("builtins", "__builtin__")}
    assert from_builtins == {"set"}


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def protocols(kind, value):
    return {
        f"{kind}, protocol {protocol}": lambda path, p=protocol: pickle.dumps(value(path), p) for protocol in range(6)
    }


def code(path):
    return f"__import__('pathlib').Path({str(path)!r}).touch()"


# name -> the pickle that makes a file when Python's pickle module loads it.
ATTACKS = {
    **protocols("system", lambda path: Call(os.system, f"touch '{path}'")),
    **protocols("eval in a tensor's place", lambda path: {"w": Call(eval, code(path))}),
    **protocols("exec in the optimizer", lambda path: {"model": {}, "optimizer": [Call(exec, code(path))]}),
    **protocols("as a key", lambda path: {Call(eval, code(path)): 1}),
    "getattr": lambda path: pickled(
        name("builtins", "getattr") + name("builtins", "__import__") + text("builtins") + b"\x85R" + text("eval")
        + b"\x86R" + text(code(path)) + b"\x85R"),
    "dots": lambda path: b"\x80\x04" + stacked("os", "path.os.system") + text(f"touch '{path}'") + b"\x85R.",
    "INST": lambda path: pickled(b"(" + text(code(path)) + b"ibuiltins\neval\n"),
    "OBJ": lambda path: pickled(b"(" + name("builtins", "eval") + text(code(path)) + b"o"),
    "NEWOBJ": lambda path: pickled(
        name("subprocess", "Popen") + b"N" + b"\x85\x81(" + text("touch") + text(str(path)) + b"l\x85" + b"0"
        + name("os", "system") + text(f"touch '{path}'") + b"\x85R"),
    "text opcodes": lambda path: b"cos\nsystem\n(S" + repr(f"touch '{path}'").encode() + b"\ntR.",
    "behind a frame": lambda path: b"\x80\x04\x95" + struct.pack("<Q", 3) + b"NN0"
        + name("os", "system") + text(f"touch '{path}'") + b"\x85R.",
    "after the end of a good one": lambda path: pickled(mapping({})) + pickle.dumps(Call(eval, code(path))),
}  # fmt: skip


@pytest.mark.parametrize("kind", ATTACKS)
def test_no_code_runs(tmp_path, kind):
    sentinel = tmp_path / "sentinel"
    content = ATTACKS[kind](sentinel)
    path = tmp_path / "model.pth"
    path.write_bytes(archive({"archive/data.pkl": content, "archive/data/0": NUMBERS}))
    refused(lambda: TorchFile(path), WeightsError, r"model\.pth")
    assert not sentinel.exists()
    if "after the end" not in kind:
        pickle.loads(content)  # the attack is one
        assert sentinel.exists()


BESIDE = {
    "a call": lambda path: Call(eval, code(path)),
    "a call in a list": lambda path: [1, (Call(exec, code(path)),)],
    "a call as a key": lambda path: {Call(eval, code(path)): 1},
    "a call in the arguments of a call": lambda path: Call(dict, [(Call(eval, code(path)), 1)]),
    "the result of a call, called": lambda path: Call(eval, code(path)),
    "a state that a call makes": lambda path: Stateful(Call(eval, code(path))),
}


class Stateful:
    """Pickles as an object with a state."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return (Stateful, (None,), self.state)

    def __setstate__(self, state):
        self.state = state


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("kind", BESIDE)
def test_no_code_runs_beside_weights(tmp_path, kind, protocol):
    """The weights are read, and the rest is named."""
    sentinel = tmp_path / "sentinel"
    attack = unmemoised(BESIDE[kind](sentinel), protocol)
    path = tmp_path / "model.pth"
    path.write_bytes(torch_file(mapping({"w": tensor(), "extra": attack})))
    with TorchFile(path) as file:
        assert list(file.tensors) == ["w"]
        assert any(name.endswith((".eval", ".exec")) for name in file.foreign)
    assert not sentinel.exists()
    pickle.loads(pickled(attack))  # the attack is one
    assert sentinel.exists()


def test_no_attribute_is_set():
    """BUILD writes into anything that is named: an allowed function's defaults, an allowed class."""
    defaults = pickled(
        name("numpy._core.numeric", "_frombuffer") + b"N" + mapping({"__defaults__": b"K\1\x85"}) + b"\x86b"
    )
    marker = pickled(name("argparse", "Namespace") + b"N" + mapping({"marker": b"K\1"}) + b"\x86b")
    refused(lambda: interpret(defaults, "model.pth"), WeightsError, "sets the state of numpy")
    refused(lambda: interpret(marker, "model.pth"), WeightsError, "sets the state of argparse")
    function = np._core.numeric._frombuffer
    before = function.__defaults__
    assert before != (1,)
    assert not hasattr(argparse.Namespace, "marker")
    try:
        pickle.loads(defaults)
        pickle.loads(marker)
        assert function.__defaults__ == (1,)
        assert argparse.Namespace.marker == 1
    finally:
        function.__defaults__ = before
        del argparse.Namespace.marker
