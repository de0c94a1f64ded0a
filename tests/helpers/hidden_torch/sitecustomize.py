"""Hides PyTorch from a process that has this folder on its PYTHONPATH, and from its children.

Imports of it, `importlib.util.find_spec` and `importlib.metadata` then answer as in an environment
in which it is not installed. Python imports this file by itself when it starts.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

HIDDEN = {"torch", "torchvision", "torchao", "executorch", "functorch", "torchgen"}


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(fullname, path, target)

    @classmethod
    def find_distributions(cls, *args: Any, **kwargs: Any) -> Iterator[Any]:  # type: ignore[override]
        for found in importlib.machinery.PathFinder.find_distributions(*args, **kwargs):
            if found.metadata["Name"] not in HIDDEN:
                yield found


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = _Finder
