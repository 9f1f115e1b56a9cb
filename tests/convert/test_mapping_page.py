"""MAPPING.md is what the tables say, and what the files have."""

import json
import re
from pathlib import Path

import pytest
from authors import official_shapes

import dajax
from convert.mapping_page import PAGE, page
from dajax import DepthAnythingConfig
from dajax.weights.shapes import parameter_shapes

ROOT = Path(dajax.__file__).parents[1]
SHAPES = json.loads((ROOT / "tests" / "references" / "data" / "shapes.json").read_text())
FORMULAS = {"i": lambda i: i, "i + 1": lambda i: i + 1, "4 - i": lambda i: 4 - i}


def test_not_stale():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m convert.mapping_page"


def fill(template, i):
    return re.sub(r"\{(.*?)\}", lambda match: str(FORMULAS[match[1]](i)), template)


def rows(title):
    """Return ({tensor: shape}, {Flax path: shape}) of a section, its templates filled in."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    tensors, paths = {}, {}
    for line in text.splitlines():
        if not line.startswith("| `"):
            continue
        names, shape, path, flax_shape, _, counted = (cell.strip() for cell in line.strip("|").split("|"))
        for i in range(int(counted.removeprefix("0 to ")) + 1 if counted else 1):
            for name in re.findall("`(.+?)`", names):
                assert tensors.setdefault(fill(name, i), shape) == shape
            paths[fill(path.strip("`"), i)] = flax_shape
    return tensors, paths


def shown(shapes):
    return {name: "×".join(map(str, shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("title", "expected"),
    [("Transformers", SHAPES["small"]), ("The authors' code", official_shapes(DepthAnythingConfig.small()))],
)
def test_rows_are_the_tensors_of_a_file(title, expected):
    tensors, paths = rows(title)
    assert tensors == shown(expected)
    assert paths == shown(parameter_shapes(DepthAnythingConfig.small()))


def test_swiglu_is_that_of_the_authors():
    giant = official_shapes(DepthAnythingConfig.giant())
    assert rows("SwiGLU: the authors' code")[0] == shown({n: s for n, s in giant.items() if ".mlp." in n})


def test_widths():
    table = PAGE.read_text(encoding="utf-8").split("## Widths of the other sizes")[1].split("\n## ")[0]
    for size in ("small", "base", "large", "giant"):
        config = getattr(DepthAnythingConfig, size)()
        backbone = config.backbone_config
        figures = [backbone.hidden_size, backbone.num_hidden_layers, backbone.mlp_width]
        assert f"| {size.capitalize()} | {' | '.join(map(str, figures))} |" in table
