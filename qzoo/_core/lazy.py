"""Submodules that are imported when they are first used as attributes of their package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any


def public_modules(path: Iterable[str]) -> set[str]:
    """Returns the names of the public modules in a package's folder."""
    return {m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")}


def module_getattr(package: str, path: Iterable[str]) -> Callable[[str], Any]:
    """Makes a package's `__getattr__`, so that `package.module` needs no import of its own.

    Args:
        package: The package's `__name__`.
        path: Its `__path__`.
    """

    def getattr_(name: str) -> Any:
        if name.startswith("_") or name not in public_modules(path):
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
        return importlib.import_module(f"{package}.{name}")

    return getattr_
