"""Which layers the accuracy hangs on: each one alone in int8, and each one alone in float.

A layer alone in int8 (all others in float) shows what it costs by itself; a layer alone in float
(all others in int8) shows what keeping it in float would give back. Weights and outputs are tried
apart and together. All is measured on the logits, for which no labels are needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...errors import ArgumentError, listed
from ..simulate import FLOAT, Parts, Simulation
from .damage import Damage, DamageMeter

#: What is tried: a layer alone in int8, or alone in float.
MODES = ("int8", "float")
#: Which part of a layer is tried. Layers without weights have outputs only.
PARTS = ("weights", "outputs", "both")
#: Layer, mode and part of a trial.
Key = tuple[str, str, str]


@dataclass(frozen=True)
class LayerSensitivity:
    """What one layer does to the logits.

    Attributes:
        name: The layer.
        op: What it computes.
        int8: Damage where only this part of the layer is in int8, by part ("weights", "outputs",
            "both"); parts that were not tried, or that the layer has not, are missing.
        float: Damage where everything but this part of the layer is in int8, by part.
    """

    name: str
    op: str
    int8: dict[str, Damage]
    float: dict[str, Damage]

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON values."""
        return {
            "name": self.name,
            "op": self.op,
            "alone_in_int8": {part: d.to_dict() for part, d in self.int8.items()},
            "alone_in_float": {part: d.to_dict() for part, d in self.float.items()},
        }


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of all layers.

    Attributes:
        images: Number of images that it was measured on.
        int8: Damage of the whole int8 model.
        layers: One entry per layer, in the order of the forward pass.
    """

    images: int
    int8: Damage
    layers: tuple[LayerSensitivity, ...]

    def ranking(self, part: str = "both", mode: str = "int8") -> list[LayerSensitivity]:
        """Returns the layers that have this part, the most harmful first.

        Args:
            part: "weights", "outputs" or "both".
            mode: "int8" sorts by the damage of the part alone in int8; "float" by how little
                damage is left with it alone in float.

        Raises:
            ArgumentError: That was not measured.
        """
        found = [la for la in self.layers if part in getattr(la, mode, {})]
        if not found:
            raise ArgumentError(f"No layer was measured with {part!r} alone in {mode!r}.")
        sign = -1 if mode == "int8" else 1
        return sorted(found, key=lambda la: sign * getattr(la, mode)[part].noise)

    def to_dict(self) -> dict[str, Any]:
        """Returns all figures as JSON values."""
        return {
            "images": self.images,
            "int8": self.int8.to_dict(),
            "layers": [layer.to_dict() for layer in self.layers],
        }


def measure_sensitivity(
    simulation: Simulation,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    *,
    modes: Sequence[str] = MODES,
    parts: Sequence[str] = PARTS,
    layers: Sequence[str] | None = None,
    deadline: float | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Tries every layer alone.

    Batch by batch, all layers on each, so that an early end gives the same figures from fewer
    images. Only what follows a changed layer is computed again.

    Args:
        simulation: The float model and its int8 model.
        batches: Images, float32 [N, 3, H, W], and their labels, int64 [N] or None.
        modes: Some of `MODES`.
        parts: Some of `PARTS`.
        layers: Which layers to try; None tries all.
        deadline: Value of `time.monotonic()` after which no further batch is begun; the first one
            is measured in any case.
        progress: Whether to show a progress bar on stderr.

    Raises:
        ArgumentError: No images, an unknown mode, part or layer.
    """
    _check("mode", modes, MODES)
    _check("part", parts, PARTS)
    names = list(simulation.ranged if layers is None else layers)
    _check("layer", names, simulation.ranged)
    trials = {
        (name, mode, part): _trial(simulation, name, mode, part)
        for name in names
        for mode in modes
        for part in parts
        if _has(simulation, name, part)
    }
    meters = {key: DamageMeter() for key in trials}
    whole = DamageMeter()
    count = 0
    with torch.inference_mode():
        for images, labels in _within(batches, simulation):
            if count and deadline is not None and time.monotonic() > deadline:
                break
            truth = simulation.run(images)
            whole.update(truth, simulation.run(images, simulation.int8), labels)
            with tqdm(
                desc="sensitivity", total=len(trials), unit="try", leave=False, disable=not progress
            ) as bar:
                for key, logits in _tried(simulation, images, trials):
                    meters[key].update(truth, logits, labels)
                    bar.update()
            count += len(images)
    if not count:
        raise ArgumentError("There are no images to measure the sensitivity on.")
    found = {key: meter.result() for key, meter in meters.items()}
    return Sensitivity(count, whole.result(), tuple(_entry(simulation, n, found) for n in names))


def _tried(
    simulation: Simulation, images: Tensor, trials: Mapping[Key, Parts]
) -> Iterator[tuple[Key, Tensor]]:
    """Yields the logits of every trial, those of one mode after the other."""
    for mode, before in (("int8", FLOAT), ("float", simulation.int8)):
        own = {key: after for key, after in trials.items() if key[1] == mode}
        base = simulation.values(images, before) if own else {}
        for key, after in own.items():
            yield key, simulation.again(base, before, after)
        del base


def _entry(simulation: Simulation, name: str, found: Mapping[Key, Damage]) -> LayerSensitivity:
    by_mode = {
        mode: {part: found[name, mode, part] for part in PARTS if (name, mode, part) in found}
        for mode in MODES
    }
    return LayerSensitivity(name, simulation.op(name), by_mode["int8"], by_mode["float"])


def _has(simulation: Simulation, name: str, part: str) -> bool:
    return part != "weights" or name in simulation.int8.weights


def _trial(simulation: Simulation, name: str, mode: str, part: str) -> Parts:
    weights = [name] if part != "outputs" and name in simulation.int8.weights else []
    outputs = [name] if part != "weights" else []
    if mode == "int8":
        return FLOAT.with_(weights, outputs)
    return simulation.int8.without(weights, outputs)


def _within(
    batches: Iterable[tuple[Tensor, Tensor | None]], simulation: Simulation
) -> Iterable[tuple[Tensor, Tensor | None]]:
    """Splits batches so that what is kept of a forward pass fits into memory."""
    size = 0
    for images, labels in batches:
        size = size or simulation.batch_size(images[:1])
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            yield images[part], None if labels is None else labels[part]


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ArgumentError(
                f"Unknown {what} {name!r} of a sensitivity measurement: choose from "
                f"{listed(known)}."
            )
