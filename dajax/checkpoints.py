"""The released checkpoints, as data."""

from __future__ import annotations

from typing import NamedTuple


class Checkpoint(NamedTuple):
    """A released checkpoint: one row of `dajax.list_models()`.

    Attributes:
        kind: "relative" (affine-invariant inverse depth), "metric indoor", "metric outdoor" (metres) or "v1 relative".
        licence: of the weights, as tagged on the Hub; dajax's own licence does not cover them.
    """

    alias: str
    hub_id: str
    kind: str
    size: str
    parameters: int
    licence: str


_PARAMETERS = {"small": 24_785_089, "base": 97_470_785, "large": 335_315_649}
_V2_LICENCES = {"small": "Apache-2.0", "base": "CC-BY-NC-4.0", "large": "CC-BY-NC-4.0"}
# The repositories of the metric and the V1 weights carry no clear licence tag.
NOT_STATED = "not stated"


def _rows() -> list[Checkpoint]:
    rows = []
    for size, parameters in _PARAMETERS.items():
        name = f"depth-anything/Depth-Anything-V2-{size.capitalize()}-hf"
        rows.append(Checkpoint(size, name, "relative", size, parameters, _V2_LICENCES[size]))
    for place in ("indoor", "outdoor"):
        for size, parameters in _PARAMETERS.items():
            name = f"depth-anything/Depth-Anything-V2-Metric-{place.capitalize()}-{size.capitalize()}-hf"
            rows.append(Checkpoint(f"{size}-metric-{place}", name, f"metric {place}", size, parameters, NOT_STATED))
    for size, parameters in _PARAMETERS.items():
        name = f"LiheYoung/depth-anything-{size}-hf"
        rows.append(Checkpoint(f"v1-{size}", name, "v1 relative", size, parameters, NOT_STATED))
    return rows


ALIASES: dict[str, Checkpoint] = {row.alias: row for row in _rows()}


def list_models() -> list[Checkpoint]:
    """Return the released checkpoints: alias, Hub id, kind, size, number of parameters, licence."""
    return list(ALIASES.values())
