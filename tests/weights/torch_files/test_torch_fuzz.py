"""Files of which bits or opcodes are changed at random, and files read by several threads."""

import pickle
import random
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch_parts import (
    NUMBERS,
    ORDERED_DICT,
    archive,
    flipped,
    mapping,
    name,
    pickled,
    stacked,
    storage,
    tensor,
)

from dajax.errors import WeightsError
from dajax.weights.safetensors_io import FLOAT_DTYPES
from dajax.weights.torch_files.torch_file import TorchFile
from dajax.weights.torch_files.torch_names import GLOBALS
from dajax.weights.torch_files.torch_write import write_torch

FLOATS = list(FLOAT_DTYPES.values())


def seeded_file(path, count=20):
    """A checkpoint of some 40 kB; the tensors."""
    generator = np.random.default_rng(0)
    tensors = {
        f"block.{index}.weight": generator.standard_normal((8 + index, 31)).astype(dtype)
        for index, dtype in zip(range(count), FLOATS * count, strict=False)
    }
    with path.open("wb") as file:
        write_torch(file, {name: (array.dtype, array.shape) for name, array in tensors.items()}, tensors.__getitem__)
    return tensors


def test_a_thousand_flips(tmp_path):
    """Single bits of the tensors' data, at random: each is noticed when its tensor is read."""
    path = tmp_path / "model.pth"
    tensors = seeded_file(path)
    content = path.read_bytes()
    starts = {name: content.index(array.tobytes()) for name, array in tensors.items()}
    draw = random.Random(0)
    refusals = 0
    for _ in range(1000):
        name = draw.choice(list(tensors))
        bit = 8 * starts[name] + draw.randrange(8 * tensors[name].nbytes)
        with flipped(path, bit), TorchFile(path) as file:
            try:
                file.read(name)
            except WeightsError as error:
                assert repr(name) in str(error)  # noqa: PT017
                assert path.name in str(error)  # noqa: PT017
                refusals += 1
    assert refusals == 1000


def test_two_threads(tmp_path):
    path = tmp_path / "model.pth"
    tensors = seeded_file(path, 200)
    with TorchFile(path) as file, ThreadPoolExecutor(2) as pool:
        buffers = [np.empty(max(array.nbytes for array in tensors.values()), np.uint8) for _ in range(2)]

        def read(half):
            return {name: file.read(name, buffers[half]).copy() for name in list(tensors)[half::2]}

        halves = list(pool.map(read, range(2)))
    for key, found in (halves[0] | halves[1]).items():
        assert found.tobytes() == tensors[key].tobytes()


def mutated(content, draw):
    """A pickle with one to five bytes, or runs of bytes, changed."""
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        place, length = draw.randrange(len(content)), draw.randint(1, 8)
        match draw.randrange(6):
            case 0:
                content[place] ^= 1 << draw.randrange(8)
            case 1:
                content[place] = draw.randrange(256)
            case 2:
                content[place:place] = draw.randbytes(length)
            case 3:
                del content[place : place + length]
            case 4:
                del content[max(place, 1) :]
            case 5:  # some other part of it
                start = draw.randrange(len(content))
                content[place:place] = content[start : start + 4 * length]
        content = content or bytearray(1)
    return bytes(content)


def fuzz(path, seeds):
    """Read checkpoints whose pickle is mutated and whose checksums are right; return how many are accepted."""
    state = mapping({"a": tensor(), "b": tensor(storage("1", "HalfStorage", 12), 1, (3, 2), (1, 3))}, ORDERED_DICT)
    adam = mapping({"state": mapping({"exp_avg": tensor()}), "groups": b"](" + mapping({"lr": b"G" + bytes(8)}) + b"e"})
    body = mapping({"model": state + mapping({"_metadata": b"}"}) + b"b", "optimizer": adam, "epoch": b"K\3"})
    framed = body
    for module, attribute in GLOBALS:
        framed = framed.replace(name(module, attribute), stacked(module, attribute))
    framed = b"\x80\4\x95" + struct.pack("<Q", len(framed) + 1) + framed + b"."
    python = pickle.dumps({"epoch": 3, "best": np.float64(0.5), "names": ["a", ("b", {"c"})], "model": {}}, 4)
    starts = [pickled(body), framed, pickled(body), framed, python]
    accepted = 0
    for seed in seeds:
        draw = random.Random(seed)
        content = mutated(starts[seed % len(starts)], draw)
        parts = {"archive/data.pkl": content, "archive/data/0": NUMBERS, "archive/data/1": NUMBERS}
        path.write_bytes(archive(parts))
        start = time.process_time()
        try:
            with TorchFile(path) as file:
                for tensor_name, info in file.tensors.items():
                    found = file.read(tensor_name)
                    assert (found.shape, found.dtype) == (info.shape, info.dtype)
                    assert found.dtype in FLOATS
                    found.tobytes()
            accepted += 1
        except WeightsError as error:
            assert path.name in str(error)  # noqa: PT017
        assert time.process_time() - start < 1, seed
        path.unlink()
    return accepted


def test_mutated_pickles(tmp_path):
    """Whatever the bytes: an error that is ours, or tensors as described; never anything else."""
    accepted = fuzz(tmp_path / "model.pth", range(4000))
    assert 20 < accepted < 2000
