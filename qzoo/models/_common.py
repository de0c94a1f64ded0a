"""Pieces that the quantizable definitions of several families share."""

# No `from __future__ import annotations`: FX copies `forward`'s annotations into the code of its
# graphs, and TorchScript knows the type Tensor there, but not the string "Tensor".

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models._utils import _make_divisible
from torchvision.ops.misc import Conv2dNormActivation

from .._core.finite import check_finite
from ..artifact.format import ModelInfo
from ..errors import ArtifactError
from ..labels import Labelled
from ..native.engines import native_call
from ..native.markers import DeQuantStub, QuantStub, fuse
from ..native.model import attach_info, copy_model, model_info, pickled_parts, unpickled


class QuantizableMixin(Labelled, nn.Module):
    """Marks where a model's integers begin and end; goes before the float class in the bases."""

    #: TorchScript compiles properties unless they are named here.
    __jit_unused_properties__ = ("classes", "transforms")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quant = QuantStub()
        self.dequant = DeQuantStub()
        _replace_relu(self)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; `classes` and `transforms` are recorded, to be saved with the model.

        Raises:
            ArgumentError: Transforms that no file can hold.
        """
        if name in self.__jit_unused_properties__:
            attach_info(self, replace(model_info(self), **{name: value}))
        else:
            super().__setattr__(name, value)

    def _model_info(self) -> ModelInfo | None:
        try:
            return model_info(self)
        except ArtifactError:  # made by a class, not by a builder
            return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model; an int8 one on the engine that the user set, whatever others load.

        Raises:
            ArgumentError: An int8 model was given NaN or infinity.
        """
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if traced or isinstance(self.quant, QuantStub):
            return super().__call__(*args, **kwargs)
        for x in args:
            if isinstance(x, Tensor) and x.is_floating_point():
                check_finite(x)
        with native_call():
            return super().__call__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """Copies the model; an int8 one stays with its engine, so that it answers to the bit."""
        return copy_model(self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles an int8 model of the zoo as its artifact, without hooks; others as any module."""
        parts = pickled_parts(self)
        return super().__reduce_ex__(protocol) if parts is None else (unpickled, parts)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses conv+bn+relu in place; `is_qat=None` takes `self.training`."""
        for module in self.modules():
            if module is not self and hasattr(module, "fuse_model"):
                module.fuse_model(is_qat)

    def save_pretrained(self, folder: str | os.PathLike[str], **info: Any) -> None:
        """Saves an int8 model as a folder to share; see `qzoo.sharing.save_pretrained`."""
        from ..sharing import save_pretrained

        save_pretrained(self, folder, **info)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Pushes an int8 model to the Hub; see `qzoo.sharing.push_to_hub`. Returns its address."""
        from ..sharing import push_to_hub

        return push_to_hub(self, repo_id, **options)


class SequentialForwardMixin(QuantizableMixin):
    """Runs the float class's `_forward_impl` between the markers."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [N, num_classes] for images [N, 3, H, W], both float32."""
        x = self.quant(x)
        x = self._forward_impl(x)
        return self.dequant(x)


class MobileNetMixin(SequentialForwardMixin):
    """What both MobileNets are: blocks that may be given, and layers of conv+bn(+relu)."""

    #: The blocks unless others are given.
    usual_block: ClassVar[Callable[..., nn.Module]]

    def __init__(
        self, *args: Any, block: Callable[..., nn.Module] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, block=block or type(self).usual_block, **kwargs)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses conv+bn(+relu) in place; `is_qat=None` takes `self.training`."""
        for module in self.modules():
            if type(module) is Conv2dNormActivation:
                rectified = len(module) == 3 and type(module[2]) is nn.ReLU
                fuse(module, ["0", "1", "2"] if rectified else ["0", "1"], is_qat)
        super().fuse_model(is_qat)


class ConvBnReluMixin(nn.Module):
    """Gives GoogLeNet's and Inception's `BasicConv2d` a ReLU module of its own, and fusion."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Applies convolution, batch norm and ReLU."""
        return self.relu(self.bn(self.conv(x)))

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses the three modules into one."""
        fuse(self, ["conv", "bn", "relu"], is_qat)


def _replace_relu(model: nn.Module) -> None:
    """Replaces every ReLU and ReLU6 by a plain ReLU that does not write in place.

    torchvision's quantizable models do the same: ReLU fuses with convolutions, and the int8 range
    cuts large values anyway. Only exact types are replaced, not subclasses.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in (nn.ReLU, nn.ReLU6):
                setattr(module, name, nn.ReLU(inplace=False))


def width_multipliers(channels: int, usual: int) -> Iterator[float]:
    """Goes through the multipliers that turn `usual` channels into `channels`, the roundest first.

    Each gives the very same layer, so that it does not matter which of them its maker wrote.
    """
    near = round(100 * channels / usual)
    hundredths = range(max(1, near - 5), near + 6)
    for number in sorted(hundredths, key=lambda n: (n % 25 != 0, n % 10 != 0, n % 5 != 0)):
        if _make_divisible(usual * (number / 100), 8) == channels:
            yield number / 100
