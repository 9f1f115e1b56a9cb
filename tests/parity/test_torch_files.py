"""Files of torch.save read here, and files written here opened by torch.load(weights_only=True): bit for bit."""

import argparse
import collections
import datetime
import pathlib
import zipfile

import numpy as np
import pytest
import torch
from refusal import refused

from dajax.errors import WeightsError
from dajax.weights.safetensors_io import FLOAT_DTYPES
from dajax.weights.torch_files.torch_file import TorchFile
from dajax.weights.torch_files.torch_write import write_torch

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def drawn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def raw(tensor):
    """The tensor's bytes, in the order of its axes."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read_all(path):
    with TorchFile(path) as file:
        for name in file.tensors:
            file.read(name)
        file.verify_rest()


def assert_same(path, state):
    """All of a file is the state dict, bit for bit, with and without a buffer."""
    with TorchFile(path) as file:
        assert list(file.tensors) == list(state)
        largest = max((t.numel() * t.element_size() for t in state.values()), default=0)
        for buffer in (None, np.empty(largest, np.uint8)):
            for name, tensor in state.items():
                found = file.read(name, buffer)
                assert found.shape == tuple(tensor.shape), name
                assert str(found.dtype) == str(tensor.dtype).removeprefix("torch."), name
                assert found.tobytes() == raw(tensor), name
        file.verify_rest()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_types(tmp_path, dtype, protocol):
    state = {"matrix": drawn(5, 7, dtype=dtype), "scalar": drawn(dtype=dtype), "empty": drawn(0, 3, dtype=dtype)}
    torch.save(state, tmp_path / "model.pth", pickle_protocol=protocol)
    assert_same(tmp_path / "model.pth", state)


def test_views(tmp_path):
    base = drawn(6, 8)
    state = {
        "base": base,
        "transposed": base.T,
        "sliced": base[1:5, 2:7],
        "strided": base[::2, ::3],
        "column": base[:, 3],
        "element": base[2, 3],
        "permuted": drawn(2, 3, 4, 5).permute(3, 1, 0, 2),
        "channels last": drawn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": drawn(1, 8).expand(6, 8),
        "expanded element": base[0, 0].expand(4, 4),
        "overlapping": base.reshape(-1).unfold(0, 5, 2),
        "no rows": base[3:3],
        "no columns": base[:, 8:],
        "one row": base[2:3],
        "reshaped": base.view(3, 2, 4, 2),
        "complex's real part": torch.view_as_real(torch.randn(3, dtype=torch.complex64)),
    }
    torch.save(state, tmp_path / "model.pth")
    assert_same(tmp_path / "model.pth", state)
    with TorchFile(tmp_path / "model.pth") as file:
        assert len({info.record for info in file.tensors.values()}) < len(state)


def test_negative_views_are_refused(tmp_path):
    """Stored are the numbers without the sign."""
    torch.save({"w": torch._neg_view(drawn(3))}, tmp_path / "model.pth")
    refused(
        lambda: TorchFile(tmp_path / "model.pth"), WeightsError, "calls torch._utils._rebuild_tensor_v2 with arguments"
    )


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Conv2d(3, 5, 3))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_modules(tmp_path, protocol):
    """With the attribute that carries versions; parameters as such; with attributes of their own."""
    model = network()
    state = model.state_dict()
    assert state._metadata
    torch.save(state, tmp_path / "state.pth", pickle_protocol=protocol)
    assert_same(tmp_path / "state.pth", state)
    parameters = model.state_dict(keep_vars=True)
    parameters["0.weight"].note = "mine"
    torch.save(parameters, tmp_path / "parameters.pth", pickle_protocol=protocol)
    assert_same(tmp_path / "parameters.pth", parameters)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, about what is deprecated
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_training_checkpoints(tmp_path, protocol):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 5])
    (model[1](model[0](drawn(2, 4))).sum() + model[2](drawn(1, 3, 8, 8)).sum()).backward()
    optimizer.step()
    scheduler.step()
    saved = {
        "model": {f"module.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 3,
        "previous_best": {"d1": np.float64(0.9), "rmse": np.float32(0.2), "n": np.int64(5), "all": np.arange(3.0)},
        "args": argparse.Namespace(encoder="vits", lr=5e-6, size=(518, 518), flags=[True, None]),
        "rng": torch.get_rng_state(),
        "numpy_rng": np.random.RandomState(0).get_state(),
        "shape": torch.Size([1, 2]), "device": torch.device("cpu"), "dtype": torch.bfloat16,
        "set": {1, 2}, "counter": collections.Counter("aab"), "bytes": b"abc", "big": 2**80, "masks": [drawn(3) > 0],
        "integers": {"step": torch.tensor(3), "new": torch.zeros(2, dtype=torch.uint16)},
        "eights": {"w": drawn(3).to(torch.float8_e4m3fn)},
        "folder": pathlib.Path("runs/1"), "started": datetime.datetime(2026, 1, 2), "history": collections.deque([1]),
        "losses": collections.defaultdict(list, train=[0.5]), "network": network(),
        "generator": np.random.RandomState(0),
        "quantised": torch.quantize_per_tensor(drawn(3), 0.1, 0, torch.qint8), "sparse": drawn(3, 3).to_sparse(),
    }  # fmt: skip
    path = tmp_path / "latest.pth"
    torch.save(saved, path, pickle_protocol=protocol)
    # Of several dicts with tensors, names begin with their keys.
    assert_same(path, {f"model.{name}": tensor for name, tensor in saved["model"].items()})
    with TorchFile(path) as file:
        assert {name.partition(".")[0] for name in file.unusable} == {"integers", "eights"}
        assert {"datetime.datetime", "collections.deque", "torch.nn.modules.container.Sequential"} <= {*file.foreign}


def test_every_record_counts(tmp_path):
    """torch.load takes a file with a flipped bit, in the model or in the optimizer's state; here none passes."""
    model = network()
    path = tmp_path / "latest.pth"
    torch.save({"model": model.state_dict(), "optimizer": {"state": {0: {"exp_avg": drawn(500)}}}}, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [archive.read(entry) for entry in archive.infolist() if "/data/" in entry.filename]
    assert len(records) == 7
    for record in records:
        place = content.index(record) + len(record) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        torch.load(path, weights_only=True)
        with pytest.raises(WeightsError, match="is damaged"):
            read_all(path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_big_endian(tmp_path, dtype):
    """What a big-endian machine writes, as torch.load understands it."""
    tensor = drawn(5, 7, dtype=dtype)
    swapped = np.frombuffer(raw(tensor), f"u{dtype.itemsize}").byteswap().tobytes()
    torch.save({"w": torch.frombuffer(bytearray(swapped), dtype=dtype).view(5, 7)}, tmp_path / "little.pth")
    with zipfile.ZipFile(tmp_path / "little.pth") as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, b"big" if entry.filename.endswith("/byteorder") else old.read(entry))
    assert raw(torch.load(tmp_path / "big.pth", weights_only=True)["w"]) == raw(tensor)
    assert_same(tmp_path / "big.pth", {"w": tensor})


REFUSED = {
    "the old format": (lambda path: torch.save(network().state_dict(), path, _use_new_zipfile_serialization=False),
                       "format of PyTorch before 1.6.*save it again"),
    "a module": (lambda path: torch.save(network(), path),
                 "holds an object of 'torch.nn.modules.container.Sequential', which dajax does not run"),
    "a module in a dict": (lambda path: torch.save({"model": network()}, path),
                           r"'model' \(an object of 'torch.nn.modules.container.Sequential': save its state_dict"),
    "a tensor": (lambda path: torch.save(drawn(3), path), "holds Tensor; expected a dict"),
    "a list": (lambda path: torch.save([drawn(3)], path), "holds a list; expected a dict"),
    "TorchScript": (lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path),
                    "is compressed: the file is TorchScript's"),
    "sparse": (lambda path: torch.save({"w": drawn(3, 3).to_sparse()}, path), "'torch._utils._rebuild_sparse"),
    "on no device": (lambda path: torch.save({"w": torch.zeros(3, device="meta")}, path), "meta_tensor"),
    "quantised": (lambda path: torch.save({"w": torch.quantize_per_tensor(drawn(3), 0.1, 0, torch.qint8)}, path),
                  "'torch._utils._rebuild_qtensor'"),
}  # fmt: skip


def test_other_types_are_no_params(tmp_path):
    state = torch.nn.BatchNorm1d(2).state_dict() | {"eight": drawn(3).to(torch.float8_e4m3fn)}
    torch.save(state, tmp_path / "model.pth")
    with TorchFile(tmp_path / "model.pth") as file:
        assert file.unusable["num_batches_tracked"].endswith("got LongStorage")
        assert file.unusable["eight"].endswith("got UntypedStorage")
        assert file.tensors.keys() == state.keys() - file.unusable.keys()


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, about what is deprecated
@pytest.mark.parametrize("kind", REFUSED)
def test_refused(tmp_path, kind):
    save, match = REFUSED[kind]
    path = tmp_path / "model.pth"
    save(str(path))
    assert path.name in refused(lambda: TorchFile(path), WeightsError, match)


@pytest.mark.slow
def test_over_four_gigabytes(tmp_path):
    """Sizes and places of 64 bits as PyTorch writes them."""
    state = {"big": torch.zeros(2**31 + 64, dtype=torch.bfloat16), "small": drawn(3, 5)}
    torch.save(state, tmp_path / "model.pth")
    with TorchFile(tmp_path / "model.pth") as file:
        assert file.tensors["big"].shape == (2**31 + 64,)
        assert file.read("small").tobytes() == raw(state["small"])
        file.verify_rest()


def write(path, state):
    """Write PyTorch's tensors without PyTorch."""
    arrays = {}
    for name, tensor in state.items():
        dtype = next(dtype for dtype in FLOAT_DTYPES.values() if str(tensor.dtype) == f"torch.{dtype}")
        arrays[name] = np.frombuffer(raw(tensor), dtype).reshape(tuple(tensor.shape))
    with path.open("wb") as file:
        write_torch(file, {name: (array.dtype, array.shape) for name, array in arrays.items()}, arrays.__getitem__)


def test_written_files_are_opened_by_torch(tmp_path):
    path = tmp_path / "model.pth"
    shapes = [(3, 5), (), (0, 4), (4, 0, 3), (7,), (2, 3, 4, 5)]
    state = {f"größe.{dtype}.{len(shape)}.{i}": drawn(*shape, dtype=dtype)
             for dtype in DTYPES for i, shape in enumerate(shapes)}  # fmt: skip
    write(path, state)
    for options in ({}, {"mmap": True}):
        found = torch.load(path, weights_only=True, **options)
        assert type(found) is collections.OrderedDict
        assert list(found) == list(state)
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            assert found[name].stride() == tensor.stride()
            assert found[name].device.type == "cpu"
            assert not found[name].requires_grad
            assert raw(found[name]) == raw(tensor)
    assert_same(path, state)


def test_written_files_are_aligned_for_torch(tmp_path):
    """PyTorch may map them into memory as they are."""
    path = tmp_path / "model.pth"
    write(path, {f"{size}": drawn(size) for size in range(1, 40)})
    reader = torch.PyTorchFileReader(str(path))
    assert all(reader.get_record_offset(f"data/{key}") % 64 == 0 for key in range(39))


def test_written_modules_load_strictly(tmp_path):
    model, other = network(), network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    write(tmp_path / "model.pth", model.state_dict())
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    for name, tensor in model.state_dict().items():
        assert raw(other.state_dict()[name]) == raw(tensor)
