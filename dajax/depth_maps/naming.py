"""Names of outputs: each image's path without suffix, below the output folder, distinct on every file system.

`predict` and jobs name what they write by the same functions. An image's *key* is its path as the user sees it, such as
`attic/room.jpg`; its output name is `attic/room`, and a file's ending (`_depth.png`) is appended to that.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

# A job keeps its own records in this folder of the output folder, so no output may lie there.
OWN_FOLDER = ".dajax"
_MAX_NAME_BYTES = 255  # the limit of every common file system
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+://")
_ROOM = 60  # bytes for the ending, and for the name that a file has until it is finished


def output_names(keys: Sequence[str], earlier: Mapping[str, str] | None = None) -> list[str]:
    """Return an output name for each key; no two are equal, even where case and Unicode form do not count.

    The name is the first of `possible_names(key)` that no other image has or could have: the key without its suffix
    (`x.jpg` -> `x`); if several images want that, the whole key (`x.jpg`, `x.png`); else the key and a digest of it.
    Names do not depend on the order of the keys.

    Args:
        keys: the distinct keys of the images.
        earlier: the names that earlier runs gave, by key. A key in it keeps its name, and no other key gets one of
            these names. It may have keys that are not in `keys`: images that are not part of this run.
    """
    earlier = {} if earlier is None else earlier
    names = [earlier.get(key, "") for key in keys]
    blocked = np.array(sorted({_folded(name) for name in earlier.values()}), np.uint64)
    left = np.flatnonzero([not name for name in names])
    for choose in (_without_suffix, _whole):
        choice = [choose(keys[int(i)]) for i in left]
        folded = np.array([_folded(name) for name in choice], np.uint64)
        values, inverse, count = np.unique(folded, return_inverse=True, return_counts=True)
        alone = (count[inverse] == 1) & ~np.isin(folded, blocked)
        for place in np.flatnonzero(alone):
            names[left[place]] = choice[place]
        # A whole key must not be what another key is without its suffix.
        blocked = np.union1d(blocked, values)
        left = left[~alone]
    for i in map(int, left):
        names[i] = _with_digest(keys[i])
    return names


def possible_names(key: str) -> tuple[str, str, str]:
    """Return the names that `output_names` may give a key, the preferred one first.

    Nothing in a name leads out of the folder that it is put into, and every part of it fits into a file's name.
    """
    return _without_suffix(key), _whole(key), _with_digest(key)


def image_keys(paths: Sequence[Path], roots: Sequence[Path]) -> list[str]:
    """Return a key for each file: its path below its root. All keys are distinct.

    Where two roots would give the same key (`a/x.jpg` below `a` and `b/x.jpg` below `b`), every key is the path below
    the folder that all files have in common.

    Args:
        paths: the files; for a URL, what `url_as_path` returns.
        roots: For each file the folder that the user named, or the file's own folder if the user named the file.
    """
    whole = [Path(os.path.abspath(path)) for path in paths]
    keys = [path.relative_to(os.path.abspath(root)).as_posix() for path, root in zip(whole, roots, strict=True)]
    if len(set(keys)) < len(keys):
        common = os.path.commonpath([path.parent for path in whole])
        keys = [path.relative_to(common).as_posix() for path in whole]
    # The path that stands for a URL may be that of a file as well.
    distinct: dict[str, None] = {}
    for key in keys:
        number = 1
        while key in distinct:
            number += 1
            key = f"{key}+{number}"
        distinct[key] = None
    return list(distinct)


def url_as_path(url: str) -> Path:
    """Return a relative path for a URL, host and file name, from which outputs can be named on every file system."""
    try:
        parts = urlsplit(url)
        host, path = parts.hostname or "", unquote(parts.path)
    except ValueError:  # not a valid URL
        host, path = "", ""
    return Path(_safe(host) or "host") / (_safe(re.split(r"[/\\]", path)[-1]) or "image")


def digest(key: str) -> bytes:
    """Return 16 bytes that stand for a key."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _safe(name: str) -> str:
    """Replace what a file system or a terminal may not take; the result neither is hidden nor means a folder."""
    return re.sub(r'[<>:"|?*/\\]', "_", "".join(c if c.isprintable() else "_" for c in name)).strip(". ")


def _without_suffix(key: str) -> str:
    folder, slash, last = _below(key).rpartition("/")
    return _shortened(folder + slash + os.path.splitext(last)[0])


def _whole(key: str) -> str:
    return _shortened(_below(key))


def _with_digest(key: str) -> str:
    return _shortened(f"{_below(key)}-{digest(key).hex()[:12]}")


def _below(key: str) -> str:
    """Return the key as a relative path with / between its parts that stays below the folder it is put into."""
    key = _SCHEME.sub("", key).replace("\0", "_") if ":" in key or "\0" in key else key
    parts = [part for part in (re.split(r"[/\\]", key) if os.name == "nt" else key.split("/")) if part not in ("", ".")]
    parts = ["_" if part == ".." else part for part in parts]
    if parts and parts[0] == OWN_FOLDER:
        parts[0] = f"_{OWN_FOLDER}"
    return "/".join(parts) or "_"


def _folded(name: str) -> int:
    """Return a number that is the same for names that some file system takes for one: `É` and `e´` can be one file."""
    if name.isascii():
        folded = name.lower()
    else:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    data = folded.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _shortened(name: str) -> str:
    """Cut the last part of a name to what a file system takes."""
    folder, slash, last = name.rpartition("/")
    if 4 * len(last) <= _MAX_NAME_BYTES - _ROOM:  # a character has at most four bytes
        return name
    encoded = os.fsencode(last)
    if len(encoded) <= _MAX_NAME_BYTES - _ROOM:
        return name
    cut = encoded[: _MAX_NAME_BYTES - _ROOM - 13].decode("utf-8", "ignore")
    return f"{folder}{slash}{cut}-{digest(name).hex()[:12]}"
