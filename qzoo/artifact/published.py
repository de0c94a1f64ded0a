"""The old place of `qzoo.importers.published`, kept for programs that import it from here."""

from ..importers.published import from_checkpoint, read_published

__all__ = ["from_checkpoint", "read_published"]
