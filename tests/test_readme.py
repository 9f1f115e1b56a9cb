"""The README's Python blocks run as they stand, but for the name of the weights."""

import json
import re
import shutil
from pathlib import Path

import pytest
from seeded import write_checkpoint
from tiny import tiny_config

import dajax

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_readme_has_a_block_for_each_kind_of_user():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", BLOCKS, ids=["research", "many-pictures", "notebook"])
def test_block_runs(block, tmp_path, monkeypatch):
    shapes = json.loads((ROOT / "tests" / "references" / "data" / "shapes.json").read_text())["tiny"]
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_config().to_dict(), shapes)
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        shutil.copy(Path(dajax.__file__).parent / "assets" / "scene.jpg", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert block.count('"small"') == 1
    exec(compile(block.replace('"small"', repr(str(checkpoint))), "README.md", "exec"), {})
