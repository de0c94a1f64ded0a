"""What executes int8 models: one file per runtime behind one small interface."""

from .api import available_runtimes, compile
from .base import CompiledModel
from .choice import Choice

__all__ = ["Choice", "CompiledModel", "available_runtimes", "compile"]
