"""A small checkpoint for every alias, for a Hub on loopback to serve."""

import json
from dataclasses import replace
from pathlib import Path

from seeded import write_checkpoint
from tiny import tiny_config

from dajax.checkpoints import ALIASES

SHAPES = Path(__file__).parent / "references" / "data" / "shapes.json"


def write_released(directory: Path) -> dict[str, Path]:
    """Write a small checkpoint for every alias; return the folders by Hub id.

    Kinds and depths are those of the released ones, and each has weights of its own. V1 has taps of its own too.
    """
    shapes = json.loads(SHAPES.read_text())
    config = tiny_config()
    v1_backbone = replace(config.backbone_config, num_hidden_layers=6, out_indices=(3, 4, 5, 6))
    configs = {
        "relative": (config, "tiny"),
        "metric indoor": (tiny_config(depth_estimation_type="metric", max_depth=20), "tiny-metric"),
        "metric outdoor": (tiny_config(depth_estimation_type="metric", max_depth=80), "tiny-metric"),
        "v1 relative": (replace(config, backbone_config=v1_backbone), "tiny-sparse-taps"),
    }
    folders = {}
    for seed, row in enumerate(ALIASES.values()):
        given, case = configs[row.kind]
        folders[row.hub_id] = write_checkpoint(directory / row.alias, given.to_dict(), shapes[case], seed)
    return folders
