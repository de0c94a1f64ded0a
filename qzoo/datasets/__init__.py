"""Data sets that need no download."""

from .digits import Digits
from .fractals import FRACTALS_STANDARD, Fractals

__all__ = ["FRACTALS_STANDARD", "Digits", "Fractals"]
