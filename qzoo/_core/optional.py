"""Optional packages: imported where they are used, their absence one clear sentence."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from typing import Any

from ..errors import MissingDependencyError
from .process import undisturbed

#: Which install of qzoo has PyTorch.
INSTALL_TORCH = "pip install qzoo brings it (qzoo-lite is the part of qzoo that does without)"


def torch_folders() -> Iterable[str] | None:
    """Returns where the installed PyTorch lies, without importing it; None where there is none."""
    if (loaded := sys.modules.get("torch")) is not None:
        return loaded.__path__
    found = importlib.util.find_spec("torch")
    return None if found is None else found.submodule_search_locations


def install(extra: str) -> str:
    """Returns the command that installs an extra, of the distribution of qzoo that is used here.

    Where PyTorch is missing, that is qzoo-lite: the other one would bring gigabytes of it.
    """
    name = "qzoo-lite" if torch_folders() is None else "qzoo"
    return f'pip install "{name}[{extra}]"'


def require(module: str, extra: str, purpose: str) -> Any:
    """Imports an optional package.

    Args:
        module: What to import.
        extra: The extra of qzoo that installs it.
        purpose: What it is needed for, to finish "... needs it for".

    Raises:
        MissingDependencyError: It is not installed; the message names the extra.
    """
    try:
        with undisturbed():
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs the package {module.partition('.')[0]!r} ({error}): install it with "
            f"{install(extra)}."
        ) from None


def require_torch(purpose: str) -> Any:
    """Imports PyTorch.

    Args:
        purpose: What it is needed for, to finish "... needs PyTorch".

    Raises:
        MissingDependencyError: It is not installed; the message says which install has it.
    """
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if (missing := without_torch(error, purpose)) is None:
            raise
        raise missing from None


def without_torch(error: ModuleNotFoundError, purpose: str) -> MissingDependencyError | None:
    """Returns what to say instead of an import that failed for want of PyTorch or torchvision.

    Args:
        error: Of the import.
        purpose: What was to be done, to finish "... needs PyTorch".

    Returns:
        The error; None where the import failed for something else.
    """
    package = str(error.name).partition(".")[0]
    if package not in ("torch", "torchvision"):
        return None
    name = "PyTorch" if package == "torch" else package
    return MissingDependencyError(
        f"{purpose} needs {name}, which is not installed here: {INSTALL_TORCH}."
    )
