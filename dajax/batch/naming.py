"""From keys to the places of outputs: below the output folder, and distinct on every file system."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Sequence

import numpy as np

_MAX_NAME_BYTES = 255  # of every common file system
_ROOM = 60  # for endings, and for the name of an unfinished file
OWN_FOLDER = ".dajax"


def digest(key: str) -> bytes:
    """Return 16 bytes that stand for a key."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def output_names(keys: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """Return a relative path without ending for each key, all distinct even where case and Unicode form do not count.

    The key without its suffix; where two have the same, with its suffix; where that does not help either, with a
    digest of the key. What would lead out of the folder is taken off.

    Args:
        keys: distinct.
        taken: names that other outputs have already.
    """
    whole = [_below(key) for key in keys]
    stems = [_without_suffix(name) for name in whole]
    blocked = np.array(sorted({_folded(name) for name in taken}), np.uint64)
    names: list[str] = [""] * len(keys)
    left = np.arange(len(keys))
    for choice in (stems, whole):
        folded = np.array([_folded(choice[i]) for i in map(int, left)], np.uint64)
        values, inverse, count = np.unique(folded, return_inverse=True, return_counts=True)
        alone = (count[inverse] == 1) & ~np.isin(folded, blocked)
        for i in map(int, left[alone]):
            names[i] = choice[i]
        # What is only now distinct must not be what a former choice gave.
        blocked = np.union1d(blocked, values)
        left = left[~alone]
    for i in map(int, left):
        names[i] = f"{whole[i]}-{digest(keys[i]).hex()[:12]}"
    return [_shortened(name) for name in names]


def _below(key: str) -> str:
    """Return the key as a relative path with / between names, which stays below where it is put."""
    key = re.sub(r"^[A-Za-z][A-Za-z0-9+.\-]+://", "", key).replace("\0", "_")
    parts = [part for part in re.split(r"[/\\]" if os.name == "nt" else "/", key) if part not in ("", ".")]
    parts = ["_" if part == ".." else part for part in parts]
    if parts and parts[0] == OWN_FOLDER:
        parts[0] = f"_{OWN_FOLDER}"
    return "/".join(parts) or "_"


def _without_suffix(name: str) -> str:
    folder, _, last = name.rpartition("/")
    stem = os.path.splitext(last)[0]
    return f"{folder}/{stem}" if folder else stem


def _folded(name: str) -> int:
    # File systems may fold case and Unicode forms: `É.jpg` and `e´.JPG` can be one file.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    data = folded.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _shortened(name: str) -> str:
    """Cut the last part to what a file system takes."""
    folder, slash, last = name.rpartition("/")
    encoded = os.fsencode(last)
    if len(encoded) <= _MAX_NAME_BYTES - _ROOM:
        return name
    cut = encoded[: _MAX_NAME_BYTES - _ROOM - 13].decode("utf-8", "ignore")
    return f"{folder}{slash}{cut}-{digest(name).hex()[:12]}"
