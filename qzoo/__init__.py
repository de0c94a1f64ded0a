"""qzoo: a zoo of quantized image-classification models for PyTorch, stored as plain integers.

The names of `qzoo/_api.py`, and the subpackages, are imported when they are first used: the command
line shows its help, and completes words, without the seconds that importing PyTorch takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import (
        analysis,
        artifact,
        backends,
        classify,
        datasets,
        errors,
        export,
        hub,
        models,
        quantize,
        reference,
        registry,
        runtimes,
        training,
        transforms,
        weights,
    )
    from ._api import *
    from ._core import timing as benchmark
    from .datasets import evaluate
    from .importers import checkpoint
    from .pictures import images
    from .sharing import convert
    from .sharing import pretrained as sharing
else:
    from ._core.lazy import module_getattr, public_modules

    _module = module_getattr(__name__, __path__)

    def __getattr__(name):
        if name in public_modules(__path__) or (name.startswith("_") and name != "__all__"):
            return _module(name)
        from . import _api

        if name == "__all__":
            return _api.__all__
        if name not in _api.__all__:
            return _module(name)  # which says that there is none
        return globals().setdefault(name, getattr(_api, name))

    def __dir__():
        return sorted({*globals(), *public_modules(__path__), *__getattr__("__all__")})
