"""Files for other runtimes, one module per format."""

from .onnx import export_onnx, to_onnx

__all__ = ["export_onnx", "to_onnx"]
