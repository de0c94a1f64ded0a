"""What callers may hand over: NumPy arrays or, where they use PyTorch themselves, its tensors.

Nothing here imports PyTorch: whoever holds a tensor has imported it already.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn


def is_tensor(x: Any) -> TypeGuard[Tensor]:
    """Whether `x` is a PyTorch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_module(x: Any) -> TypeGuard[nn.Module]:
    """Whether `x` is a PyTorch module."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.nn.Module)


def as_array(x: Any) -> np.ndarray:
    """Returns an array, or the array of a tensor, without copying where both can share memory."""
    return np.asarray(x.numpy(force=True) if is_tensor(x) else x)


def alike(array: np.ndarray, x: Any) -> Any:
    """Returns an array as what `x` is: a tensor of the same memory, or the array itself."""
    return sys.modules["torch"].from_numpy(array) if is_tensor(x) else array
