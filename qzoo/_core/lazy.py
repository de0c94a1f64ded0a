"""Public names that are imported when they are first used (PEP 562).

A package's stub, `__init__.pyi`, is the one list of them: type checkers and editors read it, and so
does `attach`. A line `from .resnet import *` stands for the `__all__` of that file.
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from .optional import without_torch


def public_modules(path: Iterable[str]) -> set[str]:
    """Returns the names of the public modules in a package's folder."""
    return {m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")}


@functools.cache
def _stub(package: str, folder: Path) -> tuple[dict[str, str], list[tuple[str, Path]]]:
    """Returns a stub's own names, each with its module, and the modules it takes `__all__` of."""
    own: dict[str, str] = {}
    stars = []
    for node in ast.parse((folder / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            module = f"{package}.{node.module}"
            if node.names[0].name == "*":
                stars.append((module, folder.joinpath(*node.module.split("."))))
            else:
                own |= dict.fromkeys([alias.name for alias in node.names], module)
    return own, stars


@functools.cache
def stub_names(package: str, folder: Path) -> dict[str, str]:
    """Returns the names in a package's stub, each with the module that defines it; imports nothing.

    Args:
        package: The package's name.
        folder: Where its stub lies.
    """
    own, stars = _stub(package, folder)
    return own | {name: module for module, path in stars for name in _star_names(module, path)}


def _star_names(module: str, path: Path) -> list[str]:
    if (path / "__init__.pyi").is_file():
        return list(stub_names(module, path))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _imported(module: str) -> ModuleType:
    """Imports a module, with Python's garbage collector paused meanwhile.

    Imports make objects that stay: of PyTorch, so many that looking through them again and again
    for garbage would take a tenth of its import.

    Raises:
        MissingDependencyError: The module needs PyTorch, which is not installed.
    """
    pause = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (missing := without_torch(error, module)) is None:
            raise
        raise missing from None
    finally:
        if pause:
            gc.enable()


def module_getattr(package: str, path: Iterable[str]) -> Callable[[str], Any]:
    """Makes a package's `__getattr__`, so that `package.module` needs no import of its own.

    Args:
        package: The package's `__name__`.
        path: Its `__path__`.
    """

    def getattr_(name: str) -> Any:
        if name.startswith("_") or name not in public_modules(path):
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
        return _imported(f"{package}.{name}")

    return getattr_


def attach(package: str, path: list[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes the `__getattr__` and `__dir__` of a package whose names are those of its stub.

    Args:
        package: The package's `__name__`.
        path: Its `__path__`.
    """
    submodule = module_getattr(package, path)

    def names() -> dict[str, str]:
        return stub_names(package, Path(path[0]))

    def getattr_(name: str) -> Any:
        if name == "__all__":
            return sorted(names())
        if name.startswith("_"):
            return submodule(name)  # says that there is none
        # What a star stands for is in many files: looked up only for the names that need it.
        own, _ = _stub(package, Path(path[0]))
        module = own.get(name) or names().get(name)
        if module is None:
            return submodule(name)
        value = getattr(_imported(module), name)
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public_modules(path), *names()})

    return getattr_, dir_
