"""The safe reader of `torch.save` files: plain integers out, no pickle code run."""

from .reader import read_arrays, read_checkpoint
from .values import Checkpoint, QuantizedArray, Value, in_arrays

__all__ = [
    "Checkpoint",
    "QuantizedArray",
    "Value",
    "in_arrays",
    "read_arrays",
    "read_checkpoint",
]
