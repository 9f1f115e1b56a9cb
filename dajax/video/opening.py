"""Opens videos and cameras, and finds what decodes them."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from dajax.errors import ConfigError, ImageError, missing_extra
from dajax.images.urls import is_url

# Containers that hold frames themselves, by FFmpeg's names. Playlists and lists of files (hls, dash, concat, image
# sequences) would open other files, which nobody has named.
_CONTAINERS = {
    "MP4, MOV, 3GP": "mov,mp4,m4a,3gp,3g2,mj2",
    "Matroska, WebM": "matroska,webm",
    "AVI": "avi",
    "MPEG": "mpegts,mpeg",
    "Ogg": "ogg",
    "FLV": "flv",
    "GIF": "gif",
    "NUT": "nut",
    "ASF (WMV)": "asf",
    "MXF": "mxf",
    "Y4M": "yuv4mpegpipe",
    "IVF": "ivf",
    "raw MJPEG, H.264 and HEVC": "mjpeg,h264,hevc",
}
_OPTIONS = {"format_whitelist": ",".join(_CONTAINERS.values()), "protocol_whitelist": "file"}
# FFmpeg's own decoders of VP8 and VP9 leave out the transparency that WebM keeps beside the colours; these do not.
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_CAMERA = re.compile(r"webcam:(\d+)")


def open_video(source: str) -> tuple[Any, bool]:
    """Open a video file or "webcam:0".

    Returns:
        PyAV's container, and whether it is a camera.

    Raises:
        ImageError: the file cannot be read as a video.
        ConfigError: PyAV is not installed.
    """
    av, name = import_av(), repr(source)
    camera = _CAMERA.fullmatch(source)
    if is_url(source):
        raise ImageError(f"{name}: videos are not read from URLs; download it first")
    if not camera and not os.path.isfile(source):
        reason = "is not a file" if os.path.exists(source) else "does not exist"
        raise ImageError(f"{name} {reason}")
    try:
        if camera:
            device, form = camera_device(int(camera[1]))
            return av.open(device, format=form), True
        # "webcam:0" or "-i" may also be the name of a file, and FFmpeg gives many prefixes a meaning.
        return open_file(f"file:{os.path.abspath(source)}"), False
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = f" ({said(error)})"
        if isinstance(error, av.error.ArgumentError) and not camera:  # so FFmpeg says that the format is not allowed
            reason = (
                f". It is in none of the formats that are read, which are {', '.join(_CONTAINERS)}; playlists and "
                "lists of files are not followed"
            )
        raise ImageError(f"{name}: cannot be opened as a video{reason}") from error


def open_file(address: str) -> Any:
    """Return PyAV's container of a file, which opens no other file.

    Args:
        address: "file:" and the path.
    """
    av = import_av()
    # Texts such as titles need not be in UTF-8. From version 19 on PyAV reads them all the same.
    texts = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(address, options=_OPTIONS, **texts)


def decoder_of(stream: Any, name: str, notes: set[str]) -> Any:
    """Return what decodes a stream, with its transparency.

    Args:
        stream: a video stream of PyAV.
        name: what error messages call the video.
        notes: gets what is missing.

    Raises:
        ImageError: there is no decoder.
    """
    av, decoder = import_av(), stream.codec_context
    if decoder is None:
        raise ImageError(f"{name}: this PyAV has no decoder for its video")
    other = _WITH_ALPHA.get(decoder.name)
    if other is not None and stream.metadata.get("alpha_mode") == "1":
        try:
            decoder = av.CodecContext.create(other, "r")
        except (av.error.FFmpegError, ValueError):
            notes.add(f"its transparency was ignored, because this PyAV has no decoder {other}")
    decoder.thread_type = "AUTO"
    return decoder


def camera_device(number: int) -> tuple[str, str]:
    """Return the name of a camera on this system, and its format in FFmpeg.

    Raises:
        ConfigError: Cameras have no numbers on this system.
    """
    if sys.platform == "darwin":
        return str(number), "avfoundation"
    if sys.platform == "win32":
        raise ConfigError("cameras can be read on Linux and macOS only")
    return f"/dev/video{number}", "v4l2"


def import_av() -> Any:
    """Return PyAV.

    Raises:
        ConfigError: PyAV is not installed.
    """
    try:
        import av
        import av.error
        import av.stream
    except ImportError as error:
        raise ConfigError(missing_extra("video", "videos need PyAV")) from error
    return av


def said(error: BaseException) -> str:
    """Return what an error of FFmpeg or the system says."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
