"""Nested dicts of parameters <-> flat ones keyed by path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dajax.errors import WeightsError


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a": {"b": x}} for {"a/b": x}."""
    root: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return root


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a/b": x} for {"a": {"b": x}}.

    Raises:
        WeightsError: `params` is not a nested dict.
    """
    if not isinstance(params, Mapping):
        raise WeightsError(f"params must be a nested dict, got {type(params).__name__}")
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{path}": leaf for path, leaf in flatten(value).items()}
        else:
            flat[str(name)] = value
    return flat
