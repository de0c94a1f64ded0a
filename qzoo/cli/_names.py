"""What a MODEL argument means, told without importing PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UnknownNameError
from ..registry import model_name
from ._endings import WEIGHTS_ENDINGS

#: What a repository on the Hugging Face Hub begins with.
HUB = "hf://"


def is_name(model: str) -> bool:
    """Says whether a MODEL argument means a model of the zoo instead of a file or folder.

    Raises:
        UnknownNameError: It is neither, and does not look like a path.
    """
    path = Path(model)
    separators = [s for s in (os.sep, os.altsep) if s]
    if model.startswith(HUB) or path.suffix in WEIGHTS_ENDINGS or path.is_file():
        return False
    if any(s in model for s in separators):
        return False
    try:
        model_name(model)
    except UnknownNameError as error:
        if path.is_dir():
            return False
        raise UnknownNameError(f"{error} There is no file or folder of this name either.") from None
    return True


def short_name(model: str) -> str:
    """Returns what a file that is made of a MODEL is called, without its ending."""
    return model_name(model) if is_name(model) else Path(model).resolve().stem
