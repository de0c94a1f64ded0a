"""Quantization: from a float model of the zoo to an int8 one."""

from . import qat
from .observers import OBSERVERS, Grid, make_observer
from .ptq import ptq
from .recipes import RECIPES, STEPS, Recipe

__all__ = ["OBSERVERS", "RECIPES", "STEPS", "Grid", "Recipe", "make_observer", "ptq", "qat"]
