"""The marker modules and fused pairs that quantizable definitions are made of.

They are `torch.ao`'s own classes where this PyTorch has them, because its eager flow goes by exact
types, and the small classes of `own_markers`, which behave alike, where it does not. PyTorch is to
delete `torch.ao`: https://github.com/pytorch/ao/issues/2259.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from ..errors import MissingDependencyError
from . import own_markers

__all__ = [
    "TORCH_AO",
    "ConvReLU2d",
    "DeQuantStub",
    "FloatFunctional",
    "LinearReLU",
    "QuantStub",
    "fuse",
    "require_torch_ao",
]

if TYPE_CHECKING:
    from .own_markers import ConvReLU2d, DeQuantStub, FloatFunctional, LinearReLU, QuantStub
else:
    try:
        from torch.ao.nn.intrinsic import ConvReLU2d, LinearReLU
        from torch.ao.nn.quantized import FloatFunctional
        from torch.ao.quantization import DeQuantStub, QuantStub
    except (ImportError, AttributeError):  # it needs quantized dtypes, which may go first
        from .own_markers import ConvReLU2d, DeQuantStub, FloatFunctional, LinearReLU, QuantStub

#: Whether this PyTorch still has `torch.ao`, so that native int8 models can be built.
TORCH_AO = FloatFunctional is not own_markers.FloatFunctional


def fuse(
    model: nn.Module, groups: Sequence[str] | Sequence[Sequence[str]], is_qat: bool | None
) -> None:
    """Fuses conv+bn(+relu), conv+relu and linear+relu groups of `model` in place.

    Args:
        model: The module whose children are named in `groups`.
        groups: One group of child names, or several.
        is_qat: Whether to keep batch norm trainable for QAT; None takes `model.training`.
    """
    training = model.training if is_qat is None else is_qat
    if not TORCH_AO:
        own_markers.fuse_modules(model, groups, training)
        return
    from torch.ao.quantization import fuse_modules, fuse_modules_qat

    (fuse_modules_qat if training else fuse_modules)(model, groups, inplace=True)


def require_torch_ao(what: str) -> None:
    """Checks that this PyTorch still has `torch.ao`.

    Args:
        what: What needs it, as the beginning of a sentence.

    Raises:
        MissingDependencyError: It no longer has it.
    """
    if not TORCH_AO:
        raise MissingDependencyError(
            f"{what} needs torch.ao, which this PyTorch no longer has: install an older one, or "
            "use what does without: qzoo's own PTQ and QAT, and every runtime but 'torch'."
        )
