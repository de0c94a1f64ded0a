"""PyTorch's quantized tensors, which only native models and FX graphs compute on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ArtifactError

#: The function that makes them, as graphs name it.
QUANTIZE: Any = getattr(torch, "quantize_per_tensor", None)


def integers(value: Any) -> Tensor | None:
    """Returns the integers of a quantized tensor, or None for any other value."""
    return value.int_repr() if isinstance(value, Tensor) and value.is_quantized else None


def with_integers(value: Tensor, given: Tensor) -> Tensor:
    """Returns a quantized tensor of these integers, uint8, on the grid of another one."""
    return torch._make_per_tensor_quantized_tensor(given, value.q_scale(), value.q_zero_point())


def scale_and_zero_point(name: str, value: Any) -> tuple[float, int] | None:
    """Returns the grid that a value lies on, or None where it is no quantized tensor.

    Args:
        name: What computes it, for the message.
        value: A value of an int8 graph.

    Raises:
        ArtifactError: It was quantized in another way than an artifact's activations.
    """
    if integers(value) is None:
        return None
    if value.dtype != torch.quint8 or value.qscheme() != torch.per_tensor_affine:
        raise ArtifactError(
            f"The graph's {name} is {value.dtype}; an int8 artifact has quint8 "
            "activations: use a QConfigMapping that observes them so."
        )
    return value.q_scale(), value.q_zero_point()
