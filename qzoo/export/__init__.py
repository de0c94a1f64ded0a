"""Files for other runtimes, one module per format."""

from typing import TYPE_CHECKING

from .._core.lazy import module_getattr
from .onnx import export_onnx, to_onnx

__all__ = ["export_onnx", "to_onnx"]

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__, __path__)
