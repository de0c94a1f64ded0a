"""What qzoo uses of PyTorch's FX graph mode quantization (`torch.ao.quantization.quantize_fx`)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.ao.nn import intrinsic as nni
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic import quantized as nniq
from torch.ao.quantization import QConfigMapping, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from ..artifact.layers import float_weight_tensors, weight_tensors
from ..errors import ArgumentError, ArtifactError
from .eager import _integers, _weight_bias, inside_torch_ao

#: Functions of a converted graph, and what a FloatFunctional calls them.
FUNCTIONALS = {
    torch.add: "add",
    torch.mul: "mul",
    torch.cat: "cat",
    torch.ops.quantized.add: "add",
    torch.ops.quantized.add_relu: "add_relu",
    torch.ops.quantized.mul: "mul",
    torch.ops.quantized.cat: "cat",
}

_STATIC = (nnq.Conv2d, nnq.Linear, nniq.ConvReLU2d, nniq.LinearReLU)


def check_mapping(mapping: Any) -> None:
    """Checks that something is a QConfigMapping.

    Raises:
        ArgumentError: It is something else.
    """
    if not isinstance(mapping, QConfigMapping):
        raise ArgumentError(
            "qconfig_mapping should be a torch.ao.quantization.QConfigMapping, not "
            f"{type(mapping).__name__}."
        )


def mapping_for(backend: str, mapping: Any, keep_float: Iterable[str]) -> Any:
    """Returns a mapping, by default PyTorch's own of a backend, that leaves some layers float."""
    chosen = get_default_qconfig_mapping(backend) if mapping is None else copy.deepcopy(mapping)
    for name in keep_float:
        chosen.set_module_name(name, None)
    return chosen


def prepare_graph(model: nn.Module, mapping: Any, images: Tensor) -> fx.GraphModule:
    """Returns a float model in eval mode as a graph with observers; forward passes feed them.

    Args:
        model: A float model, not fused; it is changed.
        mapping: A QConfigMapping.
        images: An example of its input.

    Raises:
        ArgumentError: FX cannot trace the model, or the mapping does not fit it.
    """
    try:
        with inside_torch_ao():
            graph: fx.GraphModule = prepare_fx(model, mapping, (images,))
    except (torch.fx.proxy.TraceError, TypeError, ValueError, AssertionError) as error:
        raise ArgumentError(
            f"FX cannot prepare this {type(model).__name__} ({str(error).strip()[:200]}): use "
            'flow="eager".'
        ) from None
    return graph


def convert_graph(prepared: fx.GraphModule) -> fx.GraphModule:
    """Turns a calibrated graph into an int8 one, packing for the current engine."""
    with inside_torch_ao():
        converted: fx.GraphModule = convert_fx(prepared)
    return converted


def layer_tensors(name: str, module: Any) -> tuple[dict[str, Any], bool]:
    """Reads the weights of a converted graph's convolution or linear layer.

    Args:
        name: The layer's name, for the tensors' keys.
        module: The graph's module of that name.

    Returns:
        The artifact's tensors, and whether the layer was left in float.

    Raises:
        ArtifactError: It was quantized in a way that an artifact does not hold.
    """
    if type(module) in _STATIC:  # their subclasses quantize activations in other ways
        weight, bias = _weight_bias(module)
        if weight.dtype == torch.qint8:
            return weight_tensors(name, *_integers(weight), bias), False
    fused = isinstance(module, (nni.ConvReLU2d, nni.LinearReLU))
    plain: Any = module[0] if fused else module
    if type(plain) in (nn.Conv2d, nn.Linear):
        return float_weight_tensors(name, plain.weight, plain.bias), True
    raise ArtifactError(
        f"FX made a {type(module).__module__}.{type(module).__name__} of layer {name!r}, which an "
        "int8 artifact cannot hold: quantize weights to qint8 and activations to quint8, "
        "statically."
    )
