"""Names of a package that are imported when somebody first asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def later(package: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package, from its names to the modules that have them.

    A name that is a module of the package itself stands with that module.
    """

    def imported(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(where[name])
        found = module if module.__name__ == f"{package}.{name}" else getattr(module, name)
        setattr(import_module(package), name, found)  # so it is asked for once
        return found

    return imported
