"""The old place of `qzoo.datasets.evaluate`, kept for programs that import it from here."""

from .datasets.evaluate import Metrics, eval_mode, evaluate

__all__ = ["Metrics", "eval_mode", "evaluate"]
