"""TorchFile: what is read, what is refused, and of which part of a checkpoint."""

import os
import pickle
import tarfile

import ml_dtypes
import numpy as np
import pytest
from refusal import refused
from torch_parts import (
    NUMBERS,
    ORDERED_DICT,
    archive,
    flipped,
    mapping,
    name,
    number,
    numbers,
    records,
    storage,
    tensor,
    text,
    torch_file,
)

from dajax.errors import WeightsError
from dajax.weights.torch_files.torch_file import TorchFile

BF16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = {"HalfStorage": np.dtype("f2"), "BFloat16Storage": BF16, "FloatStorage": np.dtype("f4"),
          "DoubleStorage": np.dtype("f8")}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "model.pth"
        path.write_bytes(content)
        return path

    return write


def read_all(path):
    with TorchFile(path) as file:
        found = {name: file.read(name) for name in file.tensors}
        file.verify_rest()
    return found


def view(**changes):
    """A file of one tensor on six float32 numbers."""
    return torch_file(mapping({"w": tensor(**changes)}))


def on(**changes):
    return torch_file(mapping({"w": tensor(storage(**changes))}))


def many(count):
    """A file of more tensors on the same numbers."""
    first = name("torch._utils", "_rebuild_tensor") + b"q\0(" + storage() + b"K\0))tq\1R"
    others = b"".join(b"\x8c\6%06dh\0h\1R" % index for index in range(count))
    return torch_file(b"}(" + text("first") + first + others + b"u")


def with_shape(items):
    """A file whose tensor has something else for a shape."""
    return torch_file(mapping({"w": tensor().replace(numbers((2, 3)), items + b"\x86")}))


HUGE = 2**63
HTML = b"<!DOCTYPE html>\n<html><body>401: log in</body></html>"

# name -> (bytes of the file, what the message says)
DAMAGED = {
    "HTML page": (HTML, "HTML"),
    "HTML after spaces": (b"\n\n  <html><body>gone: the file was moved</body></html>", "HTML"),
    "git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n", "git-LFS pointer"),
    "JSON": (b'{"error": "Repository not found"}', "not a PyTorch file"),
    "safetensors": (b"\x40" + bytes(7) + b'{"a":{"dtype":"F32"}}' + bytes(100), "safetensors"),
    "bare pickle": (pickle.dumps({"a": [1.0, 2.0], "b": 2}, protocol=2), "bare pickle"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a PyTorch file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "not a PyTorch file"),
    "old PyTorch": (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + bytes(100), "PyTorch before 1.6.*save it again"),
    "old PyTorch, protocol 4": (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=4) + bytes(100), "PyTorch before 1.6"),
    "storage missing": (torch_file(storages={}), "'w': record 'data/0' is missing"),
    "storage of another name": (on(key="../data/0"), "'w': record 'data/../data/0' is missing"),
    "storage of an absolute name": (on(key="/etc/passwd"), "'w': record 'data//etc/passwd' is missing"),
    "storage short": (torch_file(storages={"0": NUMBERS[:-1]}), "'w': 6 elements of float32.* 23 bytes"),
    "storage long": (torch_file(storages={"0": NUMBERS + b"\0"}), "'w': 6 elements of float32.* 25 bytes"),
    "storage empty": (torch_file(storages={"0": b""}), "'w': 6 elements.* 0 bytes"),
    "too few elements claimed": (on(count=5), "'w': 5 elements.* 24 bytes"),
    "too many elements claimed": (on(count=7), "'w': 7 elements.* 24 bytes"),
    "2^63 elements claimed": (on(count=HUGE), "'w': 9223372036854775808 elements.* 24 bytes"),
    "2^62 elements claimed": (on(count=2**62), "'w': 4611686018427387904 elements"),
    "-6 elements claimed": (on(count=-6), "'w': -6 elements"),
    "another type of half the size": (on(kind="HalfStorage"), "'w': 6 elements of float16.* 24 bytes"),
    "offset past the end": (view(offset=7, shape=(), strides=()), "'w': reaches beyond the 6 elements"),
    "offset by one": (view(offset=1), "'w': reaches beyond"),
    "offset of 2^63": (view(offset=HUGE), "'w': reaches beyond"),
    "offset that would wrap around": (view(offset=2**64), "'w': reaches beyond"),
    "negative offset": (view(offset=-1), "'w': .*not negative"),
    "shape too large": (view(shape=(3, 3)), "'w': reaches beyond"),
    "negative size": (view(shape=(-2, -3)), "'w': .*not negative"),
    "negative stride": (view(offset=5, strides=(-3, -1)), "'w': .*not negative"),
    "stride too large": (view(strides=(4, 1)), "'w': reaches beyond"),
    "stride of 2^63": (view(strides=(HUGE, 1)), "'w': reaches beyond"),
    "product of sizes past 2^64": (view(shape=(2**32, 2**32, 4), strides=(0, 0, 0)), "'w': .*too often"),
    "fewer strides than sizes": (view(strides=(1,)), "'w': has 2 axes and 1 strides"),
    "more strides than sizes": (view(strides=(3, 1, 1)), "'w': has 2 axes and 3 strides"),
    "33 axes": (view(shape=(1,) * 33, strides=(1,) * 33), "'w': has 33 axes"),
    "10,000 axes": (view(shape=(1,) * 10_000, strides=(1,) * 10_000), "'w': has 10000 axes"),
    "bomb of stride 0": (view(shape=(10**9,), strides=(0,)), r"'w': shape \(1000000000,\) repeats the 6 .*too often"),
    "bomb of two strides 0": (view(shape=(10**5, 10**5), strides=(0, 0)), "'w': .*too often"),
    "bomb of overlapping rows": (
        torch_file(mapping({"w": tensor(storage(count=9999), 0, (5000, 5000), (1, 1))}), {"0": bytes(4 * 9999)}),
        "'w': .*too often"),
    "no numbers in a huge shape": (view(shape=(0, 2**40), strides=(0, 0)), "'w': .*too often"),
    "no numbers in a shape past 2^64": (view(shape=(2**40, 0, 2**40), strides=(1, 1, 1)), "'w': .*too often"),
    "shape of booleans": (with_shape(b"\x88\x88"), "'w': .*whole numbers"),
    "shape of strings": (with_shape(text("2") * 2), "'w': .*whole numbers"),
    "shape of shapes": (with_shape(b"))"), "'w': .*whole numbers"),
    "offset of None": (torch_file(mapping({"w": tensor().replace(number(0) + b"(", b"N(")})), "'w': .*whole numbers"),
    "tensors with a key that is a number": (
        torch_file(mapping({"w": tensor()}) + b"K\1" + tensor() + b"s"), "a key that is not a string: names"),
    "nothing": (torch_file(b"N"), "holds NoneType; expected a dict"),
    "a tensor": (torch_file(tensor()), "holds Tensor; expected a dict"),
    "a list of tensors": (torch_file(b"](" + tensor() + b"e"), "holds a list; expected a dict"),
    "a tuple of tensors": (torch_file(tensor() + b"\x85"), "holds tuple; expected a dict"),
    "an array": (torch_file(name("numpy", "dtype") + b")R"), "holds an object; expected a dict"),
    "an empty dict": (torch_file(b"}"), "no tensors, neither at its top, where the keys are none"),
    "a config": (torch_file(mapping({"hidden_size": b"K\1", "model": text("x")})), "are 'hidden_size', 'model', nor"),
    "an empty model": (torch_file(mapping({"model": b"}", "epoch": b"K\1"})), "no tensors"),
    "itself": (torch_file(b"}q\0" + text("model") + b"h\0s"), "no tensors"),
    "only an optimizer": (torch_file(mapping({"optimizer": mapping({"state": b"}"})})), "no tensors, neither"),
    "100,000 tensors": (many(100_000), "opcodes: far more"),
    "11,001 tensors": (many(11_000), "11,001 tensors; at most"),
    "byteorder nobody has": (archive(records(mapping({"w": tensor()})) | {"archive/byteorder": b"pdp"}), "byteorder"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged(write, kind):
    content, match = DAMAGED[kind]
    path = write(content)
    message = refused(lambda: TorchFile(path), WeightsError, match)
    assert path.name in message
    assert len(message) < 1000 + len(str(path))


def test_tar(tmp_path):
    path = tmp_path / "model.pth"
    with tarfile.open(path, "w") as tar:
        tar.add(__file__, "storages")
    refused(lambda: TorchFile(path), WeightsError, "tar archive")


def test_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    for path, match in [
        (tmp_path, "a folder"), (tmp_path / "none.pth", "cannot be read"), (tmp_path / "loop.pth", "cannot be read"),
        (tmp_path / "pipe.pth", "a pipe"), ("/dev/zero", "a pipe, socket or device"),
    ]:  # fmt: skip
        refused(lambda path=path: TorchFile(path), WeightsError, match)


def test_all_problems_in_one_message(write):
    long = tensor(storage(kind="LongStorage"))
    path = write(torch_file(mapping({"a": tensor(offset=-1), "b": tensor(), "c": tensor(offset=9), "d": long})))
    message = refused(lambda: TorchFile(path), WeightsError, "cannot be read as a model")
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == ["'a'", "'c'"]


SIX = np.arange(6, dtype=np.float32)
VIEWS = {
    "whole": ({}, SIX.reshape(2, 3)),
    "transposed": ({"shape": (3, 2), "strides": (1, 3)}, SIX.reshape(2, 3).T),
    "sliced": ({"offset": 1, "shape": (2, 2)}, SIX.reshape(2, 3)[:, 1:]),
    "every other": ({"shape": (3,), "strides": (2,)}, SIX[::2]),
    "scalar": ({"offset": 5, "shape": (), "strides": ()}, SIX[5]),
    "expanded": ({"shape": (4, 3), "strides": (0, 1)}, np.broadcast_to(SIX[:3], (4, 3))),
    "overlapping": ({"shape": (5, 2), "strides": (1, 1)}, np.lib.stride_tricks.sliding_window_view(SIX, 2)),
    "no numbers": ({"shape": (0, 3)}, SIX.reshape(2, 3)[:0]),
    "no numbers at the end": ({"offset": 6, "shape": (2, 0), "strides": (1, 1)}, SIX.reshape(2, 3)[:, :0]),
    "any stride where there is one element": (
        {"shape": (1, 2, 1, 3), "strides": (2**70, 3, 0, 1)}, SIX.reshape(1, 2, 1, 3)),
    "any stride where there is none": ({"shape": (3, 0), "strides": (2**70, 2**70)}, SIX[:0].reshape(3, 0)),
    "plain rebuild": ({"rebuild": "_rebuild_tensor"}, SIX.reshape(2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("with_buffer", [False, True])
@pytest.mark.parametrize("kind", VIEWS)
def test_views(write, kind, with_buffer):
    changes, expected = VIEWS[kind]
    with TorchFile(write(view(**changes))) as file:
        info = file.tensors["w"]
        assert (info.dtype, info.shape) == (expected.dtype, expected.shape)
        # As long as the values take, which may be less than what lies between the first and the last.
        buffer = np.empty(expected.nbytes, np.uint8) if with_buffer else None
        found = file.read("w", buffer)
        np.testing.assert_array_equal(found, expected, strict=True)
        if with_buffer and kind == "transposed":
            assert np.shares_memory(found, buffer)


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("order", ["little", "big"])
def test_types_and_byte_orders(write, kind, order):
    dtype = FLOATS[kind]
    raw = np.random.default_rng(0).integers(0, 256, 6 * dtype.itemsize, np.uint8)
    stored = raw.view(f"u{dtype.itemsize}").byteswap() if order == "big" else raw
    place = storage(kind=kind)
    parts = records(mapping({"w": tensor(place), "t": tensor(place, 1, (2, 2), (1, 3))}), {"0": stored.tobytes()})
    found = read_all(write(archive(parts | {"archive/byteorder": order.encode()})))
    expected = raw.view(dtype).reshape(2, 3)
    assert found["w"].dtype == found["t"].dtype == dtype
    assert found["w"].tobytes() == expected.tobytes()
    assert found["t"].tobytes() == expected[:, 1:].T.tobytes()


PARAMETER = name("torch._utils", "_rebuild_parameter")
STATE = mapping({"w": tensor()})
OTHER = mapping({"w": tensor(shape=(6,), strides=(1,))})
# Bodies with one set of tensors.
WRAPPED = {
    "state dict": STATE,
    "OrderedDict with _metadata": (
        mapping({"w": tensor()}, ORDERED_DICT) + mapping({"_metadata": ORDERED_DICT}) + b"b"),
    "parameter": mapping({"w": PARAMETER + b"(" + tensor() + b"\x88" + ORDERED_DICT + b"tR"}),
    "parameter with state": (
        mapping({"w": PARAMETER[:-1] + b"_with_state\n(" + tensor() + b"\x88" + ORDERED_DICT + b"}tR"})),
    "training checkpoint": (
        mapping({"epoch": b"K\3", "optimizer": mapping({"state": mapping({"m": tensor(shape=(1,), strides=(1,))})}),
                 "previous_best": mapping({"d1": b"G" + bytes(8)}), "model": STATE})),
    **{wrapper: mapping({wrapper: STATE, "epoch": b"K\3"})
       for wrapper in ("model", "state_dict", "model_state_dict", "params", "net")},
    "a random generator's state": mapping({"rng": tensor(storage(kind="ByteStorage")), "model": STATE}),
    "a wrapper without tensors": mapping({"model": mapping({"depth": b"K\1"}), "state_dict": STATE}),
    "tensors beside a dict of options": mapping({"w": tensor(), "model": mapping({"depth": b"K\1"})}),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_which_tensors(write, kind):
    found = read_all(write(torch_file(WRAPPED[kind])))
    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"], SIX.reshape(2, 3), strict=True)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"ema": OTHER, "model": STATE}, ["ema.w", "model.w"]),
        ({"params": OTHER, "state_dict": STATE, "params_ema": OTHER}, ["params.w", "state_dict.w", "params_ema.w"]),
        ({"model": STATE, "scale": tensor(), "epoch": b"K\1"}, ["scale", "model.w"]),
    ],
)
def test_of_several_sets_all_are_there(write, body, names):
    """Which of them is the model is decided by the names of all."""
    assert list(read_all(write(torch_file(mapping(body))))) == names


def test_keys_and_names_that_join_to_the_same(write):
    path = write(torch_file(mapping({"a": mapping({"b.w": tensor()}), "a.b": STATE})))
    refused(lambda: TorchFile(path), WeightsError, "two tensors whose keys and names, joined by dots, are the same")


@pytest.mark.parametrize("type", ["Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat", "ComplexDouble"])
def test_tensors_of_other_types_are_no_params(write, type):
    kind = f"{type}Storage"
    with TorchFile(write(torch_file(mapping({"w": tensor(), "count": tensor(storage(kind=kind))})))) as file:
        assert list(file.tensors) == ["w"]
        assert file.unusable == {"count": f"expected float16, bfloat16, float32, float64, got {kind}"}


@pytest.mark.parametrize(("value", "kind"), [(b"K\1", "int"), (b"]", "a list"), (storage(), "Storage")])
def test_values_that_are_no_tensors(write, value, kind):
    with TorchFile(write(torch_file(mapping({"w": tensor(), "step": value})))) as file:
        assert list(file.tensors) == ["w"]
        assert file.unusable["step"].endswith(f"got {kind}")


def test_names_are_kept(write):
    names = ["module.pretrained.blocks.0.attn.qkv.weight", "../../etc/passwd", "nul\0", "", "名前", "a/b\\c"]
    found = read_all(write(torch_file(mapping(dict.fromkeys(names, tensor())))))
    assert list(found) == names


@pytest.mark.parametrize("kind", ["transposed", "sliced", "scalar", "no numbers", "whole"])
def test_all_of_a_record_is_checked(write, kind):
    """Also what lies beyond the part that a tensor shows."""
    content = view(**VIEWS[kind][0])
    path = write(content)
    for byte in range(24):
        with flipped(path, 8 * (content.index(NUMBERS) + byte)), TorchFile(path) as file:
            with pytest.raises(WeightsError, match=r"model\.pth is damaged: record 'data/0'.*tensor 'w'"):
                file.read("w")
            with pytest.raises(WeightsError, match=r"model\.pth is damaged: record 'data/0'"):
                file.verify_rest()


def test_shared_and_unused_records(write):
    """Two tensors on one record; one record that no tensor of the model is on."""
    model = mapping({"q": tensor(shape=(3,), strides=(1,)), "k": tensor(offset=3, shape=(3,), strides=(1,))})
    state = mapping({"state": mapping({"exp_avg": tensor(storage("1"))})})
    body = mapping({"model": model, "optimizer": state})
    content = torch_file(body, {"0": NUMBERS, "1": NUMBERS[::-1]})
    path = write(content)
    found = read_all(path)
    np.testing.assert_array_equal(np.concatenate([found["q"], found["k"]]), SIX)
    with flipped(path, 8 * content.index(NUMBERS[::-1]) + 100), TorchFile(path) as file:
        np.testing.assert_array_equal(file.read("q"), SIX[:3])
        with pytest.raises(WeightsError, match=r"model\.pth is damaged: record 'data/1'"):
            file.verify_rest()


def test_file_becomes_shorter(write):
    path = write(view())
    with TorchFile(path) as file:
        os.truncate(path, 100)
        with pytest.raises(WeightsError, match=r"model\.pth became shorter.*tensor 'w'"):
            file.read("w")


def test_records_across_chunks(tmp_path):
    """A record longer than what is checked at once, read whole and in part."""
    array = np.random.default_rng(0).standard_normal((700, 1000)).astype(np.float32)
    place = storage(count=array.size)
    parts = {
        "part": tensor(place, 1000, (699, 999), (1000, 1)),
        "whole": tensor(place, shape=array.shape, strides=(1000, 1)),
    }
    path = tmp_path / "model.pth"
    path.write_bytes(torch_file(mapping(parts), {"0": array.tobytes()}))
    found = read_all(path)
    np.testing.assert_array_equal(found["whole"], array)
    np.testing.assert_array_equal(found["part"], array[1:, :999])
