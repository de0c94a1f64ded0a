"""The binding of libqzoo, the C library that runs int8 models with the same integers everywhere."""

from typing import TYPE_CHECKING

from .._core.lazy import module_getattr

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__, __path__)
