"""The old place of what measures time, kept for programs that import it from here."""

from ._core.timing import Timing, interleave
from ._torch.threads import torch_threads

__all__ = ["Timing", "interleave", "torch_threads"]
