"""With its siblings `_torch_ao_*.py` all that touches `torch.ao`, which PyTorch is to delete.

It offers the marker modules that the quantizable definitions use, module fusion, the default
qconfigs, and the two ways between a native int8 model (`torch.ao.nn.quantized` modules with
PyTorch's own kernels) and plain integers. See https://github.com/pytorch/ao/issues/2259.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import intrinsic as nni
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic import quantized as nniq
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import (
    DeQuantStub,
    QuantStub,
    convert,
    fuse_modules,
    fuse_modules_qat,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
)

from .._core.process import plain_defaults, quiet
from ..artifact.layers import Layer, float_weight_tensors, weight_tensors
from ..errors import ArtifactError
from .float_layer import FloatConv2d, FloatLayer, FloatLinear
from .modules import native_module

__all__ = ["DeQuantStub", "FloatFunctional", "QuantStub", "fuse"]

_OP_OF_TYPE: dict[type[nn.Module], tuple[str, bool]] = {
    QuantStub: ("quantize", False),
    nnq.Quantize: ("quantize", False),
    DeQuantStub: ("dequantize", False),
    nnq.DeQuantize: ("dequantize", False),
    FloatFunctional: ("functional", False),
    nnq.QFunctional: ("functional", False),
    nn.Conv2d: ("conv2d", False),
    nnq.Conv2d: ("conv2d", False),
    nni.ConvReLU2d: ("conv2d", True),
    nniq.ConvReLU2d: ("conv2d", True),
    nn.Linear: ("linear", False),
    nnq.Linear: ("linear", False),
    nni.LinearReLU: ("linear", True),
    nniq.LinearReLU: ("linear", True),
    nn.Hardswish: ("hardswish", False),
    nnq.Hardswish: ("hardswish", False),
    nn.Dropout: ("dropout", False),
    nnq.Dropout: ("dropout", False),
    nn.Identity: ("identity", False),
    FloatConv2d: ("conv2d", False),  # whether with ReLU, the module says itself
    FloatLinear: ("linear", False),
}
_FLOAT_TYPES = (nn.Conv2d, nn.Linear, nni.ConvReLU2d, nni.LinearReLU, QuantStub, FloatFunctional)
# Parts without numbers of their own that an int8 model must not keep as they are.
_MARKER_TYPES = (QuantStub, DeQuantStub, FloatFunctional, nn.Hardswish)
# What fusion folds into a neighbour, leaving an identity behind.
_FOLDED_TYPES = (nn.BatchNorm2d, nn.ReLU, nn.Identity)
# Modules that compute on integers as they stand, whose type conversion leaves alone.
_PLAIN_TYPES = (nn.ReLU, nn.Hardsigmoid, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def fuse(
    model: nn.Module, groups: Sequence[str] | Sequence[Sequence[str]], is_qat: bool | None
) -> None:
    """Fuses conv+bn(+relu), conv+relu and linear+relu groups of `model` in place.

    Args:
        model: The module whose children are named in `groups`.
        groups: One group of child names, or several.
        is_qat: Whether to keep batch norm trainable for QAT; None takes `model.training`.
    """
    method = fuse_modules_qat if (model.training if is_qat is None else is_qat) else fuse_modules
    method(model, groups, inplace=True)


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


def register_decomposed_operators() -> None:
    """Registers PyTorch's `quantized_decomposed` operators, as torchao's PT2E does."""
    importlib.import_module("torch.ao.quantization.fx._decomposed")


@contextlib.contextmanager
def inside_torch_ao() -> Iterator[None]:
    """Keeps PyTorch's notices that users of qzoo cannot act on quiet, and their defaults out."""
    with quiet(".*deprecated.*"), plain_defaults():
        yield


def plan_layers(fused: nn.Module) -> dict[str, Layer]:
    """Lists the layers that a fused float model will have once converted, without ranges.

    Args:
        fused: A quantizable model after `fuse_model`; may live on the meta device.

    Returns:
        Module name to layer; scales are 1.0 and zero points 0 where ranges are still unknown.
    """
    layers = {}
    for name, module in _quantizable_leaves(fused):
        op, relu = _OP_OF_TYPE[type(module)]
        conv = module[0] if isinstance(module, (nni.ConvReLU2d, nni.LinearReLU)) else module
        layers[name] = _layer(op, relu, conv, 1.0, 0)
    return layers


def float_weights(fused: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias of the fused float layer `name`."""
    module: Any = fused.get_submodule(name)
    inner: Any = module[0] if isinstance(module, (nni.ConvReLU2d, nni.LinearReLU)) else module
    return inner.weight, inner.bias


def set_float_bias(fused: nn.Module, name: str, bias: Tensor) -> Tensor:
    """Gives the fused float layer `name` a bias, and returns it as the layer holds it."""
    module: Any = fused.get_submodule(name)
    inner: Any = module[0] if isinstance(module, (nni.ConvReLU2d, nni.LinearReLU)) else module
    inner.bias = nn.Parameter(bias, requires_grad=False)
    return inner.bias


def is_quantized(model: nn.Module) -> bool:
    """Whether a model holds PyTorch's int8 modules."""
    types = (nnq.Conv2d, nnq.Linear, nnq.QFunctional, nnq.Quantize, nnq.DeQuantize, nnq.Hardswish)
    return any(isinstance(m, types) for m in model.modules())


def check_fit(
    skeleton: nn.Module, layers: Mapping[str, Layer], tensors: Mapping[str, Tensor]
) -> None:
    """Checks that layers and tensors are those of an architecture, all of them and no others.

    Args:
        skeleton: The quantizable float model, not fused, on the meta device.
        layers: Module name to layer, as an artifact carries them.
        tensors: The artifact's plain tensors.

    Raises:
        ArtifactError: A layer does not fit the skeleton, or a part of the skeleton has no layer.
    """
    modules = dict(skeleton.named_modules())
    for name, layer in layers.items():
        current: Any = modules.get(name)
        if current is None:
            raise ArtifactError(
                f"The artifact has a layer {name!r} that this architecture lacks: it was made "
                "for another architecture or with other builder arguments."
            )
        folded = isinstance(current, _FOLDED_TYPES)
        if layer.op != ("identity" if folded else _OP_OF_TYPE.get(type(current), ("", False))[0]):
            raise ArtifactError(
                f"The artifact's layer {name!r} is a {layer.op}, but this architecture has "
                f"{type(current).__name__} there: it was made for another architecture."
            )
        if layer.op in ("conv2d", "linear"):
            _check_same(name, "weight shape", tensors[f"{name}.weight"].shape, current.weight.shape)
        if layer.op == "conv2d":
            for what in ("stride", "padding", "dilation", "groups"):
                _check_same(name, what, getattr(layer, what), getattr(current, what))
    for name, module in modules.items():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if name not in layers and (own or type(module) in _MARKER_TYPES):
            raise ArtifactError(
                f"The artifact has no layer {name!r}, which this architecture has: it is "
                "incomplete or was made for another architecture."
            )


def _check_same(name: str, what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        shown = [tuple(v) if isinstance(v, torch.Size) else v for v in (found, wanted)]
        raise ArtifactError(
            f"Layer {name!r} has the {what} {shown[0]} in the artifact and {shown[1]} in this "
            "architecture: it was made for another one."
        )


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
    tensors: dict[str, Tensor] = {}
    with inside_torch_ao():
        for name, module in _quantizable_leaves(model):
            if type(module) in _FLOAT_TYPES:
                raise ArtifactError(
                    f"Layer {name!r} is still float ({type(module).__name__}): quantize the model "
                    "first, for example with references/ptq.py or PyTorch's prepare and convert."
                )
            op, relu = _OP_OF_TYPE[type(module)]
            layers[name] = _layer(
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


def _quantizable_leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        inner = name.endswith(("activation_post_process", "_packed_params"))
        if inner or _inside_fused(model, name):
            continue
        if type(module) in _OP_OF_TYPE:
            yield name, module
        elif not list(module.children()) and not isinstance(module, _PLAIN_TYPES):
            if "quantized" in type(module).__module__ or list(module.parameters()):
                raise ArtifactError(_unsupported(name, module))


def _inside_fused(model: nn.Module, name: str) -> bool:
    parent = model.get_submodule(name.rpartition(".")[0])
    return isinstance(parent, (nni.ConvReLU2d, nni.LinearReLU))


def _unsupported(name: str, module: nn.Module) -> str:
    kind = f"{type(module).__module__}.{type(module).__name__}"
    return (
        f"Layer {name!r} ({kind}) is neither a converted int8 layer nor one that runs on integers "
        "as it stands: fuse the model, prepare and convert it before saving."
    )


def _layer(op: str, relu: bool, module: Any, scale: float, zero_point: int) -> Layer:
    if op in ("dequantize", "dropout", "identity"):
        return Layer(op)
    if op == "conv2d":
        return Layer(
            op,
            scale,
            zero_point,
            relu,
            stride=tuple(module.stride),
            padding=tuple(module.padding),
            dilation=tuple(module.dilation),
            groups=module.groups,
        )
    return Layer(op, scale, zero_point, relu)


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
