"""Quantization: from a float model of the zoo to an int8 one."""

from typing import TYPE_CHECKING

from .. import _torch as _torch
from .._core.lazy import module_getattr
from . import qat
from .dynamic import DynamicReport, quantize_dynamic
from .mixed.sensitivity import Sensitivity, measure_sensitivity
from .mixed.tune import Tuned, TuneOptions, tune
from .observers import OBSERVERS, IntegerRange, make_observer
from .options import PTQOptions
from .ptq import ptq
from .recipes import RECIPES, STEPS, Recipe
from .weight_only import WeightOnlyReport, quantize_weight_only

__all__ = [
    "OBSERVERS",
    "RECIPES",
    "STEPS",
    "DynamicReport",
    "Grid",
    "IntegerRange",
    "PTQOptions",
    "Recipe",
    "Sensitivity",
    "TuneOptions",
    "Tuned",
    "WeightOnlyReport",
    "make_observer",
    "measure_sensitivity",
    "ptq",
    "qat",
    "quantize_dynamic",
    "quantize_weight_only",
    "tune",
]

Grid = IntegerRange  # its former name

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__, __path__)
