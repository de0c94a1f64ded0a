"""What `markers` offers on a PyTorch without `torch.ao`: classes that behave like PyTorch's."""

# No `from __future__ import annotations`: TorchScript and FX read the annotations as objects.

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class QuantStub(nn.Module):
    """Marks where float values become integers."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns its input."""
        return x


class DeQuantStub(nn.Module):
    """Marks where integers become float values again."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns its input."""
        return x


class FloatFunctional(nn.Module):
    """Additions, products and concatenations as methods of a module, whose result has a range.

    Attributes:
        activation_post_process: Every result goes through it; for observers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.activation_post_process = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Refuses.

        Raises:
            RuntimeError: Always; a functional is called by its methods.
        """
        raise RuntimeError("Call a FloatFunctional's methods, such as add, not the module itself.")

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns x + y."""
        return self.activation_post_process(torch.add(x, y))

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns max(x + y, 0)."""
        return self.activation_post_process(F.relu(torch.add(x, y)))

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the product, element by element."""
        return self.activation_post_process(torch.mul(x, y))

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the matrix product."""
        return self.activation_post_process(torch.matmul(x, y))

    def cat(self, x: list[Tensor], dim: int = 0) -> Tensor:
        """Returns tensors joined along a dimension."""
        return self.activation_post_process(torch.cat(x, dim=dim))

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        """Returns x + y; int8 needs no range for it."""
        return torch.add(x, y)

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        """Returns x * y; int8 needs no range for it."""
        return torch.mul(x, y)


class ConvReLU2d(nn.Sequential):
    """A convolution and its ReLU."""


class LinearReLU(nn.Sequential):
    """A fully connected layer and its ReLU."""


class ConvBn2d(nn.Sequential):
    """A convolution and its batch norm, for QAT."""


class ConvBnReLU2d(nn.Sequential):
    """A convolution, its batch norm and its ReLU, for QAT."""


_FUSED = {
    (nn.Conv2d, nn.BatchNorm2d): ConvBn2d,
    (nn.Conv2d, nn.BatchNorm2d, nn.ReLU): ConvBnReLU2d,
    (nn.Conv2d, nn.ReLU): ConvReLU2d,
    (nn.Linear, nn.ReLU): LinearReLU,
}


def fuse_modules(
    model: nn.Module, groups: Sequence[str] | Sequence[Sequence[str]], is_qat: bool
) -> None:
    """Fuses groups of children in place; the first becomes the fused one, the others identities.

    Args:
        model: Owns the children.
        groups: One group of child names, or several.
        is_qat: Whether to keep batch norm as a module of its own.

    Raises:
        NotImplementedError: A group of modules that do not fuse.
    """
    every: Any = [groups] if isinstance(groups[0], str) else groups
    for group in every:
        children: list[Any] = [model.get_submodule(name) for name in group]
        kinds = tuple(type(child) for child in children)
        if kinds not in _FUSED:
            shown = ", ".join(kind.__name__ for kind in kinds)
            raise NotImplementedError(f"Cannot fuse modules: ({shown})")
        if nn.BatchNorm2d in kinds and not is_qat:
            children[:2] = [fuse_conv_bn_eval(children[0], children[1])]
            kinds = tuple(type(child) for child in children)
        fused = children[0] if len(children) == 1 else _FUSED[kinds](*children)
        fused.train(model.training)
        for i, name in enumerate(group):
            parent, _, child = name.rpartition(".")
            owner = model.get_submodule(parent)
            setattr(owner, child, fused if i == 0 else nn.Identity().train(model.training))
