"""The errors that qzoo raises on purpose: one sentence on what is wrong and what to do.

All of them derive from `QzooError`, so that one `except` catches them; the command line turns them
into exit code 2 without a traceback. Where Python or torchvision users expect a built-in type
(`ValueError` for a bad argument, say), the class derives from it too.
"""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .safe_text import printable

#: Where the package's own files lie.
_PACKAGE = f"{Path(__file__).parent}{os.sep}"


class QzooError(Exception):
    """Base of all errors that qzoo raises on purpose.

    As text it is one line without control characters, whatever the names in it hold.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class UnknownNameError(QzooError, ValueError):
    """A model, weight, backend, runtime or recipe that does not exist."""


class ArgumentError(QzooError, ValueError):
    """Arguments that do not fit together or do not fit the model."""


class ImageError(QzooError, ValueError):
    """A file that cannot be read as a picture."""


class ArtifactError(QzooError, ValueError):
    """An artifact or checkpoint that is damaged, of a later version, or not for this model."""


class DownloadError(QzooError, OSError):
    """A file that could not be fetched, verified or stored."""


class UploadError(QzooError, OSError):
    """A model that could not be pushed to the Hub."""


class MissingDependencyError(QzooError, ImportError):
    """An optional package that the requested feature needs is not installed."""


class UncalibratedWarning(UserWarning):
    """An int8 model carries placeholder activation ranges instead of calibrated ones."""


class DataWarning(UserWarning):
    """A folder holds pictures that were left out, and why."""


class QuantizationWarning(UserWarning):
    """Something about a quantization that lowers what it can reach, though it goes on."""


class BackendWarning(UserWarning):
    """A model runs on another quantized engine than the one it was quantized for."""


def warn(message: str, category: type[Warning]) -> None:
    """Warns whoever called qzoo: the warning names the nearest line outside the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def check_known(name: Any, known: Iterable[str], kind: str) -> None:
    """Checks that there is something of this name.

    Args:
        name: What was asked for.
        known: The names there are.
        kind: What they are names of, for the message.

    Raises:
        UnknownNameError: There is not; the message names the known ones.
    """
    names = list(known)
    if name not in names:
        raise UnknownNameError(
            f"Unknown {kind} {name!r}: choose one of {', '.join(names)}."
            + did_you_mean(str(name), names)
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'a' or 'b'?" for the nearest known names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def listed(names: Iterable[object], most: int = 6) -> str:
    """Returns the first names with commas between, and "..." only where there are more."""
    every = [str(name) for name in names]
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in every[:most]]
    return ", ".join(shown) + ", ..." * (len(every) > most)
