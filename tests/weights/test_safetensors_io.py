import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from refusal import put_no_file, refused

from dajax.errors import WeightsError
from dajax.weights.safetensors_io import SafetensorsFile, dtype_code, write_safetensors


def header_bytes(header):
    return header if isinstance(header, bytes) else json.dumps(header).encode()


def file_bytes(header, data=b"", length=None):
    text = header_bytes(header)
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start, stop, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


GOOD = {"a": entry(0, 8), "b": entry(8, 24, [2, 2])}
DATA = bytes(24)
MANY = {f"tensor.{i:06}": entry(0, 0, [0]) for i in range(100_000)}
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000

# name -> (bytes of the file, what the message says)
DAMAGED = {
    "empty": (b"", "0 bytes"),
    "7 bytes": (b"\x01" + bytes(6), "7 bytes"),
    "only a length": (bytes([8]) + bytes(7), "cut off"),
    "header length 0": (file_bytes(b"", DATA, 0), "claims 0 bytes"),
    "header length 2^64-1": (file_bytes(GOOD, DATA, 2**64 - 1), "not a safetensors file, or is damaged"),
    "header length 2^63": (file_bytes(GOOD, DATA, 2**63), "not a safetensors file, or is damaged"),
    "header length over the format's": (file_bytes(GOOD, DATA, 100_000_001), "claims 100,000,001 bytes"),
    "header length past the end": (file_bytes(GOOD, DATA, 1000), "cut off: its header claims 1,000"),
    "header length too short": (file_bytes(GOOD, DATA, 20), "damaged header"),
    "header length too long": (file_bytes(GOOD, DATA, len(header_bytes(GOOD)) + 8), "damaged header"),
    "not UTF-8": (file_bytes(b'{"\xff": 1}'), "damaged header"),
    "UTF-16": (file_bytes(json.dumps(GOOD).encode("utf-16"), DATA), "damaged header"),
    "not JSON": (file_bytes(b"{'a': 1}"), "damaged header"),
    "a list": (file_bytes([GOOD]), "JSON object was expected, got list"),
    "a number": (file_bytes(b"12345678"), "JSON object was expected, got int"),
    "100k-deep objects": (file_bytes(DEEP), "damaged header"),
    "100k-deep lists": (file_bytes(b"[" * 100_000), "damaged header"),
    "20 MB of spaces": (file_bytes(b" " * 20_000_000 + b"{}"), "far more than any model's"),
    "one byte short": (file_bytes(GOOD, DATA[:-1]), "cut off: its tensors take 24 bytes and it has 23"),
    "one byte long": (file_bytes(GOOD, DATA + b"\0"), "bytes that belong to no tensor"),
    "without data": (file_bytes(GOOD), "cut off"),
    "overlap": (file_bytes({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'b'.*overlaps"),
    "the same bytes twice": (file_bytes({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "'b'.*overlaps"),
    "hole": (file_bytes({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)), "'b'.*hole"),
    "hole at the start": (file_bytes({"a": entry(8, 16)}, bytes(16)), "'a'.*hole"),
    "reversed": (file_bytes({"a": entry(8, 0, [2])}, bytes(8)), "'a'.*rising"),
    "negative": (file_bytes({"a": entry(-8, 0)}, bytes(8)), "'a'.*rising"),
    "three offsets": (file_bytes({"a": entry(0, 8) | {"data_offsets": [0, 8, 8]}}, bytes(8)), "'a'.*rising"),
    "offsets of fractions": (file_bytes({"a": entry(0, 8) | {"data_offsets": [0.0, 8.0]}}, bytes(8)), "'a'.*rising"),
    "offsets of flags": (file_bytes({"a": entry(0, 4) | {"data_offsets": [False, 4]}}, bytes(4)), "'a'.*rising"),
    "offsets past 2^64": (file_bytes({"a": entry(0, 2**70, [2])}, bytes(8)), "'a'.*rising"),
    "far offsets": (file_bytes({"a": entry(0, 2**62, [2**60])}, bytes(8)), "cut off"),
    "shape too big": (file_bytes({"a": entry(0, 8, [3])}, bytes(8)), "'a'.*F32 of shape"),
    "shape too small": (file_bytes({"a": entry(0, 8, [1])}, bytes(8)), "'a'.*F32 of shape"),
    "dtype too wide": (file_bytes({"a": entry(0, 8, [2], "F64")}, bytes(8)), "'a'.*F64 of shape"),
    "product past 2^64": (file_bytes({"a": entry(0, 8, [2**62, 2**62, 2**62])}, bytes(8)), "'a'.*F32 of shape"),
    "product that wraps to 2": (file_bytes({"a": entry(0, 8, [2**63 + 1, 2])}, bytes(8)), "'a'.*shape"),
    "product that wraps to 0": (file_bytes({"a": entry(0, 0, [2**62, 4])}), "'a'.*F32 of shape"),
    "negative shape": (file_bytes({"a": entry(0, 8, [-1, -2])}, bytes(8)), "'a'.*shape"),
    "shape of strings": (file_bytes({"a": entry(0, 8, ["2"])}, bytes(8)), "'a'.*shape"),
    "shape of fractions": (file_bytes({"a": entry(0, 8, [2.0])}, bytes(8)), "'a'.*shape"),
    "shape is a number": (file_bytes({"a": entry(0, 8) | {"shape": 2}}, bytes(8)), "'a'.*shape"),
    "a million axes": (file_bytes({"a": entry(0, 8, [1] * 100_000)}, bytes(8)), "'a'.*shape"),
    "a number of 5,000 digits": (file_bytes(b'{"a": ' + b"9" * 5000 + b"}"), "damaged header"),
    "key twice": (
        file_bytes(json.dumps({"a": entry(0, 4), "b": entry(4, 8)}).replace('"b"', '"a"').encode(), bytes(8)),
        "'a' stands twice",
    ),
    "field twice": (
        file_bytes(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
        "'dtype' stands twice",
    ),
    "metadata twice": (file_bytes(b'{"__metadata__": {}, "__metadata__": {}}'), "'__metadata__' stands twice"),
    "metadata of numbers": (file_bytes({"__metadata__": {"a": 1}} | GOOD, DATA), "__metadata__"),
    "metadata is null": (file_bytes({"__metadata__": None} | GOOD, DATA), "__metadata__"),
    "entry is a number": (file_bytes({"a": 3}), "'a': expected dtype, shape"),
    "entry without dtype": (file_bytes({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "'a': expected dtype"),
    "entry with more": (file_bytes({"a": entry(0, 8) | {"strides": [1]}}, bytes(8)), "'a': expected dtype"),
    "dtype garbage": (file_bytes({"a": entry(0, 8, [2], "x" * 1000)}, bytes(8)), "'a': dtype must be"),
    "dtype is a list": (file_bytes({"a": entry(0, 8, [2], ["F32"])}, bytes(8)), "'a': dtype must be"),
    "100k tensors": (file_bytes(MANY), "far more than any model's"),
    "long name": (file_bytes({"x" * 1_000_000: 3}), "xxx"),
    "git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n", "git-LFS pointer"),
    "HTML page": (b"<!DOCTYPE html>\n<html><body>401: log in</body></html>", "HTML"),
    "HTML after spaces": (b"\n\n  <html><body>gone</body></html>", "HTML"),
    "JSON error": (b'{"error": "Repository not found"}', "not a safetensors file"),
    "pickle": (pickle.dumps({"a": [1.0, 2.0]}, protocol=2), "not a safetensors file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a safetensors file"),
}  # fmt: skip


def assert_refused(path, match):
    message = refused(lambda: SafetensorsFile(path), WeightsError, match)
    assert path.name in message
    assert len(message) < 1000 + len(str(path))


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(tmp_path, name):
    content, match = DAMAGED[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert_refused(path, match)


@pytest.mark.parametrize("depth", range(900, 1000, 9))
def test_lists_in_lists(tmp_path, depth):
    """Near the interpreter's limit, showing a value may fail where reading it did not."""
    path = tmp_path / "model.safetensors"
    nested = b"[" * depth + b"]" * depth
    for text in (b'{"a": %s}' % nested, b'{"a": {"dtype": %s, "shape": [], "data_offsets": []}}' % nested):
        path.write_bytes(file_bytes(text))
        assert_refused(path, "damaged header|'a': ")


def test_more_tensors_than_any_model(tmp_path):
    """Of a size that is read, with more tensors than are taken."""
    path = tmp_path / "model.safetensors"
    many = {f"{i:x}": entry(0, 0, [0]) for i in range(20_000)}
    path.write_bytes(file_bytes(json.dumps(many, separators=(",", ":")).encode()))
    assert_refused(path, "holds 20,000 tensors")


def test_zip(tmp_path):
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    assert_refused(path, r"zip archive \(a PyTorch \.pth or \.bin\?\)")


def test_zip_appended(tmp_path):
    """A file that is also an archive: readers of either kind would take it for theirs."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes(GOOD, DATA))
    SafetensorsFile(path).close()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("payload", b"x")
    assert_refused(path, "bytes that belong to no tensor")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "endless device", "loop", "dangling"])
def test_not_a_file(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    put_no_file(path, kind)
    assert_refused(path, "cannot be read")


def test_denied(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes(GOOD, DATA))

    def denied(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", denied)
    assert_refused(path, "cannot be read: Permission denied")


def test_cut_while_open(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes(GOOD, DATA))
    with SafetensorsFile(path) as file:
        os.truncate(path, path.stat().st_size - 4)
        assert file.read("a").shape == (2,)
        with pytest.raises(WeightsError, match=r"model\.safetensors: the file became shorter while tensor 'b'"):
            file.read("b")


@pytest.mark.parametrize("low", range(0, 256, 8))
def test_no_header_length_is_taken_for_text(tmp_path, low):
    """Of a header of 15,392 bytes the length reads ' <', as an HTML page might begin."""
    path = tmp_path / "model.safetensors"
    for length in (0x3C00 + low, 0x4B00 + low):
        text = json.dumps(GOOD).encode().ljust(length)
        path.write_bytes(file_bytes(text, DATA))
        with SafetensorsFile(path) as file:
            assert set(file.tensors) == {"a", "b"}


def test_strange_names_are_only_names(tmp_path):
    names = ["../../etc/passwd", "/etc/passwd", "nul\0byte", "", "line\nbreak", "C:\\x", "日本", "__proto__"]
    path = tmp_path / "model.safetensors"
    header = {name: entry(4 * i, 4 * i + 4) for i, name in enumerate(names)}
    path.write_bytes(file_bytes(header, np.arange(len(names), dtype=np.float32).tobytes()))
    with SafetensorsFile(path) as file:
        assert [float(file.read(name)[0]) for name in names] == list(range(len(names)))
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_empty_tensors(tmp_path):
    path = tmp_path / "model.safetensors"
    header = {"a": entry(0, 0, [0, 2**62, 2**62]), "b": entry(0, 4, []), "c": entry(4, 4, [0])}
    path.write_bytes(file_bytes(header, bytes(4)))
    with SafetensorsFile(path) as file:
        assert file.read("b").shape == ()
        assert file.read("c").shape == (0,)
        assert file.tensors["a"].shape == (0, 2**62, 2**62)


DTYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64}


def written(path, tensors, metadata):
    infos = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with path.open("wb") as file:
        write_safetensors(file, infos, tensors.__getitem__, metadata=metadata)
    return path.read_bytes()


def some_tensors(dtypes):
    random = np.random.default_rng(0)
    shapes = [(3, 5), (7,), (), (2, 1, 3, 4), (0, 4), (1,)]
    names = ["z", "a.weight", "a.bias", "B", "日本", 'quo"te\\', "tab\t", "a.é", "\x7f", "\x1f"]
    return {
        name: random.normal(size=shapes[i % len(shapes)]).astype(dtypes[i % len(dtypes)])
        for i, name in enumerate(names)
    }


@pytest.mark.parametrize(
    "dtypes",
    [["F32"], ["F16"], ["F64"], ["F32", "F16"], ["F16", "F64", "F32"], ["F64", "F32", "F16", "F32"]],
    ids="+".join,
)
@pytest.mark.parametrize("metadata", [{"format": "pt"}, {}], ids=["metadata", "plain"])
def test_writes_the_package_s_bytes(tmp_path, dtypes, metadata):
    tensors = some_tensors([DTYPES[code] for code in dtypes])
    found = written(tmp_path / "dajax", tensors, metadata)
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(tensor).reshape(tensor.shape) for name, tensor in tensors.items()},
        tmp_path / "package",
        metadata or None,
    )
    assert found == (tmp_path / "package").read_bytes()


def test_writes_views(tmp_path):
    """Transposed and strided arrays are written in the order of their axes."""
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensors = {"t": base.T, "s": base[:, ::2, ::-1], "b": np.broadcast_to(np.float32(7), (3, 2))}
    written(tmp_path / "model.safetensors", tensors, {})
    with SafetensorsFile(tmp_path / "model.safetensors") as file:
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(file.read(name), tensor)


@pytest.mark.parametrize("code", DTYPES)
def test_reads_back_every_bit(tmp_path, code):
    """All bit patterns of the half-precision types, NaNs included."""
    dtype = np.dtype(DTYPES[code])
    bits = np.arange(2**16, dtype=np.uint16).view(np.uint8) if dtype.itemsize == 2 else None
    if bits is None:
        bits = np.random.default_rng(0).integers(0, 256, 8000, dtype=np.uint8)
    tensors = {"x": bits.view(dtype), "y": bits.view(dtype)[::-1]}
    written(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    buffer = np.empty(bits.size, np.uint8)
    with SafetensorsFile(tmp_path / "model.safetensors") as file:
        assert file.metadata == {"format": "pt"}
        for name, tensor in tensors.items():
            for found in (file.read(name), file.read(name, buffer)):
                assert found.dtype == dtype
                assert found.tobytes() == tensor.tobytes()


def test_order_of_types(tmp_path):
    """Widest first, bfloat16 before float16: the order of the format's own enumeration."""
    tensors = {code: np.zeros(3, dtype) for code, dtype in DTYPES.items()}
    written(tmp_path / "model.safetensors", tensors, {})
    with SafetensorsFile(tmp_path / "model.safetensors") as file:
        assert list(file.tensors) == ["F64", "F32", "BF16", "F16"]


def test_other_types_are_not_written():
    for dtype in (np.int32, np.complex64, ">f4", ml_dtypes.float8_e4m3fn, object):
        with pytest.raises(WeightsError, match="must be float16, bfloat16, float32 or float64"):
            dtype_code(np.dtype(dtype))


@pytest.mark.parametrize("code", ["I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "F4"])
def test_tensors_of_other_types_are_no_params(tmp_path, code):
    bits = {"I64": 64, "I32": 32, "C64": 64, "F4": 4}.get(code, 8)
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_bytes({"w": entry(0, 8), "count": entry(8, 16, [64 // bits], code)}, bytes(16)))
    with SafetensorsFile(path) as file:
        assert list(file.tensors) == ["w"]
        assert file.unusable == {"count": f"expected F16, BF16, F32, F64, got {code}"}
    path.write_bytes(file_bytes({"count": entry(0, 8, [64 // bits + 2], code)}, bytes(8)))
    with pytest.raises(WeightsError, match=f"{code} of shape .* does not take the 8 bytes"):
        SafetensorsFile(path)
