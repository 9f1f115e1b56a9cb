"""Checking what comes out of configuration files, before anything is built from it."""

from __future__ import annotations

import difflib
import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dajax import limits
from dajax.errors import ConfigError, WeightsError, shown
from dajax.files import open_regular

# Fields that every Transformers config may carry and that say nothing about the network.
IGNORED_FIELDS = frozenset(
    {
        "architectures",
        "attn_implementation",
        "auto_map",
        "backbone",
        "backbone_kwargs",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "semantic_loss_ignore_index",
        "stage_names",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "use_pretrained_backbone",
        "use_timm_backbone",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
    }
)


def check_integer(owner: str, name: str, value: Any, low: int, high: int) -> None:
    """Raise unless the field is an integer between two bounds, both included."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{owner}.{name} must be an integer, got {shown(value)}")
    if not low <= value <= high:
        raise ConfigError(f"{owner}.{name} must be between {low} and {high}, got {shown(value)}")


def check_number(owner: str, name: str, value: Any, low: float, high: float) -> None:
    """Raise unless the field is a finite number between two bounds, both included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{owner}.{name} must be a number, got {shown(value)}")
    if not low <= value <= high:  # NaN is not
        raise ConfigError(f"{owner}.{name} must be a finite number between {low} and {high}, got {shown(value)}")


def check_flag(owner: str, name: str, value: Any) -> None:
    """Raise unless the field is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{owner}.{name} must be true or false, got {shown(value)}")


def as_tuple(owner: str, name: str, value: Any, length: int | None = None) -> tuple[Any, ...]:
    """Return a list as a tuple; raise unless it is one, of bounded (or the given) length."""
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{owner}.{name} must be a list, got {shown(value)}")
    if not 1 <= len(value) <= limits.MAX_TAPS:
        raise ConfigError(f"{owner}.{name} must have 1 to {limits.MAX_TAPS} entries, got {len(value)}")
    if length is not None and len(value) != length:
        raise ConfigError(f"{owner}.{name} must have {length} entries, one for each tap, got {len(value)}")
    return tuple(value)


def square(value: Any) -> Any:
    """Return 518 for the `[518, 518]` that Transformers allows."""
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int for n in value)
    if is_pair and value[0] == value[1]:
        return value[0]
    return value


def known_fields(cls: type, given: Mapping[str, Any], also: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return what `given` has for the fields of `cls`; nulls are left out, unknown names warned about."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{cls.__name__} must be a JSON object, got {type(given).__name__}")
    known = {f.name for f in fields(cls)}
    unknown = [name for name in given if name not in known | IGNORED_FIELDS | also]
    if unknown:
        hints = {name: difflib.get_close_matches(str(name), known, 1) for name in unknown[:20]}
        listed = ", ".join(shown(n) + (f" (did you mean {h[0]!r}?)" if h else "") for n, h in hints.items())
        listed += f" and {len(unknown) - 20:,} more" if len(unknown) > 20 else ""
        warnings.warn(f"{cls.__name__} has no field for, and ignores: {listed}", UserWarning, stacklevel=3)
    values = {name: value for name, value in given.items() if name in known and value is not None}
    return values | {name: square(values[name]) for name in ("image_size", "patch_size") if name in values}


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object from a file.

    Raises:
        WeightsError: there is no such regular file.
        ConfigError: it is too large, not UTF-8, not JSON or not an object.
    """
    hint = f"A {path.name} is expected there: is {path.parent} a checkpoint directory?"
    with open_regular(path, error=WeightsError, hint=hint) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limits.MAX_JSON_BYTES:
            raise ConfigError(f"{path} has {size:,} bytes; a {path.name} has at most {limits.MAX_JSON_BYTES:,}")
        try:
            text = file.read(limits.MAX_JSON_BYTES)
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        value = json.loads(text, object_pairs_hook=no_repeats)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's pairs as a dict; for `json.loads(object_pairs_hook=...)`.

    Raises:
        ValueError: a key stands twice. Readers differ on which of the values counts.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {shown(repeated)} stands twice")
    return found
