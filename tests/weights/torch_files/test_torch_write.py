"""Files for PyTorch, as far as they can be judged without it; tests/parity has PyTorch open them."""

import io
import pickletools
import zipfile

import numpy as np
import pytest

from dajax.errors import WeightsError
from dajax.weights.safetensors_io import FLOAT_DTYPES
from dajax.weights.torch_files import torch_write
from dajax.weights.torch_files.torch_file import TorchFile
from dajax.weights.torch_files.torch_write import write_torch


def made(shapes=((3, 5), (), (0, 4), (7,), (2, 3, 4, 5), (1, 1, 1))):
    generator = np.random.default_rng(0)
    return {
        f"block.{code}.{index}.größe": np.asarray(generator.standard_normal(shape)).astype(dtype)
        for code, dtype in FLOAT_DTYPES.items()
        for index, shape in enumerate(shapes)
    }


def infos(tensors):
    return {name: (array.dtype, array.shape) for name, array in tensors.items()}


def written(tensors):
    file = io.BytesIO()
    write_torch(file, infos(tensors), tensors.__getitem__)
    return file.getvalue()


def assert_reads(path, tensors):
    with TorchFile(path) as file:
        assert list(file.tensors) == list(tensors)
        for name, array in tensors.items():
            found = file.read(name)
            assert (found.dtype, found.shape) == (array.dtype, array.shape), name
            assert found.tobytes() == array.tobytes(), name
        file.verify_rest()


def test_round_trip(tmp_path):
    path = tmp_path / "model.pth"
    tensors = made()
    path.write_bytes(written(tensors))
    assert_reads(path, tensors)


def test_transposed_arrays(tmp_path):
    path = tmp_path / "model.pth"
    tensors = {name: array.T for name, array in made(((3, 5), (2, 3, 4, 5))).items()}
    assert not any(array.flags.c_contiguous for array in tensors.values())
    path.write_bytes(written(tensors))
    assert_reads(path, tensors)


def test_no_tensors():
    assert zipfile.ZipFile(io.BytesIO(written({}))).testzip() is None


@pytest.mark.parametrize("wide", [2_000_000_000, 100])
def test_container(tmp_path, monkeypatch, wide):
    """Stored, checksummed, and aligned to 64 bytes; with sizes of 64 bits too."""
    monkeypatch.setattr(torch_write, "_WIDE", wide)
    tensors = made()
    content = written(tensors)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert [entry.filename for entry in archive.infolist()] == [
            "archive/data.pkl", "archive/byteorder", *(f"archive/data/{key}" for key in range(len(tensors))),
            "archive/version",
        ]  # fmt: skip
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            header = content[entry.header_offset : entry.header_offset + 30]
            start = entry.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
            assert start % 64 == 0
            assert content[start : start + entry.file_size] == archive.read(entry)
            is_wide = header[18:26] == b"\xff" * 8
            assert is_wide == (entry.file_size > wide)
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/version") == b"3\n"
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert_reads(path, tensors)


def test_pickle():
    """Protocol 2, and nothing but what torch.load(weights_only=True) knows."""
    content = zipfile.ZipFile(io.BytesIO(written(made()))).read("archive/data.pkl")
    opcodes = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(content)]
    assert opcodes[0] == ("PROTO", 2)
    kinds = {"Half", "BFloat16", "Float", "Double"}
    assert {argument for opcode, argument in opcodes if opcode == "GLOBAL"} == {
        "collections OrderedDict", "torch._utils _rebuild_tensor_v2", *(f"torch {kind}Storage" for kind in kinds),
    }  # fmt: skip
    pickletools.dis(content, io.StringIO())  # raises where the stack does not add up


def test_strides_of_empty_axes():
    """As PyTorch counts them: an axis of length 0 like one of length 1."""
    text = io.StringIO()
    tensors = {"w": np.zeros((2, 0, 3), np.float32)}
    pickletools.dis(zipfile.ZipFile(io.BytesIO(written(tensors))).read("archive/data.pkl"), text)
    numbers = [int(line.split()[-1]) for line in text.getvalue().splitlines() if " BININT " in line]
    assert numbers == [0, 0, 2, 0, 3, 3, 3, 1]  # count, offset, shape, strides


def test_numbers():
    for number in (0, 1, 255, 2**31 - 1, 2**31, 2**33, 2**63 - 1):
        assert next(pickletools.genops(torch_write._number(number) + b"."))[1] == number


def test_same_bytes():
    assert written(made()) == written(made())


def test_tensor_by_tensor():
    """Each tensor is asked for once, in order, when its place in the file has come."""
    tensors = made()
    file, asked = io.BytesIO(), []

    def get(name):
        assert file.tell() > sum(tensors[before].nbytes for before in asked)
        asked.append(name)
        return tensors[name]

    write_torch(file, infos(tensors), get)
    assert asked == list(tensors)


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "complex64", ">f4"])
def test_other_types(dtype):
    """Refused before a byte is written."""
    file = io.BytesIO()
    with pytest.raises(WeightsError, match="must be float16, bfloat16, float32 or float64"):
        write_torch(file, {"w": (np.dtype(dtype), (2,))}, lambda name: np.zeros(2, dtype))
    assert not file.getvalue()


def test_errors_of_the_caller_pass():
    def get(name):
        raise KeyError(name)

    with pytest.raises(KeyError):
        write_torch(io.BytesIO(), infos(made()), get)
