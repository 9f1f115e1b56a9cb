"""Depth maps to bytes of files. The same map gives the same bytes; values that are not finite give none."""

from __future__ import annotations

import io
import math
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from dajax.depth_maps.colormap import colorize
from dajax.errors import ConfigError, ImageError, JobError, missing_extra
from dajax.version import __version__

COLOUR_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
# Names of the PNG text entries; the format entry is what `read_png16` looks for.
PREFIX = "dajax."
PNG16_FORMAT = "depth16-1"
# All have the depth map; see `exr`.
EXR_CHANNELS = "RGBZ"
UNITS = {"relative": "affine-invariant inverse depth (bigger is nearer)", "metric": "metres"}

Values = Literal["float32", "float16"]
RawFormat = Literal["npy", "npz", "png16", "tiff", "pfm", "exr"]
Format = Literal["color", RawFormat]
# What is written beside the coloured depth map.
Raw = Literal["none", RawFormat]
# What is put behind an image's name.
ENDINGS: dict[str, str] = {
    "color": "_depth.png",
    "npy": "_depth.npy",
    "npz": "_depth.npz",
    "png16": "_depth16.png",
    "tiff": "_depth.tiff",
    "pfm": "_depth.pfm",
    "exr": "_depth.exr",
}


def encoded(
    form: str,
    depth: Any,
    *,
    kind: str,
    model: str = "",
    style: str = "",
    values: Values = "float32",
    colormap: str = "Spectral_r",
    png_scale: float | None = None,
) -> bytes:
    """Return the bytes of a depth map in one of the formats; which of the options count depends on it.

    Raises:
        ImageError: the map has values that are not finite or do not fit into `values`, or an option is not known.
        ConfigError: the format needs a library that is not installed, or `png_scale` cannot be used.
    """
    about = described(kind, model, style)
    if form == "color":
        # Near has the map's upper end, for metric models too.
        return color(-finite_map(depth) if kind == "metric" else depth, colormap, about=about)
    if form == "npy":
        return npy(depth, values)
    if form == "npz":
        return npz(depth, about, values)
    if form == "png16":
        return png16(depth, about, png_scale)
    if form == "tiff":
        return tiff(depth, about)
    if form == "pfm":
        return pfm(depth)
    if form == "exr":
        return exr(depth, about)
    raise ImageError(f"the format must be one of {', '.join(ENDINGS)}, got {form!r}")


def color(
    depth: Any,
    cmap: str = "Spectral_r",
    lo: float | None = None,
    hi: float | None = None,
    *,
    suffix: str = ".png",
    about: dict[str, str] | None = None,
) -> bytes:
    """Return a colour image, see `dajax.depth_maps.write_color`; `about` becomes part of its metadata."""
    if suffix not in COLOUR_FORMATS:
        raise ImageError(f"the suffix must be one of {', '.join(COLOUR_FORMATS)}, got {suffix!r}")
    return encoded_image(Image.fromarray(colorize(finite_map(depth), cmap, lo, hi)), suffix=suffix, about=about)


def encoded_image(image: Image.Image, *, suffix: str = ".png", about: dict[str, str] | None = None) -> bytes:
    """Return an 8-bit image as a file: PNG says what it is in text entries, JPEG and WebP in their description.

    By Exif 2.32 (CIPA DC-008), section 4.6.4, tag 270 ImageDescription is ASCII; JPEG keeps Exif in an APP1 segment
    (section 4.7.2), and WebP (RFC 9649, section 2.7.1.5) in a chunk "EXIF". No file has a colour profile: the colours
    are sRGB.
    """
    form = COLOUR_FORMATS[suffix]
    if about is None:
        return _saved(image, form)
    if form == "PNG":
        return _saved(image, form, pnginfo=_entries(about))
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = _sentence(about).encode("ascii", "backslashreplace").decode()
    return _saved(image, form, exif=exif)


def png16(depth: Any, about: dict[str, str], scale: float | None = None) -> bytes:
    """Return a 16-bit greyscale PNG with its scale, see `dajax.depth_maps.write_png16`.

    By PNG (ISO/IEC 15948), sections 11.2.2 and 11.3.4: colour type 0 with bit depth 16 is one number from 0 to 65535 a
    pixel, and text entries (tEXt, iTXt) have a keyword and a text.
    """
    depth = finite_map(depth)
    if scale is None:
        offset = float(depth.min())
        scale = (float(depth.max()) - offset) / 65535
        # A constant map has no step; it is all offset.
        steps = np.zeros(depth.shape) if scale == 0 else (depth.astype(np.float64) - offset) / scale
        stored = np.clip(np.rint(steps), 0, 65535).astype(np.uint16)
    else:
        check_png_scale(scale, about.get("kind", ""))
        offset, (stored, _) = 0.0, _fixed_steps(depth, scale)
    entries = _entries({"format": PNG16_FORMAT, "scale": repr(float(scale)), "offset": repr(offset), **about})
    return _saved(Image.fromarray(stored), "PNG", pnginfo=entries)


def check_png_scale(scale: float, kind: str) -> None:
    """Raise ConfigError if depth of this kind cannot be written with a fixed scale."""
    if isinstance(scale, bool) or not isinstance(scale, int | float | np.floating) or not 0 < scale < math.inf:
        raise ConfigError(f"png_scale must be a positive number of metres, got {scale!r}")
    if kind != "metric":
        raise ConfigError(
            "png_scale is the metres of a step, and this depth has none: it is affine-invariant inverse depth. Use a "
            "metric model, or leave png_scale out: each file then has a scale of its own"
        )


def misfits(depth: Any, png_scale: float) -> tuple[str, ...]:
    """Return a sentence about the values that a PNG with a fixed scale cannot hold, or nothing."""
    depth = finite_map(depth)
    _, count = _fixed_steps(depth, png_scale)
    if not count:
        return ()
    return (
        f"{count:,} of {depth.size:,} values do not fit into the 16-bit PNG, which holds {png_scale:g} to "
        f"{65535 * png_scale:g} metres: they are stored as 0, no value",
    )


def _fixed_steps(depth: np.ndarray, scale: float) -> tuple[np.ndarray, int]:
    """Return the numbers of steps as uint16, 0 for those that are not 1 to 65535, and how many those are."""
    with np.errstate(over="ignore"):
        steps = np.rint(depth.astype(np.float64) / scale)
    fits = (steps >= 1) & (steps <= 65535)
    return np.where(fits, steps, 0).astype(np.uint16), depth.size - int(np.count_nonzero(fits))


def npy(depth: Any, values: Values = "float32") -> bytes:
    """Return a .npy file of float32 or float16; nothing in it says whether it is relative or metric.

    By NumPy Enhancement Proposal 1 (numpy.lib.format): a magic number, a version, the length of a header, the header as
    a Python literal with descr, fortran_order and shape, and then the values, little-endian here.
    """
    stream = io.BytesIO()
    np.save(stream, in_type(depth, values), allow_pickle=False)
    return stream.getvalue()


def npz(depth: Any, about: dict[str, str], values: Values = "float32") -> bytes:
    """Return a compressed .npz file: "depth", and as text "kind", "units", "model", "style" and "version".

    By the documentation of numpy.savez an .npz is a ZIP archive of .npy files, each named after its array; here they
    are deflated.
    """
    stream = io.BytesIO()
    arrays: dict[str, Any] = {"depth": in_type(depth, values), **about}
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def tiff(depth: Any, about: dict[str, str]) -> bytes:
    """Return a float32 TIFF, deflated; its ImageDescription is "kind: …; units: …; model: …; style: …; version: …".

    By TIFF 6.0, section 19, SampleFormat 3 is IEEE floating point; Compression 8 is the deflate of Adobe Photoshop's
    TIFF technical notes (2002). By section 8 PhotometricInterpretation 1 (BlackIsZero) says that larger values are
    brighter, and no more: a viewer may take them for sRGB.
    """
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TiffImagePlugin.IMAGEDESCRIPTION] = _sentence(about)
    return _saved(Image.fromarray(finite_map(depth)), "TIFF", compression="tiff_adobe_deflate", tiffinfo=tags)


def exr(depth: Any, about: dict[str, str]) -> bytes:
    """Return an OpenEXR file, float32, losslessly compressed; kind, units and so on are attributes.

    Channels are found by their names. The "Technical Introduction to OpenEXR" gives R, G and B to the intensities of an
    image, linear in light, and "Interpreting OpenEXR Deep Pixels" gives Z to depth. R, G, B and Z all have the depth
    map: OpenCV and FFmpeg read nothing but colours, and Blender shows them, while compositors look for Z. The copies
    cost a tenth more bytes, since the same row of each channel lies side by side in the file.

    Raises:
        ConfigError: OpenEXR is not installed.
        JobError: it cannot write its temporary file.
    """
    depth = finite_map(depth)
    try:
        import OpenEXR
    except ImportError as error:
        raise ConfigError(missing_extra("exr", "EXR files need OpenEXR")) from error
    header = {"type": OpenEXR.scanlineimage, "compression": OpenEXR.ZIP_COMPRESSION}
    header |= {f"{PREFIX}{key}": value for key, value in about.items()}
    with tempfile.TemporaryDirectory() as folder:  # it only writes files with a name
        path = Path(folder) / "depth.exr"
        try:
            OpenEXR.File(header, dict.fromkeys(EXR_CHANNELS, np.ascontiguousarray(depth))).write(str(path))
        except RuntimeError as error:  # a full disk, for one
            raise JobError(f"no EXR file can be made in the folder for temporary files: {error}") from error
        return path.read_bytes()


def pfm(depth: Any) -> bytes:
    """Return a Portable Float Map: float32, the lowest row first; it has no room to say what it holds.

    By Paul Debevec's description of the format: "Pf" is one channel, then width and height, then a scale that is
    negative for little-endian values, and rows from bottom to top.
    """
    depth = finite_map(depth)
    header = f"Pf\n{depth.shape[1]} {depth.shape[0]}\n-1.0\n".encode("ascii")
    return header + np.ascontiguousarray(depth[::-1], "<f4").tobytes()


def described(kind: str, model: str, style: str = "") -> dict[str, str]:
    """Return what a file says about its values: kind, units, model, style (where it is known) and dajax's version.

    Raises:
        ImageError: the kind is neither "relative" nor "metric".
    """
    if kind not in UNITS:
        raise ImageError(f"kind must be one of {', '.join(UNITS)}, got {kind!r}")
    # Names come from outside; what is stored has to be text that every reader takes.
    model = os.fsencode(model).decode("utf-8", "backslashreplace")
    about = {"kind": kind, "units": UNITS[kind], "model": model, "style": style, "version": __version__}
    return {key: value for key, value in about.items() if value or key != "style"}


def finite_map(depth: Any) -> Float32[np.ndarray, "height width"]:
    """Return the map as float32.

    Raises:
        ImageError: it is not [height, width], or has values that are not finite.
    """
    array = np.asarray(depth)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "fiu":
        raise ImageError(f"depth must be numbers [height, width], got {array.dtype} {list(array.shape)}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ImageError(f"depth is {array[bad]} at index {list(bad)}; only finite depth is written")
    return array


def in_type(depth: Any, values: Values) -> np.ndarray:
    """Return the map as float32 or float16.

    Raises:
        ImageError: see `finite_map`; or a value is beyond float16's largest, 65504.
    """
    depth = finite_map(depth)
    if values == "float32":
        return depth
    with np.errstate(over="ignore"):
        narrow = depth.astype(np.float16)
    if not np.isfinite(narrow).all():
        raise ImageError(f"depth of up to {np.abs(depth).max():.6g} does not fit into float16, whose largest is 65504")
    return narrow


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    if form == "PNG":
        # A third of the default's time, for a tenth more bytes.
        options["compress_level"] = 4
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _entries(about: dict[str, str]) -> PngImagePlugin.PngInfo:
    entries = PngImagePlugin.PngInfo()
    for key, value in about.items():
        entries.add_text(PREFIX + key, value)
    return entries


def _sentence(about: dict[str, str]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in about.items())
