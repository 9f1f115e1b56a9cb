"""Draws odd image files of all formats from a seed, with the pixels that the formats' own formulas give.

`draw(seed)` is one file. Nothing here reads an image: PNG, PNM and BMP are written byte by byte, TIFF by tifffile, and
the formats that need a real encoder by Pillow, from flat or smooth images that a lossy encoder hardly changes.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
import tifffile
from PIL import Image


class Odd(NamedTuple):
    """A file, and what reading it must give.

    Attributes:
        name: what it is.
        data: the file.
        expected: float [height, width, 3], 0 to 255, laid on white; None if it may be anything or refused.
        tolerance: how far a pixel may be off.
        options: arguments of `read_image`.
        refused: what the message must have in it; "" if it must be read, unless `expected` is None.
    """

    name: str
    data: bytes
    expected: np.ndarray | None = None
    tolerance: float = 1.0
    options: dict[str, Any] = {}  # noqa: RUF012
    refused: str = ""


def draw(seed: int) -> Odd:
    """Return one file; a third of the seeds damage it."""
    rng = np.random.default_rng(seed)
    makers = (png, tiff, pnm, bmp, gif, jpeg, webp, avif, tiff_of_pillow, declared)
    odd = makers[seed % len(makers)](rng)
    if seed // len(makers) % 3 == 2 and odd.expected is not None:
        return damaged(odd, rng)
    return odd


def damaged(odd: Odd, rng: np.random.Generator) -> Odd:
    """Flip, cut or insert bytes."""
    data = bytearray(odd.data)
    for _ in range(rng.integers(1, 6)):
        data[rng.integers(len(data))] = rng.integers(256)
    if rng.random() < 0.4:
        del data[rng.integers(len(data)) :]
    if rng.random() < 0.2:
        at = rng.integers(len(data) + 1)
        data[at:at] = rng.bytes(rng.integers(1, 30))
    options = {**odd.options, "allow_truncated": bool(rng.random() < 0.5)}
    return Odd(f"damaged {odd.name}", bytes(data), None, options=options)


def size(rng) -> tuple[int, int]:
    return int(rng.integers(1, 70)), int(rng.integers(1, 70))


def smooth(rng, height, width, channels) -> np.ndarray:
    """Values from 0 to 1, slowly changing."""
    y, x = np.mgrid[:height, :width]
    slopes = rng.uniform(-1, 1, (2, channels)) / 2
    values = rng.uniform(0.3, 0.7, channels) + np.stack([x / 70, y / 70], -1) @ slopes
    return np.clip(values, 0, 1)


def on_white(colours, alpha) -> np.ndarray:
    return (colours * alpha + 1 - alpha) * 255


def grey(values) -> np.ndarray:
    return np.repeat(values[:, :, None] * 255, 3, axis=2)


# --- PNG -----------------------------------------------------------------------------------------------------------


def chunk(kind, data, wrong=False) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def packed(values, bits) -> bytes:
    """Rows of samples, each with filter 0, packed from the most significant bit."""
    rows = values.reshape(len(values), -1)
    if bits >= 8:
        return b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in rows)
    text = ["".join(f"{value:0{bits}b}" for value in row) for row in rows]
    text = [row + "0" * (-len(row) % 8) for row in text]
    return b"".join(b"\0" + int(row, 2).to_bytes(len(row) // 8, "big") for row in text)


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(rng) -> Odd:
    height, width = size(rng)
    colour = int(rng.choice([0, 2, 3, 4, 6]))
    bits = int(rng.choice({0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8]}.get(colour, [8, 16])))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    white = 2**bits - 1
    values = rng.integers(0, white + 1, (height, width, channels))
    before, alpha = [], np.ones((height, width, 1))
    if colour == 3:
        palette = rng.integers(0, 256, (white + 1, 3))
        before.append(chunk(b"PLTE", palette.astype("u1").tobytes()))
        shown = palette[values[:, :, 0]] / 255
        if rng.random() < 0.5:
            alphas = rng.integers(0, 256, white + 1)
            before.append(chunk(b"tRNS", alphas.astype("u1").tobytes()))
            alpha = alphas[values] / 255
    else:
        shown = np.repeat(values[:, :, :1], 3, 2) / white if channels < 3 else values[:, :, :3] / white
        if channels in (2, 4):
            alpha = values[:, :, -1:] / white
        elif rng.random() < 0.4 and (bits, colour) != (16, 2):
            key = values[0, 0]
            before.append(chunk(b"tRNS", b"".join(struct.pack(">H", int(level)) for level in key)))
            alpha = 1.0 - (values == key).all(-1, keepdims=True)
    metadata = [
        chunk(b"tEXt", b"Title\0x", wrong=bool(rng.random() < 0.5)),
        chunk(b"zTXt", b"Title\0\0" + zlib.compress(bytes(int(rng.choice([10, 3_000_000]))))),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(int(rng.choice([10, 3_000_000]))))),
        chunk(b"gAMA", struct.pack(">I", 45_455), wrong=bool(rng.random() < 0.5)),
    ]
    before = [metadata[i] for i in range(4) if rng.random() < 0.2] + before
    interlaced = bool(rng.random() < 0.4)
    if interlaced:
        parts = [values[y::dy, x::dx] for x, y, dx, dy in ADAM7]
        rows = b"".join(packed(part, bits) for part in parts if part.size)
    else:
        rows = packed(values, bits)
    data = zlib.compress(rows)
    cut = int(rng.integers(1, len(data)))
    body = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)), *before]
    body += [chunk(b"IDAT", data[:cut]), chunk(b"IDAT", b""), chunk(b"IDAT", data[cut:])]
    body += [metadata[0]] if rng.random() < 0.3 else []
    # Pillow keeps the upper 8 bits of colours and alpha of 16.
    name = f"PNG colour {colour}, {bits} bits{', interlaced' * interlaced}"
    content = b"\x89PNG\r\n\x1a\n" + b"".join([*body, chunk(b"IEND", b"")])
    return Odd(name, content, on_white(shown, alpha), 2.5)


# --- TIFF ----------------------------------------------------------------------------------------------------------


def tiff(rng) -> Odd:
    height, width = size(rng)
    kind = str(rng.choice(["minisblack", "miniswhite", "rgb", "separated"]))
    dtype = np.dtype(str(rng.choice(["u1", "u2", "u4", "u8", "i1", "i2", "i4", "f2", "f4", "f8"])))
    colours = {"rgb": 3, "separated": 4}.get(kind, 1)
    extra = str(rng.choice(["", "", "unassalpha", "assocalpha", "unspecified", "two"]))
    count = {"": 0, "two": 2}.get(extra, 1)
    shown = smooth(rng, height, width, colours)
    alpha = (
        rng.uniform(0.2, 1, (height, width, 1))
        if extra in ("unassalpha", "assocalpha")
        else np.ones((height, width, 1))
    )
    top = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
    inked = shown * alpha if extra == "assocalpha" else shown
    samples = np.concatenate([inked] + [alpha] * count, axis=2) if count else inked
    values = samples.astype(dtype) if dtype.kind == "f" else np.floor(samples * (top * (1 - 2**-30))).astype(dtype)
    planar = bool(rng.random() < 0.4) and values.shape[2] > 1
    options: dict[str, Any] = {}
    if dtype.kind != "u":
        options["value_range"] = (0.0, top)
    compression = rng.choice(["none", "lzw", "deflate", "packbits", "zstd"])
    compressed = compression != "none"
    if planar:
        values = np.moveaxis(values, 2, 0)
    elif values.shape[2] == 1:
        values = values[:, :, 0]
    more = {"extrasamples": {"two": ["unspecified"] * 2}.get(extra, [extra])} if count else {}
    if len(values.shape) == 3:
        more["planarconfig"] = "separate" if planar else "contig"
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        values,
        photometric=kind,
        metadata=None,
        byteorder=str(rng.choice(["<", ">"])),
        bigtiff=bool(rng.random() < 0.2),
        compression=str(compression) if compressed else None,
        predictor=bool(rng.random() < 0.4)
        and compression in ("lzw", "deflate")
        and dtype.itemsize < 8
        and dtype.kind != "f",
        tile=(16, 32) if rng.random() < 0.4 else None,
        rowsperstrip=None,
        **more,
    )
    name = f"TIFF {kind}+{extra} {dtype} {compression}{' planar' * planar}"
    if kind in ("minisblack", "miniswhite") and count == 2:
        return Odd(name, file.getvalue(), refused="a kind that dajax does not read", options=options)
    if kind == "separated" and count:
        return Odd(name, file.getvalue(), options=options)
    if extra == "assocalpha" and "value_range" in options:
        return Odd(name, file.getvalue(), refused="multiplied by alpha", options=options)
    if kind == "miniswhite":
        shown = shown if options else 1 - shown  # a range says itself which value is white
        if extra == "assocalpha":
            return Odd(name, file.getvalue())
    rgb = (
        np.repeat(shown, 3, 2)
        if colours == 1
        else shown[:, :, :3]
        if kind == "rgb"
        else (1 - shown[:, :, :3]) * (1 - shown[:, :, 3:])
    )
    # Colours that are multiplied by a small alpha have few levels.
    return Odd(
        name, file.getvalue(), on_white(rgb, alpha), 6.0 if extra == "assocalpha" or dtype == np.int8 else 3.0, options
    )


def tiff_of_pillow(rng) -> Odd:
    height, width = size(rng)
    mode = str(rng.choice(["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "YCbCr", "LAB"]))
    compression = str(rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group3", "group4"]))
    if compression.startswith("group"):
        mode = "1"
    elif compression == "jpeg":
        mode = str(rng.choice(["L", "RGB", "YCbCr"]))
    elif mode == "YCbCr":
        compression = "raw"
    rgb = np.rint(smooth(rng, height, width, 3) * 255).astype(np.uint8)
    image = Image.fromarray(rgb)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.rint(smooth(rng, height, width, 1)[:, :, 0] * 255).astype(np.uint8)))
    if mode == "LAB":
        image = Image.merge("LAB", [Image.new("L", (width, height), level) for level in (137, 128, 128)])
        expected = np.full((height, width, 3), 128.0)
    else:
        image = image if mode in ("RGB", "RGBA") else image.convert(mode)
        rgba = np.asarray(image.convert("RGBA")) / 255
        expected = on_white(rgba[:, :, :3], rgba[:, :, 3:])
    file = io.BytesIO()
    image.save(file, "TIFF", compression=compression, **({"quality": 95} if compression == "jpeg" else {}))
    tolerance = 14.0 if compression == "jpeg" else 6.0 if mode in ("YCbCr", "LAB") else 2.0
    if mode == "YCbCr" and compression == "raw":
        # TIFF 6.0, section 21: without the tag, chroma is halved both ways. Pillow writes neither the tag nor halves.
        return Odd(f"TIFF of Pillow, {mode} {compression}", file.getvalue(), refused="")
    return Odd(f"TIFF of Pillow, {mode} {compression}", file.getvalue(), expected, tolerance)


# --- PNM and BMP ---------------------------------------------------------------------------------------------------


def pnm(rng) -> Odd:
    height, width = size(rng)
    kind = int(rng.integers(1, 7))
    white = 1 if kind in (1, 4) else int(rng.choice([1, 2, 15, 100, 255, 256, 1023, 4095, 65_535]))
    values = rng.integers(0, white + 1, (height, width, 3) if kind in (3, 6) else (height, width))
    comment = b"# a comment\n" if rng.random() < 0.5 else b""
    head = b"P%d\n%s%d %d\n" % (kind, comment, width, height) + (b"" if kind in (1, 4) else b"%d\n" % white)
    if kind <= 3:
        body = bytes(rng.choice([b" ", b"\n", b"\t "])).join(b"%d" % value for value in values.ravel())
    elif kind == 4:
        body = np.packbits(values.astype("u1"), axis=1).tobytes()
    else:
        body = values.astype("u1" if white < 256 else ">u2").tobytes()
    shown = 1 - values if kind in (1, 4) else values / white
    return Odd(f"PNM {kind} up to {white}", head + body, shown * 255.0 if values.ndim == 3 else grey(shown))


def bmp(rng) -> Odd:
    height, width = size(rng)
    bits = int(rng.choice([1, 4, 8, 16, 24, 32]))
    down, old = bool(rng.random() < 0.3), bool(rng.random() < 0.3) and bits != 16
    runs = bits == 8 and rng.random() < 0.4 and not old
    down = down and not old and not runs
    palette = rng.integers(0, 256, (2**bits, 3)) if bits <= 8 else np.zeros((0, 3), int)
    if bits <= 8:
        values = rng.integers(0, 2**bits, (height, width))
        expected = palette[values][:, :, ::-1].astype(float)
    elif bits == 16:
        values = rng.integers(0, 2**15, (height, width))
        expected = np.stack([(values >> shift & 31) * 255 / 31 for shift in (10, 5, 0)], 2)
    else:
        values = rng.integers(0, 256, (height, width, bits // 8))
        expected = values[:, :, 2::-1].astype(float)
    rows = values if down else values[::-1]
    if runs:
        body = b"".join(b"".join(b"\1%c" % value for value in row.tolist()) + b"\0\0" for row in rows) + b"\0\1"
    elif bits < 8:
        parts = [
            row.tobytes()
            for row in np.packbits(
                ((rows[:, :, None] >> np.arange(bits)[::-1]) & 1).reshape(height, -1).astype("u1"), axis=1
            )
        ]
        body = b"".join(part + bytes(-len(part) % 4) for part in parts)
    else:
        parts = [row.astype("<u2" if bits == 16 else "u1").tobytes() for row in rows]
        body = b"".join(part + bytes(-len(part) % 4) for part in parts)
    if old:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
        colours = palette.astype("u1").tobytes()
    else:
        head = struct.pack(
            "<IiiHHIIiiII", 40, width, -height if down else height, 1, bits, int(runs), len(body), 0, 0, 0, 0
        )
        colours = np.concatenate([palette, np.zeros((len(palette), 1), int)], 1).astype("u1").tobytes()
    start = 14 + len(head) + len(colours)
    data = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + colours + body
    return Odd(f"BMP {bits} bits{' runs' * runs}{' old' * old}{' down' * down}", data, expected)


# --- formats that need an encoder ------------------------------------------------------------------------------------


def encoded(image, kind, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gif(rng) -> Odd:
    height, width = size(rng)
    indices = rng.integers(0, 32, (height, width)).astype(np.uint8)
    palette = rng.integers(0, 256, (32, 3))
    image = Image.fromarray(indices)
    image.putpalette(palette.astype(np.uint8).tobytes())
    options: dict[str, Any] = {"interlace": int(rng.random() < 0.5), "comment": b"x" * int(rng.integers(0, 3000))}
    alpha = np.ones((height, width, 1))
    if rng.random() < 0.4:
        options["transparency"] = int(indices[0, 0])
        alpha = 1.0 - (indices == indices[0, 0])[:, :, None]
    if rng.random() < 0.4:
        options |= {
            "save_all": True,
            "append_images": [Image.new("RGB", (width, height), 7)],
            "disposal": int(rng.integers(0, 3)),
        }
    return Odd("GIF", encoded(image, "GIF", **options), on_white(palette[indices] / 255, alpha))


def photograph(rng, mode):
    height, width = size(rng)
    values = np.rint(smooth(rng, height, width, 3) * 255).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def jpeg(rng) -> Odd:
    mode = str(rng.choice(["L", "RGB", "CMYK"]))
    image = photograph(rng, mode)
    exif = Image.Exif()
    orientation = int(rng.integers(0, 10))
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 95, "progressive": bool(rng.random() < 0.4), "exif": exif}
    if rng.random() < 0.3:
        options["restart_marker_blocks"] = int(rng.integers(1, 4))
    if mode != "L":
        options["subsampling"] = int(rng.integers(0, 3))
    expected = UPRIGHT.get(orientation, lambda a: a)(np.asarray(image.convert("RGB")).astype(float))
    return Odd(f"JPEG {mode} orientation {orientation}", encoded(image, "JPEG", **options), expected, 20)


def webp(rng) -> Odd:
    image = photograph(rng, "RGB")
    rgba = np.asarray(image) / 255
    alpha = np.ones((*rgba.shape[:2], 1))
    if rng.random() < 0.5:
        alpha = smooth(rng, *rgba.shape[:2], 1)
        image.putalpha(Image.fromarray(np.rint(alpha[:, :, 0] * 255).astype(np.uint8)))
    options: dict[str, Any] = {"lossless": bool(rng.random() < 0.5), "quality": 95, "exact": True, "method": 0}
    if rng.random() < 0.3:
        options |= {"save_all": True, "append_images": [Image.new("RGB", image.size, 7)]}
    return Odd("WebP", encoded(image, "WEBP", **options), on_white(rgba, alpha), 2 if options["lossless"] else 25)


def avif(rng) -> Odd:
    image = photograph(rng, "RGB")
    options = {"quality": 95, "speed": 10, "subsampling": "4:4:4", "max_threads": 1}
    return Odd("AVIF", encoded(image, "AVIF", **options), np.asarray(image).astype(float), 16)


# --- lies ----------------------------------------------------------------------------------------------------------


def declared(rng) -> Odd:
    """Small files that say that they are huge, or that are none of the formats."""
    big = int(rng.integers(20_000, 65_536))
    kind = str(rng.choice(["gif", "png", "bmp", "pnm", "tiff", "webp", "jpeg", "other"]))
    if kind == "gif":
        frame = struct.pack("<HHHH", 0, 0, big, big)
        data = b"GIF89a" + struct.pack("<HH", *(rng.choice([1, big], 2))) + b"\x80\0\0" + bytes(6)
        data += (
            b"!\xf9\x04" + bytes([int(rng.integers(0, 4)) << 2]) + bytes(4) + b"," + frame + b"\0\x02\x02\x44\x01\0;"
        )
    elif kind == "png":
        head = struct.pack(">IIBBBBB", big, big, int(rng.choice([8, 16])), int(rng.choice([0, 2, 6])), 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(999)))
    elif kind == "bmp":
        head = struct.pack("<IiiHHIIiiII", 40, big, big, 1, 8, int(rng.integers(0, 2)), 4, 0, 0, 0, 0)
        data = b"BM" + struct.pack("<IHHI", 1082, 0, 0, 1078) + head + bytes(1028)
    elif kind == "pnm":
        data = b"P%d %d %d 4095\n1 2 3" % (rng.integers(1, 7), big, big)
    elif kind == "tiff":
        tags = (
            (256, big),
            (257, big),
            (258, int(rng.choice([8, 16, 32]))),
            (259, 1),
            (262, 1),
            (273, 8),
            (277, 1),
            (279, 8),
        )
        data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
        data += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(12)
    elif kind == "webp":
        data = b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (big - 1).to_bytes(3, "little") * 2
    elif kind == "jpeg":
        data = b"\xff\xd8\xff\xc2\0\x0b\x08" + struct.pack(">HH", big, big) + b"\1\1\x11\0\xff\xda\0\x08\1\1\0\0\0\0"
    else:
        data = bytes(rng.choice([b"%PDF-1.7", b"8BPS\0\1", b"hello", b"\0" * 99, b"<html>", b"DDS |"])) + bytes(200)
        return Odd("no image", data, refused="an image")
    what = "run-length encoded BMP|more than max_pixels" if kind == "bmp" else "more than max_pixels"
    return Odd(f"{kind} that says it is {big} wide", data, refused=what)
