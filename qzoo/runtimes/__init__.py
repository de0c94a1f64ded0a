"""What executes int8 models: one file per runtime behind one small interface."""

from typing import TYPE_CHECKING

from .._core.lazy import module_getattr
from .api import available_runtimes, compile
from .base import CompiledModel
from .choice import Choice
from .profile import NodeProfile, Profile

__all__ = ["Choice", "CompiledModel", "NodeProfile", "Profile", "available_runtimes", "compile"]

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__, __path__)
