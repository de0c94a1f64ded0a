"""The layers of a float model of the zoo: which there are, and whether an artifact fits them.

Native int8 modules stand under the same names; `eager` reads them by the same rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..artifact.layers import Layer
from ..errors import ArtifactError
from .float_layer import FloatConv2d, FloatLinear
from .markers import ConvReLU2d, DeQuantStub, FloatFunctional, LinearReLU, QuantStub

#: What a module of exactly this type computes, and whether with a ReLU.
OP_OF_TYPE: dict[type[nn.Module], tuple[str, bool]] = {
    QuantStub: ("quantize", False),
    DeQuantStub: ("dequantize", False),
    FloatFunctional: ("functional", False),
    nn.Conv2d: ("conv2d", False),
    ConvReLU2d: ("conv2d", True),
    nn.Linear: ("linear", False),
    LinearReLU: ("linear", True),
    nn.Hardswish: ("hardswish", False),
    nn.Dropout: ("dropout", False),
    nn.Identity: ("identity", False),
    FloatConv2d: ("conv2d", False),  # whether with ReLU, the module says itself
    FloatLinear: ("linear", False),
}
# Parts without numbers of their own that an int8 model must not keep as they are.
_MARKER_TYPES = (QuantStub, DeQuantStub, FloatFunctional, nn.Hardswish)
# What fusion folds into a neighbour, leaving an identity behind.
_FOLDED_TYPES = (nn.BatchNorm2d, nn.ReLU, nn.Identity)
# Modules that compute on integers as they stand, whose type conversion leaves alone.
_PLAIN_TYPES = (nn.ReLU, nn.Hardsigmoid, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_FUSED_TYPES = (ConvReLU2d, LinearReLU)


def plan_layers(fused: nn.Module) -> dict[str, Layer]:
    """Lists the layers that a fused float model will have once converted, without ranges.

    Args:
        fused: A quantizable model after `fuse_model`; may live on the meta device.

    Returns:
        Module name to layer; scales are 1.0 and zero points 0 where ranges are still unknown.
    """
    layers = {}
    for name, module in quantizable_leaves(fused):
        op, relu = OP_OF_TYPE[type(module)]
        conv = module[0] if isinstance(module, _FUSED_TYPES) else module
        layers[name] = layer_of(op, relu, conv, 1.0, 0)
    return layers


def float_weights(fused: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias of the fused float layer `name`."""
    module: Any = fused.get_submodule(name)
    inner: Any = module[0] if isinstance(module, _FUSED_TYPES) else module
    return inner.weight, inner.bias


def set_float_bias(fused: nn.Module, name: str, bias: Tensor) -> Tensor:
    """Gives the fused float layer `name` a bias, and returns it as the layer holds it."""
    module: Any = fused.get_submodule(name)
    inner: Any = module[0] if isinstance(module, _FUSED_TYPES) else module
    inner.bias = nn.Parameter(bias, requires_grad=False)
    return inner.bias


def with_idle_layers(skeleton: nn.Module, layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Adds the layers that a graph does not have, since they do nothing or do not run.

    Args:
        skeleton: The quantizable float model, not fused.
        layers: What runs, as an artifact's graph gives it.

    Returns:
        Folded batch norm and fused ReLU, dropout, and functionals that lie idle, in the model's
        order.
    """
    everything = dict(layers)
    for name, module in skeleton.named_modules():
        if name in layers:
            continue
        if isinstance(module, _FOLDED_TYPES):
            everything[name] = Layer("identity")
        elif type(module) in (nn.Dropout, FloatFunctional):
            everything[name] = Layer(OP_OF_TYPE[type(module)][0])
    return everything


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
        if layer.op != ("identity" if folded else OP_OF_TYPE.get(type(current), ("", False))[0]):
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


def quantizable_leaves(
    model: nn.Module, kinds: Mapping[type[nn.Module], tuple[str, bool]] = OP_OF_TYPE
) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules that an artifact has a layer for, by name.

    Args:
        model: A fused float model, or a native int8 one.
        kinds: The types of such modules.

    Raises:
        ArtifactError: A module with parameters is of none of these types.
    """
    for name, module in model.named_modules():
        inner = name.endswith(("activation_post_process", "_packed_params"))
        if inner or _inside_fused(model, name):
            continue
        if type(module) in kinds:
            yield name, module
        elif not list(module.children()) and not isinstance(module, _PLAIN_TYPES):
            if "quantized" in type(module).__module__ or list(module.parameters()):
                raise ArtifactError(_unsupported(name, module))


def _inside_fused(model: nn.Module, name: str) -> bool:
    parent = model.get_submodule(name.rpartition(".")[0])
    return isinstance(parent, _FUSED_TYPES)


def _unsupported(name: str, module: nn.Module) -> str:
    kind = f"{type(module).__module__}.{type(module).__name__}"
    return (
        f"Layer {name!r} ({kind}) is neither a converted int8 layer nor one that runs on integers "
        "as it stands: fuse the model, prepare and convert it before saving."
    )


def layer_of(op: str, relu: bool, module: Any, scale: float, zero_point: int) -> Layer:
    """Returns the artifact's layer of a module, float or int8, with this output grid."""
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


def module_at(root: nn.Module, path: str) -> nn.Module:
    """Returns the module at a path below `root`, adding empty modules where it lacks."""
    for name in filter(None, path.split(".")):
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root._modules[name]  # type: ignore[assignment]
    return root
