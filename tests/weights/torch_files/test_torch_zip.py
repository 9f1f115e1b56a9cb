"""The container of PyTorch files: nothing but what torch.save writes."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from refusal import refused
from torch_parts import NUMBERS, archive, flipped, mapping, pickled, records, storage, tensor, torch_file

from dajax.errors import WeightsError
from dajax.weights.torch_files.torch_file import TorchFile

GOOD = records(mapping({"w": tensor()}))


def zipped(parts, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written:
        for name, data in parts.items():
            written.writestr(name, data)
    return file.getvalue()


def with_record(name, data=b"x"):
    return archive({name: data, **GOOD})


def bomb():
    """A hundred megabytes of zeros in a hundred kilobytes."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"".join(compressor.compress(bytes(10**6)) for _ in range(100)) + compressor.flush()
    known = {"method": 8, "size": 10**8}
    return archive(GOOD | {"archive/x": data}, wrong_local=known, wrong_central=known)


def wide(size, *values):
    return {"size": size, "extra": struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)}


FULL = 0xFFFFFFFF
SAYS = "is not what the directory says"
LAST = len(GOOD["archive/version"])
PLAIN = archive(GOOD)

# name -> (bytes of the file, what the message says)
DAMAGED = {
    **{f"{size} bytes": (PLAIN[:size], f"has {size} bytes") for size in (0, 7, 22)},
    **{f"cut to {size} bytes": (PLAIN[:size], "cut off|does not end") for size in (23, 100, len(PLAIN) - 1)},
    "first byte missing": (PLAIN[1:], "not a PyTorch file"),
    "something before": (b"#!/bin/sh\n" + PLAIN, "not a PyTorch file"),
    "a record before": (PLAIN[:90] + PLAIN, "not where and as long as its end says"),
    "appended byte": (PLAIN + b"\0", "something was appended"),
    "appended zip": (PLAIN + PLAIN, "not where and as long as its end says"),
    "a comment": (torch_file(wrong_end={"comment": 3}) + b"abc", "something was appended"),
    "a comment without its text": (torch_file(wrong_end={"comment": 3}), "something was appended"),
    "empty archive": (archive({"a/b": b""})[-22:], "has 22 bytes"),
    "no records": (PLAIN[:-22] + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, len(PLAIN) - 22, 0), "0 records"),
    "several disks": (torch_file(wrong_end={"disk": 1}), "damaged directory"),
    "counts differ": (torch_file(wrong_end={"here": 1}), "damaged directory"),
    "one record too many": (torch_file(wrong_end={"here": 5, "count": 5}), "ends within"),
    "one record too few": (torch_file(wrong_end={"here": 3, "count": 3}), "belong to no record"),
    "65,535 records": (torch_file(wrong_end={"here": 65535, "count": 65535}), "65,535 records"),
    "directory of 4 GB": (torch_file(wrong_end={"size": FULL}), "not where and as long"),
    "directory elsewhere": (torch_file(wrong_end={"start": 0}), "not where and as long"),
    "bytes after the directory": (torch_file(between=b"hidden"), "not where and as long"),
    "20,001 records": (torch_file(wrong_end={"here": 20_001, "count": 20_001}), "20,001 records"),
    "20,000 records, the last of them wrong": (
        archive({f"archive/data/{i}": b"" for i in range(20_000)}, wrong_local={"crc": 1}), "19999.*not what the dir"),
    "long names": (archive({f"archive/{i}{'x' * 9000}": b"" for i in range(9)}), "up to 500 bytes each"),
    "twice in the directory": (torch_file(twice="archive/data/0"), "'archive/data/0' stands 2 times"),
    "two data.pkl of one name": (torch_file(twice="archive/data.pkl"), "'archive/data.pkl' stands 2 times"),
    "two data.pkl": (with_record("archive/data/data.pkl", pickled(b"}")), "expected one data.pkl.*data/data.pkl"),
    "no data.pkl": (archive({"archive/version": b"3"}), r"expected one data.pkl, found \[\]"),
    "two folders": (with_record("other/data/0"), "several folders, 'archive' and 'other'"),
    "two folders with data.pkl": (archive({"a/data.pkl": b"", "b/data.pkl": b""}), "several folders"),
    "no folder": (archive({"data.pkl": b""}), "'data.pkl': expected folder/name"),
    "traversal": (with_record("archive/../../etc/passwd"), "etc/passwd': expected folder/name"),
    "traversal at the start": (with_record("../data.pkl"), "expected folder/name"),
    "a dot": (with_record("archive/./data.pkl"), "expected folder/name"),
    "absolute": (with_record("/etc/passwd"), "'/etc/passwd': expected folder/name"),
    "absolute as everything": (
        archive({f"/{name}": data for name, data in GOOD.items()}), "'/archive/data.pkl': expected folder/name"),
    "backslashes": (with_record("archive\\..\\data.pkl"), "expected folder/name"),
    "drive": (with_record("C:/data/0"), "'C:/data/0': expected folder/name"),
    "NUL": (with_record("archive/data/1\0.txt"), "expected folder/name"),
    "empty name": (with_record(""), "'': expected folder/name"),
    "folder": (with_record("archive/data/"), "'archive/data/': expected folder/name"),
    "not UTF-8": (with_record("archive/\udcff"), "not UTF-8"),
    "encrypted": (torch_file(wrong_local={"flags": 1}, wrong_central={"flags": 1}), "version' is encrypted"),
    "strong encryption": (torch_file(wrong_local={"flags": 0x41}, wrong_central={"flags": 0x41}), "encrypted"),
    "patched data": (torch_file(wrong_local={"flags": 32}, wrong_central={"flags": 32}), "another kind"),
    "deflate": (zipped(GOOD, zipfile.ZIP_DEFLATED), "data.pkl' is compressed"),
    "bzip2": (zipped(GOOD, zipfile.ZIP_BZIP2), "data.pkl' is compressed"),
    "lzma": (zipped(GOOD, zipfile.ZIP_LZMA), "encrypted, or of another kind|compressed"),
    "deflate bomb": (bomb(), "'archive/x' is compressed"),
    "sizes differ": (torch_file(wrong_central={"size": 5}), "version' is compressed"),
    "method only in the header": (torch_file(wrong_local={"method": 8}), "version' is not what the directory says"),
    "flags only in the header": (torch_file(wrong_local={"flags": 8}), SAYS),
    "flags only in the directory": (torch_file(wrong_central={"flags": 8}), SAYS),
    "other name in the header": (torch_file(wrong_local={"name": b"archive/versiom"}), SAYS),
    "longer name in the header": (torch_file(wrong_local={"name": b"archive/version0"}), SAYS),
    "longer name in the header, of which a byte is not the name's": (
        PLAIN.replace(b"\x0f\0\0\0archive/version", b"\x10\0\0\0archive/version"), SAYS),
    "other size in the header": (torch_file(wrong_local={"size": 1, "stored": 1}), SAYS),
    "no size in the header": (torch_file(wrong_local={"size": 0, "stored": 0}), SAYS),
    "other checksum in the header": (torch_file(wrong_local={"crc": 1}), SAYS),
    "a shorter record": (torch_file(wrong_central={"size": 1, "stored": 1}), SAYS),
    "a longer record": (torch_file(wrong_central={"size": 9, "stored": 9}), SAYS),
    "a record of 4 GB": (torch_file(wrong_central={"size": FULL - 1, "stored": FULL - 1}), SAYS),
    "overlap": (torch_file(wrong_central={"offset": 1}), "bytes|is not what"),
    "the same place": (torch_file(wrong_central={"offset": 0}), SAYS),
    "past the end": (torch_file(wrong_central={"offset": 10**6}), "belong to no record|is not what"),
    "hole": (torch_file(gap=b"hidden"), SAYS),
    "hole before all": (archive({"archive/data.pkl": b""}, gap=b"PK\3\4" + bytes(40)), "0..44 belong to no record"),
    "wrong descriptor": (
        torch_file(descriptors=True).replace(b"PK\7\x08" + struct.pack("<2L", zlib.crc32(NUMBERS), 24),
                                             b"PK\7\x08" + struct.pack("<2L", zlib.crc32(NUMBERS), 25)), SAYS),
    "wide size without its field": (torch_file(wrong_central={"size": FULL, "stored": FULL}), "sizes.*are damaged"),
    "wide size in half a field": (torch_file(wrong_central=wide(FULL, 2) | {"stored": FULL}), "sizes.*are damaged"),
    "wide size of 2^64-1": (torch_file(wrong_central=wide(FULL, 2**64 - 1) | {"stored": 2**64 - 1 & FULL}), "damaged"),
    "wide sizes of 2^64-1": (
        torch_file(wrong_central=wide(FULL, 2**64 - 1, 2**64 - 1) | {"stored": FULL}), SAYS),
    "wide offset of 2^64-1": (
        torch_file(wrong_central=wide(LAST, 2**64 - 1) | {"offset": FULL}), "belong to no record|not what"),
    "extra field past its end": (
        torch_file(wrong_central={"size": FULL, "stored": FULL, "extra": struct.pack("<2HQ", 1, 60000, 2)}), "damaged"),
    "wrong checksum of data.pkl": (
        archive({"archive/version": b"3", "archive/data.pkl": pickled(b"}")}, wrong_local={"crc": 7},
                wrong_central={"crc": 7}), "'data.pkl' has checksum .*00000007 was expected"),
    "huge data.pkl": (archive(GOOD | {"archive/data.pkl": bytes(5_000_000)}), "data.pkl' has 5,000,000 bytes"),
    "huge byteorder": (archive(GOOD | {"archive/byteorder": bytes(5_000_000)}), "byteorder' has 5,000,000 bytes"),
    "word": (zipped({"word/document.xml": b"<xml/>", "word/styles.xml": b"<xml/>"}), "not one that torch.save wrote"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(tmp_path, name):
    content, match = DAMAGED[name]
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    message = refused(lambda: TorchFile(path), WeightsError, match)
    assert path.name in message
    assert len(message) < 1000 + len(str(path))


GOOD_FILES = {
    "sizes before": torch_file(),
    "sizes behind": torch_file(descriptors=True),
    "python's zipfile": zipped(GOOD),
    "wide sizes": torch_file(
        wrong_central=wide(FULL, LAST, LAST) | {"stored": FULL}, wrong_local=wide(FULL, LAST, LAST) | {"stored": FULL}
    ),
    "extra field": torch_file(wrong_local={"extra": b"xxxx"}),
    "without byteorder": archive({name: data for name, data in GOOD.items() if "byteorder" not in name}),
    "other folder": archive({name.replace("archive", "modèle 3"): data for name, data in GOOD.items()}),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_good(tmp_path, name):
    """What the damaged ones are made of is read."""
    path = tmp_path / "model.pth"
    path.write_bytes(GOOD_FILES[name])
    with TorchFile(path) as file:
        np.testing.assert_array_equal(file.read("w"), np.arange(6, dtype=np.float32).reshape(2, 3))
        file.verify_rest()


def read_all(path):
    with TorchFile(path) as file:
        found = {name: file.read(name) for name in file.tensors}
        file.verify_rest()
    return found


def test_every_flip_in_a_record(tmp_path):
    """Of all records' bits, in optimizer state and version as well as in tensors, each one counts."""
    state = mapping({"state": mapping({"m": tensor(storage("1"))})})
    parts = records(
        mapping({"model": mapping({"w": tensor()}), "optimizer": state}), {"0": NUMBERS, "1": NUMBERS[::-1]}
    )
    content = archive(parts, descriptors=True)
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert read_all(path)["w"].tobytes() == NUMBERS
    places = [range(start := content.index(data), start + len(data)) for data in parts.values()]
    bits = [8 * place + bit for part in places for place in part for bit in range(8)]
    assert len(bits) > 3000
    for bit in bits:
        with flipped(path, bit), pytest.raises(WeightsError, match=r"model\.pth"):
            read_all(path)


def test_flips_anywhere(tmp_path):
    """A flip in a field without meaning (a date, say) does no harm; one with a meaning is noticed."""
    content = torch_file(descriptors=True)
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    refusals = 0
    for bit in range(8 * len(content)):
        try:
            with flipped(path, bit):
                assert read_all(path)["w"].tobytes() == NUMBERS
        except WeightsError:
            refusals += 1
    assert refusals > 0.8 * 8 * len(content)


def test_past_four_gigabytes(tmp_path):
    """Sizes and places of 64 bits, in a sparse file, as PyTorch writes them."""
    big = 2**32 + 64
    body = mapping({"big": tensor(storage(count=big // 4), shape=(big // 4,), strides=(1,)), "w": tensor(storage("1"))})
    path = tmp_path / "model.pth"
    directory = b""

    def add(file, name, size, data=None):
        nonlocal directory
        raw, at = f"archive/{name}".encode(), file.tell()
        crc = 0 if data is None else zlib.crc32(data)
        file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(raw), 0) + raw)
        if data is None:
            file.seek(size, os.SEEK_CUR)
        else:
            file.write(data)
        is_wide = size >= FULL or at >= FULL
        file.write(struct.pack("<4sL2Q" if is_wide else "<4s3L", b"PK\7\x08", crc, size, size))
        values = [size, size, at]
        past = [value for value in values if value >= FULL]
        extra = struct.pack(f"<2H{len(past)}Q", 1, 8 * len(past), *past) if past else b""
        size_32, stored_32, at_32 = (min(value, FULL) for value in values)
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 0, 0, 0x808, 0, 0, 0, crc, stored_32, size_32, len(raw), len(extra),
            0, 0, 0, 0, at_32,
        ) + raw + extra  # fmt: skip

    with path.open("wb") as file:
        add(file, "data.pkl", len(pickled(body)), pickled(body))
        add(file, "data/0", big)
        add(file, "data/1", 24, NUMBERS)
        start = file.tell()
        file.write(directory)
        end64 = file.tell()
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, len(directory), start))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end64, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, len(directory), FULL, 0))
    with TorchFile(path) as file:
        assert file.tensors["big"].shape == (big // 4,)
        assert file.read("w").tobytes() == NUMBERS
    # Each field of the two ends counts.
    fields = (0, 4, 16, 20, 24, 32, 40, 48, 56 + 4, 56 + 8, 56 + 16)
    for field in fields:
        with flipped(path, 8 * (end64 + field)), pytest.raises(WeightsError, match=r"damaged directory|appended"):
            TorchFile(path)
