"""Diagnosis: where an int8 model loses accuracy, and what to do about it."""

from typing import TYPE_CHECKING

from .. import _torch as _torch
from .._core.lazy import module_getattr
from ..quantize.mixed.sensitivity import LayerSensitivity, Sensitivity, measure_sensitivity
from .compare import Comparison, LayerComparison, compare
from .diagnose import Diagnosis, analyze
from .findings import Advice, Finding
from .options import AnalysisOptions
from .suspects import Suspect

__all__ = [
    "Advice",
    "AnalysisOptions",
    "Comparison",
    "Diagnosis",
    "Finding",
    "LayerComparison",
    "LayerSensitivity",
    "Sensitivity",
    "Suspect",
    "analyze",
    "compare",
    "measure_sensitivity",
]

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__, __path__)
