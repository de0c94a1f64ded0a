"""Native int8 models: `torch.ao`'s quantized modules, to and from plain layers and tensors.

Import it only where `markers.TORCH_AO` says that this PyTorch still has `torch.ao`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic import quantized as nniq
from torch.ao.quantization import (
    convert,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
)

from .._core.process import quiet
from .._torch.defaults import plain_defaults
from ..artifact.layers import Layer, float_weight_tensors, weight_tensors
from ..errors import ArtifactError
from .float_layer import FloatLayer
from .layers import OP_OF_TYPE, check_fit, layer_of, quantizable_leaves
from .markers import ConvReLU2d, FloatFunctional, LinearReLU, QuantStub
from .modules import native_module

_OP_OF_TYPE = {
    **OP_OF_TYPE,
    nnq.Quantize: ("quantize", False),
    nnq.DeQuantize: ("dequantize", False),
    nnq.QFunctional: ("functional", False),
    nnq.Conv2d: ("conv2d", False),
    nniq.ConvReLU2d: ("conv2d", True),
    nnq.Linear: ("linear", False),
    nniq.LinearReLU: ("linear", True),
    nnq.Hardswish: ("hardswish", False),
    nnq.Dropout: ("dropout", False),
}
_FLOAT_TYPES = (nn.Conv2d, nn.Linear, ConvReLU2d, LinearReLU, QuantStub, FloatFunctional)


def default_qconfig(backend: str) -> Any:
    """Returns PyTorch's default PTQ qconfig for the backend."""
    return get_default_qconfig(backend)


def default_qat_qconfig(backend: str) -> Any:
    """Returns PyTorch's default QAT qconfig for the backend."""
    return get_default_qat_qconfig(backend)


def insert_observers(fused: nn.Module, qconfig: Any) -> None:
    """Puts observers into a fused float model in eval mode, in place; forward passes feed them."""
    fused.qconfig = qconfig
    with inside_torch_ao():
        prepare(fused, inplace=True)


def convert_observed(observed: nn.Module) -> None:
    """Turns a calibrated model into a native int8 one, in place, packing for the current engine."""
    # Blocks of MobileNet V3 without a shortcut own an addition that never runs.
    with inside_torch_ao(), quiet("must run observer before"):
        convert(observed, inplace=True)


@contextlib.contextmanager
def inside_torch_ao() -> Iterator[None]:
    """Keeps PyTorch's notices that users of qzoo cannot act on quiet, and their defaults out."""
    with quiet(".*deprecated.*"), plain_defaults():
        yield


def is_quantized(model: nn.Module) -> bool:
    """Whether a model holds PyTorch's int8 modules."""
    types = (nnq.Conv2d, nnq.Linear, nnq.QFunctional, nnq.Quantize, nnq.DeQuantize, nnq.Hardswish)
    return any(isinstance(m, types) for m in model.modules())


def build_native(
    skeleton: nn.Module, layers: Mapping[str, Layer], tensors: MutableMapping[str, Tensor]
) -> nn.Module:
    """Turns a skeleton into a native int8 model, in place, packing for the current engine.

    Args:
        skeleton: The quantizable float model, not fused, on the meta device.
        layers: Module name to layer, as an artifact carries them.
        tensors: The artifact's plain tensors; weights are taken out as they are packed, so that
            they need not be in memory twice.

    Raises:
        ArtifactError: A layer does not fit the skeleton, or a part of the skeleton has no layer.
    """
    check_fit(skeleton, layers, tensors)
    # The largest first, so that what follows fits into the memory that each one leaves.
    sizes = {
        name: tensors[f"{name}.weight"].numel() for name in layers if f"{name}.weight" in tensors
    }
    order = sorted(layers.items(), key=lambda item: -sizes.get(item[0], 0))
    with inside_torch_ao():
        for name, layer in order:
            parent, _, child = name.rpartition(".")
            owner = skeleton.get_submodule(parent)
            owner._modules[child] = native_module(name, layer, tensors, owner._modules[child])
    return skeleton.eval()


def read_native(model: nn.Module) -> tuple[dict[str, Layer], dict[str, Tensor]]:
    """Reads a native int8 model back into plain layers and tensors.

    Raises:
        ArtifactError: A layer is still float, was quantized in a way that the artifact does not
            hold, or was never converted; the message names it.
    """
    layers: dict[str, Layer] = {}
    tensors: dict[str, Any] = {}
    with inside_torch_ao():
        for name, module in quantizable_leaves(model, _OP_OF_TYPE):
            if type(module) in _FLOAT_TYPES:
                raise ArtifactError(
                    f"Layer {name!r} is still float ({type(module).__name__}): quantize the model "
                    "first, for example with references/ptq.py or PyTorch's prepare and convert."
                )
            op, relu = _OP_OF_TYPE[type(module)]
            layers[name] = layer_of(
                op,
                relu,
                module,
                float(getattr(module, "scale", 1.0)),
                int(getattr(module, "zero_point", 0)),
            )
            if isinstance(module, FloatLayer):
                layers[name] = dataclasses.replace(layers[name], relu=module.relu, float=True)
                tensors.update(float_weight_tensors(name, module.weight, module.bias))
            elif op in ("conv2d", "linear"):
                weight, bias = _weight_bias(module)
                tensors.update(weight_tensors(name, *_integers(weight), bias))
    return layers, tensors


def _weight_bias(module: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(module, nnq.Linear):
        return module._packed_params._weight_bias()
    return module._weight_bias()


def _integers(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns int8 values, float64 scales and int64 zero points of a quantized weight."""
    values = weight.int_repr().contiguous()
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        return values, weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    return (
        values,
        torch.tensor(weight.q_scale(), dtype=torch.float64, device="cpu"),
        torch.tensor(weight.q_zero_point(), dtype=torch.int64, device="cpu"),
    )
