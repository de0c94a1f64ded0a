"""Pictures: opened, prepared and classified."""

from typing import TYPE_CHECKING

from .._core.lazy import module_getattr

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__, __path__)
