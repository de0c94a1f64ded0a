"""What callers may hand over: NumPy arrays or, where they use PyTorch themselves, its tensors.

Nothing here imports PyTorch: whoever holds a tensor has imported it already.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def is_tensor(x: Any) -> bool:
    """Whether `x` is a PyTorch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_module(x: Any) -> bool:
    """Whether `x` is a PyTorch module."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.nn.Module)


def as_array(x: Any) -> np.ndarray:
    """Returns an array, or the array of a tensor, without copying where both can share memory."""
    return np.asarray(x.detach().cpu().numpy() if is_tensor(x) else x)
