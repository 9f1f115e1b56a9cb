"""Translates tensor names as training scripts leave them into the names of the tables."""

from __future__ import annotations

import re
from collections.abc import Collection

from dajax.weights.report import raise_problems

# What DistributedDataParallel and Lightning (or a class around the model) put before every name.
_WRAPPERS = ("module.", "model.")
# torch.compile puts this before the names of a module that it wraps.
_COMPILED = "_orig_mod."
# Distill-Any-Depth calls the encoder "backbone", as Transformers does, but its parts as the authors do.
_OFFICIAL_ENCODER = re.compile(
    r"^(?:backbone|pretrained)\.(?=(?:cls_token|pos_embed|mask_token|register_tokens|patch_embed|blocks|norm)\b)"
)
# DINOv2 for sharded training keeps blocks in chunks; blocks are numbered through the whole model all the same.
_CHUNKED_BLOCK = re.compile(r"^pretrained\.blocks\.\d+\.(?=\d+\.)")


def plain_names(names: Collection[str], where: object) -> dict[str, str]:
    """Return {name without wrappers, as in the authors' code or in Transformers': name in the file}.

    Args:
        names: all names of a checkpoint.
        where: what an error calls the checkpoint.

    Raises:
        WeightsError: two names mean the same tensor.
    """
    plain = {name: name.replace(_COMPILED, "") for name in names}
    while wrapper := next((w for w in _WRAPPERS if plain and all(p.startswith(w) for p in plain.values())), None):
        plain = {name: p.removeprefix(wrapper) for name, p in plain.items()}
    found: dict[str, str] = {}
    problems = []
    for name, short in plain.items():
        key = _CHUNKED_BLOCK.sub("pretrained.blocks.", _OFFICIAL_ENCODER.sub("pretrained.", short))
        if key in found:
            problems.append(f"{found[key]} and {name}")
        found[key] = name
    raise_problems(f"{where}: two tensors have names that mean the same", problems)
    return found
