"""The old place of `qzoo._core.timing`, kept for programs that import it from here."""

from ._core.timing import Timing, interleave, torch_threads

__all__ = ["Timing", "interleave", "torch_threads"]
