"""The reference model: an artifact's numbers as quantize and dequantize around float ops."""

from typing import TYPE_CHECKING

from .. import _torch as _torch
from .._core.lazy import module_getattr
from .build import ReferenceModel, build_reference
from .compare import LayerDifference, compare_layers, differences, native_outputs, reference_outputs

__all__ = [
    "LayerDifference",
    "ReferenceModel",
    "build_reference",
    "compare_layers",
    "differences",
    "native_outputs",
    "reference_outputs",
]

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__, __path__)
