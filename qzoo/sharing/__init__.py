"""Sharing: int8 models as folders and Hub repositories, their cards, and other people's files."""

from typing import TYPE_CHECKING

from .._core.lazy import module_getattr
from .pretrained import from_pretrained, push_artifact, push_to_hub, save_artifact, save_pretrained

__all__ = ["from_pretrained", "push_artifact", "push_to_hub", "save_artifact", "save_pretrained"]

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__, __path__)
