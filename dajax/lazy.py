"""Names of a package that are found when they are first used, so that importing the package stays cheap (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package.

    Type checkers do not see these names: the package repeats them as imports under `TYPE_CHECKING`.

    Args:
        package: the package's `__name__`.
        homes: for each module below the package, the names that it defines.
        submodules: modules below the package that are public themselves.
    """
    home_of = {name: f"{package}.{home}" for home, names in homes.items() for name in names}
    public = sorted([*home_of, *submodules])

    def find(name: str) -> Any:
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: public, public
