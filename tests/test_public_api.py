"""What users may import: the committed list, and that type checkers and the running program agree on it."""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import dajax

ROOT = Path(__file__).parents[1]
TOOL = importlib.util.spec_from_file_location("public_api", ROOT / "tools" / "public_api.py")
public_api = importlib.util.module_from_spec(TOOL)
TOOL.loader.exec_module(public_api)

ROOMS = [name for name in public_api.packages() if hasattr(importlib.import_module(name), "__path__")]
REMEDY = "run `python tools/public_api.py`, and look at what it changes"


def test_the_listing_is_that_of_the_code():
    assert public_api.LISTING.read_text() == public_api.listing(), REMEDY


def test_the_api_page_shows_exactly_these_names():
    assert public_api.PAGE.read_text() == public_api.page(), REMEDY


def test_names_that_the_project_promises():
    from dajax.batch import run_batch
    from dajax.evaluation import depth_metrics
    from dajax.geometry import unproject
    from dajax.images import read_image
    from dajax.training import make_train_step
    from dajax.video import depth_video

    promised = [run_batch, depth_metrics, unproject, read_image, make_train_step, depth_video]
    assert all(inspect.isfunction(one) for one in (*promised, dajax.losses.silog_loss))


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_is_found_and_listed(room):
    module = importlib.import_module(room)
    assert dir(module) == module.__all__ == sorted(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=rf"module '{room}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize("room", ROOMS)
def test_no_name_hides_a_module(room):
    """Importing a module sets its name on the package: a function of that name would be gone."""
    module = importlib.import_module(room)
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    functions = {name for name in module.__all__ if not inspect.ismodule(getattr(module, name))}
    assert not functions & modules


@pytest.mark.parametrize("room", ROOMS)
def test_type_checkers_see_the_same_names_at_the_same_places(room):
    module = importlib.import_module(room)
    tree = ast.parse(Path(module.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {}
    for statement in block.body:
        for alias in statement.names:
            assert alias.asname == alias.name, "without `as`, type checkers take a name for private"
            seen[alias.name] = statement.module
    assert sorted(seen) == module.__all__
    for name, home in seen.items():
        assert getattr(importlib.import_module(home), name) is getattr(module, name)


def test_rooms_are_found_from_the_package():
    code = "import dajax; print(dajax.batch.run_batch.__name__, dajax.losses.silog_loss.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["run_batch", "silog_loss"]
