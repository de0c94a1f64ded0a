"""The numbers of an artifact: NumPy arrays, and PyTorch tensors of the same memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.given import as_array, is_tensor
from .._core.optional import require_torch

if TYPE_CHECKING:
    from torch import Tensor


class Tensors(MutableMapping[str, Any]):
    """Names to numbers: a mapping to PyTorch's tensors, and `arrays` without PyTorch.

    A tensor is made when it is first asked for and shares the array's memory. What is put in may
    be either.

    Args:
        content: Names to arrays or CPU tensors, or another `Tensors`.

    Attributes:
        arrays: Names to NumPy arrays.

    Raises:
        MissingDependencyError: A tensor is asked for and PyTorch is not installed.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._made: dict[str, Tensor] = {}
        if isinstance(content, Tensors):
            self.arrays, self._made = dict(content.arrays), dict(content._made)
        else:
            self.update(content)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            array = self.arrays[name]
            self._made[name] = require_torch("A tensor").from_numpy(array)
        return self._made[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._made.pop(name, None)
        self.arrays[name] = np.require(as_array(value), requirements="C")
        if is_tensor(value) and value.device.type == "cpu":
            self._made[name] = value.detach()

    def __delitem__(self, name: str) -> None:
        del self.arrays[name]
        self._made.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def __or__(self, other: Mapping[str, Any]) -> Tensors:
        return Tensors({**self.arrays, **dict(other)})

    def __repr__(self) -> str:
        return f"Tensors({self.arrays!r})"
