"""The safe reader of `torch.save` files: plain integers out, no pickle code run."""

from qzoo.artifact.pth.reader import read_checkpoint
from qzoo.artifact.pth.values import Checkpoint, QuantizedArray, Value

__all__ = ["Checkpoint", "QuantizedArray", "Value", "read_checkpoint"]
