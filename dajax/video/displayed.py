"""Turns a decoded frame into the image that a player shows, and says how the colours of a size are stored."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from dajax.errors import ImageError
from dajax.images.pixels import rgb_from_array

# The colour codes are those of ITU-T H.273, which containers and codecs share.
BT709, BT601, BT2020 = 1, 6, 9
_PQ, _HLG = 16, 18
# The tags of a frame, and the number of each that says nothing.
_TAGS = {"colorspace": 2, "color_primaries": 2, "color_trc": 2, "color_range": 0}
_OTHER_CURVES = {8: "linear light", 9: "logarithmic", 10: "logarithmic", 17: "SMPTE ST 428-1"}
# Matrices that FFmpeg's libswscale knows (BT.709, FCC, BT.601 twice, SMPTE 240M, BT.2020), and those that it does not.
_MATRICES = {BT709, 4, 5, BT601, 7, BT2020}
_OTHER_MATRICES = {
    8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "SMPTE ST 2085", 12: "derived from the primaries",
    13: "derived from the primaries, with constant luminance", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re",
    17: "YCgCo-Ro",
}  # fmt: skip
# What lies outside is no shape of a pixel: the widest in use is 32:11, that of half-width PAL in 16:9.
_ASPECTS = (Fraction(1, 10), Fraction(10))
# A display matrix may be off by so much, which is one degree, as in FFmpeg's own player.
_TURNED = 0.018

# BT.2408, 5.1: the white of SDR is the reference white of HDR, in cd/m2.
_WHITE = 203.0
# The peak of the reference display of BT.2100 (tables 4 and 5), in cd/m2.
_PEAK = 1000.0
# BT.2100, table 4: the constants of PQ.
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
# BT.2100, table 5: the constants of HLG, and the gamma of a display of 1000 cd/m2.
_A, _B, _C, _GAMMA = 0.17883277, 0.28466892, 0.55991073, 1.2
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # BT.2100, of linear BT.2020
# BT.1886: the gamma of an SDR display.
_SDR_GAMMA = 2.4
# BT.2087-0, annex 2: linear BT.2020 to linear BT.709.
_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # fmt: skip


def displayed(frame: Any, aspect: Fraction, notes: set[str], like: Any = None) -> UInt8[np.ndarray, "height width 3"]:
    """Return what a player shows of a decoded frame.

    The colours are RGB for an SDR display. Those of HDR (PQ and HLG) are tone-mapped as ITU-R BT.2390 says, to a white
    of 203 cd/m2; BT.2020 becomes BT.709. Transparent pixels are laid on white, as in images. Pixels become square: the
    shorter side of a pixel is enlarged. The display matrix turns and mirrors.

    Args:
        frame: av.VideoFrame.
        aspect: width of a pixel / height of a pixel, as `pixel_aspect` gives it.
        notes: gets what is not shown as the file asks, one sentence each.
        like: a frame of the same video that has the colour tags and the display matrix, where this one lacks them.

    Raises:
        ImageError: the frame has a colour matrix that cannot be converted. The message does not name the file.
    """
    if like is not None:
        for tag, unstated in _TAGS.items():
            if getattr(frame, tag) == unstated:
                setattr(frame, tag, getattr(like, tag))
    pixels = _opaque_rgb(frame, notes)
    height, width = pixels.shape[:2]
    if aspect != 1:
        size = shown_size(height, width, aspect)
        pixels = np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return _oriented(pixels, frame if like is None else like, notes)


def pixel_aspect(stated: Fraction | None, notes: set[str]) -> Fraction:
    """Return the shape of pixels that a file states if pixels can have it, and 1 otherwise."""
    if not stated or _ASPECTS[0] <= stated <= _ASPECTS[1]:
        return stated or Fraction(1)
    notes.add(f"its pixel aspect ratio {stated} is not plausible and was ignored")
    return Fraction(1)


def shown_size(height: int, width: int, aspect: Fraction) -> tuple[int, int]:
    """Return (height, width) of a frame with square pixels. Nothing gets smaller."""
    return (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width)


def matrix_of_size(height: int, width: int) -> int:
    """Return the colour matrix of a video that states none: BT.601 up to 1279x576 (width x height), else BT.709.

    BT.601 has at most 576 lines of 720 pixels, BT.709 is HD. Players guess so.
    """
    return BT601 if height <= 576 and width < 1280 else BT709


def _opaque_rgb(frame: Any, notes: set[str]) -> np.ndarray:
    """Return the colours, uint8 [height, width, 3], in the stored shape."""
    curve, primaries = frame.color_trc, frame.color_primaries
    _state_colours(frame, notes)
    form = frame.format
    alpha = form.has_palette or any(part.is_alpha for part in form.components)
    if curve in (_PQ, _HLG) or primaries == BT2020:
        wide = frame.to_ndarray(format="rgba64le" if alpha else "rgb48le")
        white = 65535 if form.is_rgb else 65280  # libswscale makes white of YUV to 255 * 256
        strips = np.array_split(wide[..., :3], -(-frame.width * frame.height >> 16))  # fit in the cache
        pixels = np.concatenate([_sdr(strip, curve, white) for strip in strips])
        if alpha:
            pixels = np.dstack([pixels, (wide[..., 3] >> 8).astype(np.uint8)])
    else:
        pixels = frame.to_ndarray(format="rgba" if alpha else "rgb24")
    return rgb_from_array(pixels, "frame", (255, 255, 255), None, []) if alpha else pixels


def _state_colours(frame: Any, notes: set[str]) -> None:
    """Give a frame without a colour matrix that of its size; refuse matrices that FFmpeg would take for another."""
    if frame.color_trc in _OTHER_CURVES:
        notes.add(f"its transfer curve ({_OTHER_CURVES[frame.color_trc]}) was not converted: colours are as stored")
    # PyAV 17 refuses frames with curves that libswscale does not know.
    frame.color_trc = frame.color_primaries = _TAGS["color_trc"]
    if frame.format.is_rgb or len(frame.format.components) < 3:
        return
    if frame.colorspace in _OTHER_MATRICES:
        raise ImageError(f"its colour matrix ({_OTHER_MATRICES[frame.colorspace]}) cannot be converted to RGB")
    if frame.colorspace not in _MATRICES:  # nothing is stated, a reserved number, or RGB, which this frame is not
        frame.colorspace = matrix_of_size(frame.height, frame.width)


def _oriented(pixels: np.ndarray, frame: Any, notes: set[str]) -> np.ndarray:
    """Turn and mirror the pixels as the display matrix of the frame says.

    ISO/IEC 14496-12, 8.3.2 and FFmpeg's display.h: nine numbers a b u c d v x y w. The pixel (p, q), q counted
    downwards, is shown at (a p + c q, b p + d q), up to scale and shift.
    """
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know the kind of another side data, such as EXIF
        angle = np.deg2rad(frame.rotation)  # counterclockwise
        a, b, c, d = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    else:
        if data is None:
            return pixels
        a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(np.float64)
    rows = np.array([[a, c], [b, d]])
    turn = rows / np.maximum(np.hypot(*rows.T), 1e-9)[:, None]
    whole = np.rint(turn)
    if np.abs(turn - whole).max() > _TURNED or abs(np.linalg.det(whole)) < 0.5:
        notes.add("its display matrix is no turn by quarters and no mirroring, and was ignored")
        return pixels
    if whole[0, 0] == 0:
        pixels = pixels.swapaxes(0, 1)
    across, down = whole.sum(axis=1).astype(int)
    return np.ascontiguousarray(pixels[::down, ::across])


def _sdr(code: UInt16[np.ndarray, "height width 3"], curve: int, white: int) -> UInt8[np.ndarray, "height width 3"]:
    """Return BT.2020 colours of a transfer curve as BT.709 for an SDR display."""
    light = _light(curve, white)[code]
    if curve == _HLG:  # from the light of the scene to that of the display
        light = _PEAK * (light @ _LUMINANCE)[..., None] ** np.float32(_GAMMA - 1) * light
    if curve in (_PQ, _HLG):
        brightest = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])
        light = light * _tone_map()[(brightest * np.float32(65535 / 10000)).astype(np.uint16)][..., None]
    narrow = np.clip(light @ (_TO_709.T / np.float32(_WHITE)), 0, 1) ** np.float32(1 / _SDR_GAMMA)
    return np.rint(255 * narrow).astype(np.uint8)


@cache
def _light(curve: int, white: int) -> np.ndarray:
    """Return the light of each 16-bit code: cd/m2, of HLG that of the scene from 0 to 1."""
    signal = np.minimum(np.arange(65536) / white, 1)
    if curve == _PQ:
        light = _pq_light(signal)
    elif curve == _HLG:
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - _C) / _A) + _B) / 12)
    else:
        light = _WHITE * signal**_SDR_GAMMA
    return light.astype(np.float32)


@cache
def _tone_map() -> np.ndarray:
    """Return what the light of a pixel is multiplied by, for each brightness of its brightest colour up to 10000 cd/m2.

    The steps are 0.15 cd/m2 wide; below 90 cd/m2 nothing changes.
    """
    light = np.linspace(0, 10000, 65536)[1:]
    return np.append(1.0, _pq_light(_eetf(_pq_signal(light))) / light).astype(np.float32)


def _eetf(signal: np.ndarray) -> np.ndarray:
    """BT.2390, 5.4.1: the signal in PQ of a display of `_PEAK` to that of one of `_WHITE`, both with a black of 0."""
    top = _pq_signal(_PEAK)
    one = np.minimum(signal / top, 1)
    highest = _pq_signal(_WHITE) / top
    knee = 1.5 * highest - 0.5
    t = (one - knee) / (1 - knee)
    bend = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * highest
    return np.where(one < knee, one, bend) * top


def _pq_light(signal: np.ndarray) -> np.ndarray:
    """BT.2100, table 4: cd/m2 of a signal in PQ."""
    root = signal ** (1 / _M2)
    return 10000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)


def _pq_signal(light: Any) -> Any:
    """BT.2100, table 4: the signal in PQ of cd/m2."""
    power = (light / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
