"""What the numbers of a checkpoint become: numpy arrays, or PyTorch's tensors of the same memory.

Element types go by PyTorch's names for them ("float32", "bfloat16").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..._core.optional import require_torch

#: Element types that numpy lacks, and the integers that hold their bits.
_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def stored_dtype(name: str) -> np.dtype:
    """Returns numpy's dtype of an element type; of one that numpy lacks, a field with its bits.

    So nothing is copied while a file is read: a small one may name the same bytes many times.
    """
    return np.dtype([(name, _BITS[name])] if name in _BITS else name)


def is_real(name: str) -> bool:
    """Says whether an element type holds real numbers, and no integers or complex numbers."""
    return name.startswith(("float", "bfloat"))


def readable(array: np.ndarray) -> np.ndarray:
    """Returns an array as it is, or of a type that numpy lacks its numbers as float32, exactly."""
    if array.dtype.names is None:
        return array
    (name,) = array.dtype.names
    return _float32(array[name].reshape(-1), name).reshape(array.shape)


def _float32(bits: np.ndarray, name: str) -> np.ndarray:
    if name == "bfloat16":  # the upper half of a float32
        return (bits.astype(np.uint32) << 16).view(np.float32)
    wide = bits.astype(np.uint16)
    if name == "float8_e5m2":  # the upper half of a float16
        return (wide << 8).view(np.float16).astype(np.float32)
    # float8_e4m3fn: moved into a float16's place, whose exponents count from 15 instead of 7.
    moved = ((wide & 0x80) << 8 | (wide & 0x7F) << 7).view(np.float16).astype(np.float32)
    return np.where(wide & 0x7F == 0x7F, np.float32(np.nan), moved * np.float32(256))


class ArrayMaker:
    """Makes numpy arrays."""

    def storage(self, data: np.ndarray) -> Any:
        """Returns a storage's bytes (uint8) in the form that `view` takes."""
        return data

    def view(
        self, storage: Any, name: str, offset: int, shape: Sequence[int], stride: Sequence[int]
    ) -> Any:
        """Returns elements of a storage; offset and strides are counted in elements."""
        dtype = stored_dtype(name)
        # Of one element nothing is the next, however far away it would be.
        steps = [
            n * dtype.itemsize if size > 1 else 0 for size, n in zip(shape, stride, strict=True)
        ]
        return np.ndarray(shape, dtype, storage, offset * dtype.itemsize, steps)

    def numbers(self, values: Any, name: str) -> Any:
        """Returns a number, a list of numbers or what `view` made, converted."""
        return np.asarray(readable(values) if isinstance(values, np.ndarray) else values, name)


class TensorMaker:
    """Makes PyTorch's tensors, on the CPU, whatever the default device is."""

    def __init__(self) -> None:
        self._torch = require_torch("Reading a checkpoint as tensors")

    def storage(self, data: np.ndarray) -> Any:
        """Returns a storage's bytes (uint8) in the form that `view` takes."""
        if not data.size:  # whose stride numpy may give as 0
            return self._torch.empty(0, dtype=self._torch.uint8, device="cpu")
        return self._torch.from_numpy(data)

    def view(
        self, storage: Any, name: str, offset: int, shape: Sequence[int], stride: Sequence[int]
    ) -> Any:
        """Returns elements of a storage; offset and strides are counted in elements."""
        elements = storage.view(getattr(self._torch, name))
        return self._torch.as_strided(elements, shape, stride, offset)

    def numbers(self, values: Any, name: str) -> Any:
        """Returns a number, a list of numbers or what `view` made, converted."""
        return self._torch.as_tensor(values, dtype=getattr(self._torch, name), device="cpu")
