"""The old place of `qzoo.pictures.images`, kept for programs that import it from here."""

from .pictures.images import check_image, load_image

__all__ = ["check_image", "load_image"]
