"""PyTorch files put together by hand, part by part, so that each part can be wrong."""

import io
import pickle
import struct
import zlib
from contextlib import contextmanager

import numpy as np


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module: str, attribute: str) -> bytes:
    """A name as protocols 2 and 3 give it."""
    return f"c{module}\n{attribute}\n".encode()


def stacked(module: str, attribute: str) -> bytes:
    """A name as protocol 4 gives it."""
    raw = [module.encode(), attribute.encode()]
    return b"".join(b"\x8c" + bytes([len(part)]) + part for part in raw) + b"\x93"


ORDERED_DICT = name("collections", "OrderedDict") + b")R"


def storage(key="0", kind="FloatStorage", count=6, module="torch", location="cpu") -> bytes:
    parts = [text("storage"), name(module, kind), text(key), text(location), number(count)]
    return b"(" + b"".join(parts) + b"tQ"


def tensor(place=None, offset=0, shape=(2, 3), strides=(3, 1), rebuild="_rebuild_tensor_v2") -> bytes:
    parts = [storage() if place is None else place, number(offset), numbers(shape), numbers(strides)]
    if rebuild != "_rebuild_tensor":
        parts += [b"\x89", ORDERED_DICT]
    return name("torch._utils", rebuild) + b"(" + b"".join(parts) + b"tR"


def mapping(items: dict[str, bytes], start=b"}") -> bytes:
    return start + b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def unmemoised(value: object, protocol: int) -> bytes:
    """What Python's pickle makes of a value, without beginning, end, frames and memo: a part of another pickle."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol)
    pickler.fast = True
    pickler.dump(value)
    content = buffer.getvalue()[2:-1]
    return content[9:] if protocol >= 4 and content.startswith(b"\x95") else content


NUMBERS = np.arange(6, dtype=np.float32).tobytes()


def records(body: bytes, storages: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """The records of a file whose pickle is `body`."""
    storages = {"0": NUMBERS} if storages is None else storages
    return {
        "archive/data.pkl": pickled(body),
        "archive/byteorder": b"little",
        **{f"archive/data/{key}": data for key, data in storages.items()},
        "archive/version": b"3\n",
    }


def archive(
    parts: dict[str, bytes],
    *,
    wrong_local=(),
    wrong_central=(),
    wrong_end=(),
    descriptors=False,
    gap=b"",
    twice="",
    between=b"",
) -> bytes:
    """A zip archive of stored records.

    Args:
        parts: {name: content}.
        wrong_local, wrong_central, wrong_end: {field: value} that replace what belongs into the header and the
            directory's entry of the last record, and into the end.
        descriptors: sizes and checksums stand behind the records, as PyTorch has it.
        gap: bytes before the last record.
        twice: name of a record that stands twice in the directory.
        between: bytes between the directory and its end.
    """
    body, directory = b"", b""
    last = list(parts)[-1]
    for name, data in parts.items():
        if name == last:
            body += gap
        flags = 0x808 if descriptors else 0
        known = {"crc": zlib.crc32(data), "stored": len(data), "size": len(data)}
        common = {"flags": flags, "method": 0, **known, "name": name.encode("utf-8", "surrogateescape"), "extra": b""}
        local = common | (dict.fromkeys(known, 0) if descriptors else {}) | (dict(wrong_local) if name == last else {})
        central = common | {"offset": len(body)} | (dict(wrong_central) if name == last else {})
        body += struct.pack(
            "<4s5H3L2H", b"PK\3\4", 20, local["flags"], local["method"], 0, 0x21, local["crc"], local["stored"],
            local["size"], len(local["name"]), len(local["extra"]),
        ) + local["name"] + local["extra"] + data  # fmt: skip
        if descriptors:
            body += struct.pack("<4s3L", b"PK\7\x08", *known.values())
        entry = struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, central["flags"], central["method"], 0, 0x21, central["crc"],
            central["stored"], central["size"], len(central["name"]), len(central["extra"]), 0, 0, 0, 0,
            central["offset"],
        ) + central["name"] + central["extra"]  # fmt: skip
        directory += entry * (2 if name == twice else 1)
    count = len(parts) + bool(twice)
    end = {
        "disk": 0,
        "disk2": 0,
        "here": count,
        "count": count,
        "size": len(directory),
        "start": len(body),
        "comment": 0,
    }
    end |= dict(wrong_end)
    return body + directory + between + struct.pack("<4s4H2LH", b"PK\5\6", *end.values())


def torch_file(body: bytes | None = None, storages: dict[str, bytes] | None = None, **options) -> bytes:
    """A whole file: by default {"w": 0..5 as float32 [2, 3]}."""
    return archive(records(mapping({"w": tensor()}) if body is None else body, storages), **options)


@contextmanager
def flipped(path, bit):
    """A file of which one bit is another for a while."""

    def flip():
        with path.open("r+b") as file:
            file.seek(bit // 8)
            value = file.read(1)[0] ^ 1 << bit % 8
            file.seek(bit // 8)
            file.write(bytes([value]))

    flip()
    try:
        yield
    finally:
        flip()
