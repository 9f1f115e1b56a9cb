"""What a text means where Transformers' pipeline takes one: a URL, a file, or an image in base64."""

import base64
import os
import re
from typing import Any
from urllib.parse import unquote

import numpy as np
from jaxtyping import UInt8

from dajax.errors import ImageError, shown
from dajax.images.formats import HEAD_BYTES, format_of
from dajax.images.pixels import ValueRange
from dajax.images.read import read_image
from dajax.images.urls import is_url, redacted
from dajax.limits import MAX_IMAGE_BYTES, MIN_BASE64_LENGTH

_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)


def read_source(
    source: Any,
    *,
    allow_urls: bool = False,
    timeout: float | None = None,
    layout: str | None = None,
    value_range: ValueRange | None = None,
    allow_truncated: bool = False,
) -> UInt8[np.ndarray, "height width 3"]:
    """Read one image as `read_image` does, and from text that is a URL, a data URL or base64.

    Text is, in this order: what begins with http:// or https://, a URL; what begins with data:, a data URL; what names
    a file, that file; what is base64 of at least 32 characters and decodes to something that begins as an image does,
    that image. Anything else is a file that does not exist.

    Args:
        source: text, or anything that `read_image` takes.
        allow_urls: Download what is a URL, see `dajax.images.fetch.fetch`.
        timeout: seconds for a download.
        layout: Axes of an array, see `read_image`.
        value_range: the values that become 0 and 255, or "auto", see `read_image`.
        allow_truncated: Take what there is of a file that breaks off, see `read_image`.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ImageError: not an image, or not to be had.
        ConfigError: `timeout` is not a number of seconds.
    """
    name = None
    if isinstance(source, str):
        if is_url(source):
            name = redacted(source)
            if not allow_urls:
                raise ImageError(f"{name}: a URL here is downloaded with allow_urls=True only")
            from dajax.images.fetch import fetch  # local images need neither sockets nor TLS

            source = fetch(source, timeout=timeout)
        elif source[:5].lower() == "data:":
            name = f"data URL of {len(source):,} characters"
            source = _from_data_url(source, name)
        elif not os.path.lexists(source):
            name = f"{shown(source)}: no such file; taken as base64"
            source = _from_base64_image(source)
    return read_image(source, layout=layout, value_range=value_range, allow_truncated=allow_truncated, name=name)


def _from_data_url(text: str, name: str) -> bytes:
    head = _DATA_URL.match(text)
    if head is None:
        raise ImageError(f"{name}: expected data:image/…;base64,… but it begins with {shown(text[:40])}")
    data = _from_base64(unquote(text[head.end() :]))
    if data is None:
        raise ImageError(f"{name}: what follows {shown(head[0])} is not base64")
    return data


def _from_base64_image(text: str) -> bytes:
    data = _from_base64(text) if len(text) >= MIN_BASE64_LENGTH else None
    if data is None or format_of(data[:HEAD_BYTES]) is None:
        raise ImageError(
            f"{shown(text)}: no such file, and not a URL (http://, https://), a data URL (data:image/…;base64,…) or "
            f"the base64 text of an image. Check the path."
        )
    return data


def _from_base64(text: str) -> bytes | None:
    if len(text) > MAX_IMAGE_BYTES * 3 // 2:  # four characters for three bytes, and line ends
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None
