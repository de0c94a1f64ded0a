"""The old place of `qzoo.importers.pt2e`, kept for programs that import it from here."""

from ..importers.pt2e import from_pt2e

__all__ = ["from_pt2e"]
