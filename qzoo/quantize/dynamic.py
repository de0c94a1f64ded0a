"""Dynamic quantization: int8 weights, and activations whose range each call finds for itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..native.engines import available_engines, default_backend, quantized_engine, run_engine
from ..native.markers import require_torch_ao
from .layer_choice import LayerReport, choose_layers


@dataclass(frozen=True)
class DynamicLayer:
    """A layer that was quantized dynamically.

    Attributes:
        name: Its place in the model; "" is the model itself.
        kind: "Linear", "LSTM", "GRU", "LSTMCell", "GRUCell" or "RNNCell".
        bytes_before: Size of its weight matrices in float.
        bytes_after: The same as int8; scales are one per matrix.
    """

    name: str
    kind: str
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, kw_only=True)
class DynamicReport(LayerReport):
    """What `quantize_dynamic` did; sizes are those of weight matrices."""

    layers: tuple[DynamicLayer, ...]

    def __str__(self) -> str:
        """Lists the layers, one a line."""
        lines = [f"{layer.name or '(the model)'}: {layer.kind}" for layer in self.layers]
        lines += self.stays_float()
        sizes = f"{self.bytes_before / 2**20:.2f} to {self.bytes_after / 2**20:.2f} MiB"
        return "\n".join([*lines, f"{len(self.layers)} layers, weights from {sizes}"])


def quantize_dynamic(
    model: nn.Module, layers: str | Sequence[str] | None = None, *, backend: str | None = None
) -> tuple[nn.Module, DynamicReport]:
    """Quantizes the linear and recurrent layers of any model, without calibration.

    Weights become int8 with one scale per matrix; inputs are rounded to 7 bits on the fly, by the
    range that each call finds. Everything else stays as it is, so that this suits models whose time
    goes into large matrices: recurrent networks, transformers, heads. Convolutions are for `ptq`.

    Args:
        model: Any float32 model on the CPU; left as it was.
        layers: Names or shell patterns ("encoder.*") of the layers to quantize; None takes every
            `nn.Linear`, `LSTM`, `GRU`, `LSTMCell`, `GRUCell` and `RNNCell`.
        backend: Whose engine runs it; None takes x86's or, where this PyTorch has none, that of
            `qzoo.default_backend()`.

    Returns:
        A copy of the model in eval mode with int8 layers, and what became of which layer.

    Raises:
        ArgumentError: Nothing to quantize, a pattern that matches nothing, or a layer that was
            asked for and has no int8 form.
        UnknownNameError: An unknown backend.
    """
    require_torch_ao("Dynamic quantization")
    from ..native.dynamic import DYNAMIC_TYPES, make_dynamic

    # What rounds inputs to 7 bits is x86's, where there is such an engine.
    usual = "x86" if "x86" in available_engines() else default_backend()
    engine = run_engine(backend or usual)
    found = {name: m for name, m in model.named_modules() if type(m) in DYNAMIC_TYPES}
    names, skipped = choose_layers(
        model, found, layers, _obstacle, "linear, LSTM or GRU", " has no dynamic int8 form"
    )
    report = DynamicReport(
        layers=tuple(_describe(name, found[name]) for name in names), skipped=skipped
    )
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    # Recurrent int8 layers draw random weights before they get their own.
    with quantized_engine(engine), torch.random.fork_rng(devices=[]):
        swapped = make_dynamic(twin, names)
    _leave_fast_path(swapped)
    return swapped, report


def _leave_fast_path(model: nn.Module) -> None:
    """Keeps PyTorch's encoders from the fused kernel, which reads the float weights of layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _obstacle(layer: Any) -> str | None:
    """Returns why a layer has no int8 form, or None."""
    parameters = list(layer.parameters())
    if any(p.device.type != "cpu" for p in parameters):
        return f"it is on {parameters[0].device}, and PyTorch's int8 layers run on the CPU"
    if any(p.dtype != torch.float32 for p in parameters):
        return f"its weights are {parameters[0].dtype}, not float32"
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        return "its weights are not finite"
    if isinstance(layer, nn.RNNBase) and layer.proj_size:
        return "PyTorch has no int8 LSTM with projections"
    if not isinstance(layer, nn.Linear) and not layer.bias:
        return "PyTorch's int8 recurrent layers need biases"
    return None


def _describe(name: str, layer: nn.Module) -> DynamicLayer:
    matrices = [p for p in layer.parameters() if p.dim() == 2]
    elements = sum(p.numel() for p in matrices)
    return DynamicLayer(name, type(layer).__name__, 4 * elements, elements)
