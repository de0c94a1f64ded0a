"""PyTorch's native int8 modules, made of an artifact's plain numbers."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic import quantized as nniq

from ..artifact.layers import Layer
from ..errors import ArtifactError
from .float_layer import FloatConv2d, FloatLinear


def native_module(
    name: str, layer: Layer, tensors: MutableMapping[str, Tensor], current: Any
) -> nn.Module:
    """Returns the int8 module of one layer, its weights packed for the current engine.

    Args:
        name: The layer's name, under which `tensors` holds its numbers.
        layer: What it computes.
        tensors: The artifact's plain tensors; the layer's weight is taken out.
        current: The skeleton's module in its place, for the shapes that a layer does not carry.

    Raises:
        ArtifactError: The engine cannot take the weights.
    """
    match layer.op:
        case "conv2d" | "linear" if layer.float:
            return _float_layer(name, layer, tensors)
        case "conv2d":
            return _native_conv(name, layer, tensors, current)
        case "linear":
            return _native_linear(name, layer, tensors, current)
        case "quantize":
            return nnq.Quantize(layer.scale, layer.zero_point, torch.quint8).eval()
        case "dequantize":
            return nnq.DeQuantize().eval()
        case "functional":
            functional = nnq.QFunctional()
            functional.scale, functional.zero_point = layer.scale, layer.zero_point
            return functional.eval()
        case "hardswish":
            return nnq.Hardswish(layer.scale, layer.zero_point).eval()
        case "dropout":
            return nnq.Dropout(current.p, current.inplace).eval()
        case _:
            return nn.Identity().eval()


def _quantized_weight(name: str, tensors: MutableMapping[str, Tensor]) -> Tensor:
    values, scale = tensors.pop(f"{name}.weight"), tensors[f"{name}.weight_scale"]
    zero_point = tensors.get(f"{name}.weight_zero_point")
    if scale.dim() == 0:
        zp = 0 if zero_point is None else int(zero_point)
        return torch._make_per_tensor_quantized_tensor(values, float(scale), zp)
    zps = (
        torch.zeros(len(scale), dtype=torch.int64, device="cpu")
        if zero_point is None
        else zero_point.long()
    )
    return torch._make_per_channel_quantized_tensor(values, scale.double(), zps, 0)


def _empty(cls: type[nn.Module]) -> Any:
    """Makes a module without its constructor, which would allocate, draw and pack weights."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    return module.eval()


def _float_layer(name: str, layer: Layer, tensors: MutableMapping[str, Tensor]) -> nn.Module:
    # Copies, because a native model's state may be overwritten and an artifact's never is.
    weight = tensors.pop(f"{name}.weight").clone()
    bias = tensors[f"{name}.bias"].clone() if f"{name}.bias" in tensors else None
    return (FloatLinear if layer.op == "linear" else FloatConv2d)(weight, bias, layer).eval()


def _native_conv(
    name: str, layer: Layer, tensors: MutableMapping[str, Tensor], current: Any
) -> nn.Module:
    module = _empty(nniq.ConvReLU2d if layer.relu else nnq.Conv2d)
    for attribute in (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
        "transposed", "output_padding", "groups", "padding_mode",
    ):  # fmt: skip
        setattr(module, attribute, getattr(current, attribute))
    _pack(name, module, tensors)
    module.scale, module.zero_point = layer.scale, layer.zero_point
    return module


def _native_linear(
    name: str, layer: Layer, tensors: MutableMapping[str, Tensor], current: Any
) -> nn.Module:
    module = _empty(nniq.LinearReLU if layer.relu else nnq.Linear)
    module.in_features, module.out_features = current.in_features, current.out_features
    module._packed_params = _empty(nnq.modules.linear.LinearPackedParams)
    module._packed_params.dtype = torch.qint8
    _pack(name, module._packed_params, tensors)
    module.scale, module.zero_point = layer.scale, layer.zero_point
    return module


def _pack(name: str, module: Any, tensors: MutableMapping[str, Tensor]) -> None:
    try:
        module.set_weight_bias(_quantized_weight(name, tensors), tensors.get(f"{name}.bias"))
    except RuntimeError as error:
        raise ArtifactError(
            f"PyTorch's engine {torch.backends.quantized.engine} cannot take the weights of layer "
            f"{name!r}: {str(error).splitlines()[0]}"
        ) from None
