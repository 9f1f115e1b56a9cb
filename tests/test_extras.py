"""Every hint to install an extra names one that exists, and every package that a hint is about is in its extra."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

from dajax.batch.remote import file_system
from dajax.errors import ConfigError, missing_extra

ROOT = Path(__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Extras for users; the others are for tests and tools.
FOR_USERS = {"exr", "gs", "heif", "parquet", "plots", "s3", "tiff", "train", "video"}


def hints():
    """Yield the extra that each call of `missing_extra` names; None where it is a variable."""
    for path in sorted((ROOT / "dajax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "missing_extra":
                yield node.args[0].value if isinstance(node.args[0], ast.Constant) else None


def test_hints_name_extras_that_exist():
    named = {extra for extra in hints() if extra is not None} | {"s3", "gs"}  # these two: see the test below
    assert named == FOR_USERS
    assert set(EXTRAS) >= FOR_USERS


def test_the_hint_is_a_command_for_a_checkout():
    expected = "videos need PyAV: run pip install '.[video]' in the folder of the repository"
    assert missing_extra("video", "videos need PyAV") == expected


@pytest.mark.parametrize(("address", "extra"), [("s3://b/a", "s3"), ("gs://b/a", "gs"), ("gcs://b/a", "gs")])
def test_buckets_without_their_package(monkeypatch, address, extra):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError, match=rf"needs (s3fs|gcsfs): run pip install '\.\[{extra}\]'"):
        file_system(address)


def test_no_hint_names_the_other_project():
    """`dajax` on the package index is another project."""
    other = "dajax" + "["
    for folder in ("dajax", "docs", "convert"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md"):
                assert other not in path.read_text(), path
