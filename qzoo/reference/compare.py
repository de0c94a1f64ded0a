"""Compares realisations of one int8 model layer by layer, on integers.

Each layer of the reference model gets the integers that the native model's layer got, so that a
difference says something about that layer alone: carried from layer to layer, single steps would
grow and mix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..artifact import compare
from ..artifact.compare import LayerDifference
from ..errors import ArgumentError
from ..native.engines import native_call
from ..native.substitute import SubstituteModel
from ..native.values import integers, with_integers
from .build import ReferenceModel
from .ops import QUANTIZE
from .run import Watched


def native_outputs(
    native: nn.Module,
    reference: ReferenceModel,
    x: Tensor,
    inputs: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Runs a native model and returns the integers after every recorded call.

    Args:
        native: The native int8 model that `reference` stands for. Where PyTorch has none any more
            (`SubstituteModel`), the reference model itself is run.
        reference: A reference model of the same architecture.
        x: Images, float32 [N, 3, H, W] on the CPU.
        inputs: Step name to the integers, uint8, to continue with after it instead of its own;
            None lets every layer see what the ones before it gave.

    Returns:
        The step's name to its output's integers, uint8; calls that give no quantized tensor are
        left out.
    """
    if isinstance(native, SubstituteModel):
        return reference_outputs(reference, x, None if inputs is None else dict(inputs))
    steps: dict[str, Tensor] = {}

    def watch(node: fx.Node, value: Any) -> Any:
        found = integers(value)
        if found is None:
            return None
        step = node.meta["step"]
        steps[step] = found
        return with_integers(value, inputs[step]) if inputs and step in inputs else None

    with torch.no_grad(), native_call():
        Watched(native, watch, reference.recording.graph).run(x)
    return steps


def reference_outputs(
    reference: ReferenceModel, x: Tensor, inputs: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Runs a reference model and returns the integers that each of its layers gives.

    Args:
        reference: The model, on any device, built without `ste`.
        x: Images, float32 [N, 3, H, W].
        inputs: The integers to continue with after each layer instead of its own, as
            `native_outputs` gives them; None lets every layer see what the ones before it gave.

    Returns:
        The step's name to its output's integers.

    Raises:
        ArgumentError: The model was built with `ste=True`, so that it holds no integers.
    """
    if not any(node.target is QUANTIZE for node in reference.graph.nodes):
        raise ArgumentError("A reference model built with ste=True has no integer outputs.")
    steps: dict[str, Tensor] = {}

    def watch(node: fx.Node, value: Any) -> Any:
        if node.target is not QUANTIZE:
            return None
        step = node.meta["step"]
        offset = 128 if value.dtype == torch.int8 else 0
        steps[step] = (value.int() + offset).to(torch.uint8)
        if inputs is None:
            return None
        return (inputs[step].int() - offset).to(value.dtype).to(value.device)

    with torch.no_grad():
        Watched(reference, watch).run(x)
    return steps


def compare_layers(
    native: nn.Module, reference: ReferenceModel, x: Tensor
) -> list[LayerDifference]:
    """Compares the layers of a native and a reference model on the same input integers.

    Args:
        native: The native int8 model.
        reference: The reference model of the same artifact, on any device.
        x: Images, float32 [N, 3, H, W], on the CPU.

    Returns:
        One entry for each operation that rounds, in the order of the forward pass.

    Raises:
        ArgumentError: The reference model was built with `ste=True`.
    """
    expected = native_outputs(native, reference, x)
    device = next(iter(reference.buffers())).device
    return differences(reference, expected, reference_outputs(reference, x.to(device), expected))


def differences(
    reference: ReferenceModel, expected: dict[str, Tensor], given: dict[str, Tensor]
) -> list[LayerDifference]:
    """Compares the integers that two realisations gave.

    Args:
        reference: A reference model of the architecture.
        expected: The step's name to its integers, uint8.
        given: The same of the other realisation, which may hold fewer steps.

    Returns:
        One entry for each step in `given`, in its order.
    """
    return compare.differences(reference.artifact.graph, expected, given)
