"""The inert objects that stand for PyTorch's while a checkpoint is read, and the reader's bounds.

Nothing here runs code from a file, allocates tensor memory or touches a quantized dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..._core.files import RefusedError
from .elements import stored_dtype

__all__ = ["RefusedError"]

# Bounds. With them a read allocates at most the file's size (tensor storages are stored
# uncompressed and each byte of the file belongs to at most one of them) plus 128 MiB for all the
# rest. A quantized ResNet-50 needs 40 kB of pickle, 12,000 instructions and 330 tensors.
MAX_PICKLE_BYTES = 8 << 20
MAX_INSTRUCTIONS = 500_000
MAX_TENSORS = 1 << 15
MAX_QPARAMS = 1 << 20  # scales of all per-channel tensors together
MAX_DIMENSIONS = 16
MAX_DEPTH = 64  # containers in containers
MAX_NAME = 256  # characters of a module or class name
MAX_INT_BYTES = 32
MAX_KEY = 1 << 60  # larger integers can be built to collide in a dict
MAX_ZIP_ENTRIES = 1 << 16
MAX_ZIP_DIRECTORY = 16 << 20


class TruncatedError(RefusedError):
    """The bytes ended before the pickle did."""


def shown(text: str) -> str:
    """A file's own text made fit for an error message: short, on one line, printable."""
    safe = text.encode("unicode_escape").decode("ascii")
    return safe if len(safe) <= 80 else safe[:77] + "..."


class OrderedItems(dict[Any, Any]):
    """Stands for `collections.OrderedDict`; `metadata` is a state dict's `_metadata`."""

    __slots__ = ("metadata",)

    def __init__(self) -> None:
        super().__init__()
        self.metadata: object = None


class Namespace:
    """Stands for `argparse.Namespace`: holds the fields and has no attribute of their names."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: dict[Any, Any] | None = None


class Foreign:
    """Stands for a class or function of other code that the file names, and for what it makes.

    Nothing is known of it but its name, and what was set on it as on a dict.
    """

    __slots__ = ("items", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.items: dict[Any, Any] = {}


class OddKey:
    """Stands for a dict key that is neither text nor a small integer; equal to no other."""

    __slots__ = ()


class Dtype:
    """A storage's element type: what its file calls it, and which plain elements it holds."""

    __slots__ = ("elements", "name", "quantized")

    def __init__(self, name: str, elements: str, quantized: bool = False) -> None:
        self.name = name
        self.elements = elements
        self.quantized = quantized


class StorageRef:
    """A storage that the pickle names: `count` elements of `kind`, found under `key`."""

    __slots__ = ("count", "key", "kind")

    def __init__(self, kind: Dtype, key: str, count: int) -> None:
        self.kind = kind
        self.key = key
        self.count = count

    @property
    def nbytes(self) -> int:
        return self.count * stored_dtype(self.kind.elements).itemsize


class TensorRef:
    """A tensor before its numbers are read; geometry and `qparams` are not yet checked.

    `elements` overrides the storage's (for dtypes that are stored untyped). `qparams` is what
    `_rebuild_qtensor` received: `(qscheme, scale, zero_point)` or
    `(qscheme, scales, zero_points, axis)`.
    """

    __slots__ = ("elements", "offset", "qparams", "shape", "storage", "stride")

    def __init__(
        self,
        storage: StorageRef,
        offset: object,
        shape: object,
        stride: object,
        elements: str | None = None,
        qparams: tuple[Any, ...] | None = None,
    ) -> None:
        self.storage = storage
        self.offset = offset
        self.shape = shape
        self.stride = stride
        self.elements = elements or storage.kind.elements
        self.qparams = qparams


class Function:
    """One of the reader's own functions, standing for the global `name` of the file."""

    __slots__ = ("name", "run")

    def __init__(self, name: str, run: Callable[..., object]) -> None:
        self.name = name
        self.run = run
