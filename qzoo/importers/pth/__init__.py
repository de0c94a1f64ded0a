"""The safe reader of `torch.save` files: plain integers out, no pickle code run."""

from .reader import read_checkpoint
from .values import Checkpoint, QuantizedArray, Value

__all__ = ["Checkpoint", "QuantizedArray", "Value", "read_checkpoint"]
