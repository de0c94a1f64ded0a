"""The reference model: an artifact's numbers as quantize and dequantize around float ops."""

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
