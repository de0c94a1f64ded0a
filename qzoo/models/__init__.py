"""The quantizable models, one file per family; a family's `__all__` says what it offers."""

from .._core.lazy import attach

__getattr__, __dir__ = attach(__name__, __path__)
del attach
