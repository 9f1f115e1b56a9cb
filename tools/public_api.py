"""Writes the list of all public names with their signatures, and the API page of the docs: python tools/public_api.py.

A test compares docs/public-api.txt and docs/api.rst with the code: each change of the public API appears in a diff.
"""

import ast
import importlib
import inspect
import sys
from pathlib import Path

import dajax

ROOT = Path(__file__).parents[1]
LISTING = ROOT / "docs" / "public-api.txt"
PAGE = ROOT / "docs" / "api.rst"
INTRODUCTION = """API
===

These are all public names. ``import dajax`` loads none of them: each is loaded on first use.
"""


def packages() -> list[str]:
    """Return `dajax` and its public rooms and modules."""
    public = [name for name in dajax.__all__ if inspect.ismodule(getattr(dajax, name))]
    return ["dajax", *(f"dajax.{name}" for name in public)]


def public_names(package: str) -> list[str]:
    """Return what users may import from a room or module, without rooms that it contains."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    own = [node.name for node in parsed(package).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return sorted(name for name in own if not name.startswith("_"))


def parsed(module: str) -> ast.Module:
    """Return the syntax tree of a module: it says the same on every Python, which runtime signatures do not."""
    return ast.parse(Path(importlib.import_module(module).__file__).read_text())


def lines_of(package: str, name: str) -> list[str]:
    """Return the lines of the listing for one name."""
    value = inspect.unwrap(getattr(importlib.import_module(package), name))  # of jax.jit
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return [f"{package}.{name} = {value!r}"]
    tree = parsed(value.__module__)
    node = next(n for n in tree.body if getattr(n, "name", None) == name)
    if isinstance(node, ast.FunctionDef):
        return [f"{package}.{name}{signature(node)}"]
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    return [f"class {package}.{name}({bases})", *(f"    {member}" for member in members(node))]


def signature(node: ast.FunctionDef) -> str:
    """Return arguments and result of a function as they stand in the source."""
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){result}"


def members(node: ast.ClassDef) -> list[str]:
    """Return the fields and public methods of a class."""
    found = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and not item.target.id.startswith("_"):
            found.append(ast.unparse(item))
        elif isinstance(item, ast.FunctionDef) and (item.name in ("__init__", "__call__") or item.name[0] != "_"):
            marks = [ast.unparse(mark) for mark in item.decorator_list]
            prefix = "property " if "property" in marks else "classmethod " if "classmethod" in marks else ""
            found.append(f"{prefix}{item.name}{signature(item)}")
    return found


def listing() -> str:
    """Return the whole list."""
    parts = []
    for package in packages():
        lines = [line for name in public_names(package) for line in lines_of(package, name)]
        parts.append("\n".join([f"# {package}", *lines]))
    return "\n\n".join(parts) + "\n"


def page() -> str:
    """Return the API page, for Sphinx's autodoc."""
    parts = [INTRODUCTION]
    for package in packages():
        module = importlib.import_module(package)
        lines = [package, "-" * len(package), "", module.__doc__.split("\n\n")[0].strip(), ""]
        for name in public_names(package):
            value = getattr(module, name)
            if package != "dajax" and getattr(dajax, name, None) is value:
                lines += ["", f"``{name}`` is ``dajax.{name}``.", ""]
            elif inspect.isclass(value):
                lines += [f".. autoclass:: {package}.{name}", "   :members:", "   :special-members: __call__"]
            else:
                lines.append(f".. {'autofunction' if callable(value) else 'autodata'}:: {package}.{name}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    LISTING.write_text(listing())
    PAGE.write_text(page())
    print(f"Wrote {LISTING} and {PAGE}", file=sys.stderr)
