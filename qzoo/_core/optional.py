"""Optional packages: imported where they are used, their absence one clear sentence."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import MissingDependencyError
from .process import undisturbed


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
            f'pip install "qzoo[{extra}]".'
        ) from None
