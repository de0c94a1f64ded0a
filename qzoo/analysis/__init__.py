"""Diagnosis: where an int8 model loses accuracy, and what to do about it."""

from ..quantize.sensitivity import LayerSensitivity, Sensitivity, measure_sensitivity
from .compare import Comparison, LayerComparison, compare
from .diagnose import Diagnosis, analyze
from .findings import Advice, Finding
from .suspects import Suspect

__all__ = [
    "Advice",
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
