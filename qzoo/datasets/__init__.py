"""Data sets that need no download."""

from typing import TYPE_CHECKING

from .. import _torch as _torch
from .._core.lazy import module_getattr
from .digits import Digits
from .fractals import FRACTALS_STANDARD, Fractals

__all__ = ["FRACTALS_STANDARD", "Digits", "Fractals"]

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__, __path__)
