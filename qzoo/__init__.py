"""qzoo: a zoo of quantized image-classification models for PyTorch, stored as plain integers.

The names of `__init__.pyi`, and the subpackages, are imported when they are first used: the command
line shows its help, and completes words, without the seconds that importing PyTorch takes.
"""

from ._core.lazy import attach
from ._version import __version__ as __version__

__getattr__, __dir__ = attach(__name__, __path__)
del attach
