"""The old place of what measures time, kept for programs that import it from here."""

from ._core.threads import torch_threads
from ._core.timing import Timing, interleave

__all__ = ["Timing", "interleave", "torch_threads"]
