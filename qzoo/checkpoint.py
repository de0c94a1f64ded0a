"""The old place of `qzoo.importers.checkpoint`, kept for programs that import it from here."""

from .importers.checkpoint import is_float_checkpoint, load_float, save_float

__all__ = ["is_float_checkpoint", "load_float", "save_float"]
