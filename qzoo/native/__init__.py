"""Native int8 models: the only package that touches `torch.ao`, which PyTorch is to delete."""

from typing import TYPE_CHECKING

from .. import _torch as _torch
from .._core.lazy import module_getattr

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__, __path__)
