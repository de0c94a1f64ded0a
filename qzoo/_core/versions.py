"""Versions of what takes part in making a model."""

from __future__ import annotations

import platform
import sys

from .._version import __version__


def package_versions() -> dict[str, str]:
    """Returns the versions of qzoo and Python and, where they are in use, PyTorch and torchvision.

    What this process has not imported had no part in what it makes.
    """
    loaded = {name: sys.modules.get(name) for name in ("torch", "torchvision")}
    return {
        "qzoo": __version__,
        **{name: str(module.__version__) for name, module in loaded.items() if module is not None},
        "python": platform.python_version(),
    }
