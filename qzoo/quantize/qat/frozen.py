"""Keeps frozen in quantization-aware training what is frozen in the float model."""

from __future__ import annotations

from torch import nn

from ...errors import QuantizationWarning, warn
from ...reference.trace import Recording


def keep_frozen(prepared: nn.Module, recording: Recording, model: nn.Module) -> None:
    """Freezes the parameters of a model in training that are frozen in its float model.

    Args:
        prepared: The model in training; its parameters have the float model's names, perhaps after
            "prepared.".
        recording: The architecture's forward pass.
        model: The float model.
    """
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    own = {name.removeprefix("prepared."): p for name, p in prepared.named_parameters()}
    folded = {
        layer: norm
        for layer, norm in _norms_behind(recording, model).items()
        if f"{norm}.weight" not in own
    }
    for name, parameter in own.items():
        layer, _, kind = name.rpartition(".")
        if layer == "ranges":
            wanted = any(trains.values())  # `Ranges.learns` says which of them
        elif kind == "step":
            wanted = trains[f"{layer}.weight"]
        elif kind == "bias" and layer in folded:
            offset = trains[f"{layer}.weight"] and trains.get(f"{folded[layer]}.bias", False)
            wanted = offset or trains.get(name, False)
        else:
            wanted = trains.get(name, trains.get(f"{layer}.weight", True))
        parameter.requires_grad_(wanted)
    lost = []
    for layer, norm in folded.items():
        kept = trains.get(f"{norm}.weight"), trains.get(f"{norm}.bias")
        if any(kept) and not trains[f"{layer}.weight"]:
            lost.append(norm)
    if lost:
        warn(
            f"{len(lost)} batch norms that are to train stand behind frozen convolutions: "
            f"{lost[0]}{', ...' * (len(lost) > 1)}. They are folded into those and frozen with "
            'them; batch_norm="keep" trains them.',
            QuantizationWarning,
        )


def _norms_behind(recording: Recording, model: nn.Module) -> dict[str, str]:
    """Returns the batch norm that alone reads what a layer gives, by the layer's name."""
    found = {}
    for node in recording.graph.nodes:
        readers = list(node.users)
        if node.op != "call_module" or len(readers) != 1 or readers[0].op != "call_module":
            continue
        reader = str(readers[0].target)
        if isinstance(model.get_submodule(reader), nn.BatchNorm2d):
            found[str(node.target)] = reader
    return found
