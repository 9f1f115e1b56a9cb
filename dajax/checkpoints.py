"""The released checkpoints, and the one in this package, as data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Checkpoint(NamedTuple):
    """A released checkpoint: one row of `dajax.list_models()`.

    Attributes:
        hub_id: on the Hugging Face Hub; empty for "tiny", which is in the package.
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
# Weights of whose origin the name says nothing.
NOT_KNOWN = "not known"


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

# Trained by dajax itself; its model card says what it is worth.
EMBEDDED: dict[str, Checkpoint] = {"tiny": Checkpoint("tiny", "", "relative", "tiny", 2_045_409, "Apache-2.0")}
_ASSETS = Path(__file__).parent / "assets"


def embedded_folder(name: object) -> Path | None:
    """Return the folder of a checkpoint that is in this package, or None for any other name."""
    return _ASSETS / name if isinstance(name, str) and name in EMBEDDED else None


class Original(NamedTuple):
    """A checkpoint in the authors' own layout: the file of a repository, and the alias of the same weights."""

    filename: str
    alias: str


def _originals() -> dict[str, Original]:
    found = {}
    for size in _PARAMETERS:
        name, letter = size.capitalize(), size[0]
        found[f"depth-anything/Depth-Anything-V2-{name}"] = Original(f"depth_anything_v2_vit{letter}.pth", size)
        for place, dataset in (("indoor", "Hypersim"), ("outdoor", "VKITTI")):
            found[f"depth-anything/Depth-Anything-V2-Metric-{dataset}-{name}"] = Original(
                f"depth_anything_v2_metric_{dataset.lower()}_vit{letter}.pth", f"{size}-metric-{place}"
            )
        found[f"LiheYoung/depth_anything_vit{letter}14"] = Original("pytorch_model.bin", f"v1-{size}")
    return found


# By Hub id.
ORIGINALS: dict[str, Original] = _originals()

# The authors' names of files, without suffix -> alias. V1's are from its repository of code.
_STEMS = {
    original.filename.removesuffix(".pth"): original.alias
    for original in ORIGINALS.values()
    if original.filename.endswith(".pth")
} | {f"depth_anything_vit{size[0]}14": f"v1-{size}" for size in _PARAMETERS}
# What people append to the authors' names when they convert them.
_PRECISION = re.compile(r"[_-](?:fp32|fp16|bf16)$")


def alias_of_file(filename: str) -> str | None:
    """Return the alias of the weights that the authors give in files of this name, whatever its suffix."""
    stem = filename.rpartition(".")[0] or filename
    return _STEMS.get(_PRECISION.sub("", stem.lower()))


def official_stem(alias: str) -> str:
    """Return the authors' name, without suffix, for the file of these weights."""
    return next(stem for stem, known in _STEMS.items() if known == alias)


def checkpoint_of(name: str) -> Checkpoint | None:
    """Return the released checkpoint that an alias or a Hub id (of either layout) means."""
    if name in ORIGINALS:
        return ALIASES[ORIGINALS[name].alias]
    return ALIASES.get(name) or next((row for row in ALIASES.values() if row.hub_id == name), None)


def licence_of(name: str) -> str:
    """Return the licence of the weights that a name stands for: an alias, a Hub id, or a path with the authors' name.

    Returns:
        The licence, "not stated" where the authors state none, or "not known".
    """
    alias = alias_of_file(re.split(r"[/\\]", name)[-1])
    found = EMBEDDED.get(name) or checkpoint_of(name) or ALIASES.get(alias or "")
    return NOT_KNOWN if found is None else found.licence


def list_models() -> list[Checkpoint]:
    """Return the known checkpoints: alias, Hub id, kind, size, number of parameters, licence."""
    return [*EMBEDDED.values(), *ALIASES.values()]
