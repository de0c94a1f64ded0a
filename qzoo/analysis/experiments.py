"""What would help: changes to an int8 model, tried out on its simulation instead of guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..artifact.format import Artifact
from ..artifact.layers import RANGED_OPS, weight_tensors
from ..backends import get_backend
from ..quantize.mixed.damage import Damage, DamageMeter
from ..quantize.observers import IntegerRange, make_observer
from ..quantize.simulate import Parts, Simulation
from ..quantize.state import WEIGHT_GRID, spread
from .compare import Comparison
from .measures import Figures

#: How many of the most harmful layers are tried in float.
COUNTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Experiment(Figures):
    """One change and what is left of the damage with it.

    Attributes:
        kind: "as it is", "weights in float", "outputs in float" (both as bounds of what can be
            won), "keep_float", "per-channel weights", "8-bit activations" or "other ranges".
        layers: The layers that it changes, where not all.
        damage: What the int8 model then does to the logits.
    """

    kind: str
    layers: tuple[str, ...]
    damage: Damage


def run_experiments(
    simulation: Simulation,
    comparison: Comparison,
    ranking: list[str],
    batches: Iterable[tuple[Tensor, Tensor | None]],
    progress: bool = True,
) -> tuple[Experiment, ...]:
    """Tries changes that `ptq` offers.

    Args:
        simulation: The models.
        comparison: Where the values lie in their ranges.
        ranking: Layers with int8 weights, the most harmful first.
        batches: Images and labels or None.
        progress: Whether to show a progress bar on stderr.
    """
    whole, artifact = simulation.int8, simulation.artifact
    trials: list[tuple[str, tuple[str, ...], Simulation, Parts]] = [
        ("as it is", (), simulation, whole),
        ("weights in float", (), simulation, Parts(frozenset(), whole.outputs)),
        ("outputs in float", (), simulation, Parts(whole.weights, frozenset())),
    ]
    for count in COUNTS:
        if count < len(ranking):
            kept = tuple(ranking[:count])
            trials.append(("keep_float", kept, simulation, whole.without(kept)))
    backend = get_backend(str(artifact.info.backend))
    variants: list[tuple[str, tuple[str, ...], Artifact]] = []
    if not backend.per_channel:
        variants.append(("per-channel weights", (), per_channel(simulation)))
    if backend.reduce_range:
        variants.append(("8-bit activations", (), full_range(artifact)))
    wrong = {la.name: la.range for la in comparison.layers if (la.range.excess_db or 0) > 1}
    if wrong:
        ends = {n: (r.best_low or 0.0, r.best_high or 0.0) for n, r in wrong.items()}
        changed = other_ranges(artifact, ends, backend.activation_max)
        variants.append(("other ranges", tuple(wrong), changed))
    for kind, layers, variant in variants:
        other = simulation.with_artifact(variant)
        trials.append((kind, layers, other, other.int8))
    meters = [DamageMeter() for _ in trials]
    bar = tqdm(desc="what would help", unit="try", leave=False, disable=not progress)
    with torch.inference_mode():
        for x, y in batches:
            truth = simulation.run(x)
            for meter, (_, _, model, parts) in zip(meters, trials, strict=True):
                meter.update(truth, model.run(x, parts), y)
                bar.update()
    bar.close()
    return tuple(
        Experiment(kind, layers, meter.result())
        for meter, (kind, layers, _, _) in zip(meters, trials, strict=True)
    )


def per_channel(simulation: Simulation) -> Artifact:
    """Returns the int8 model with weights rounded anew, to a scale per output channel."""
    artifact = simulation.artifact
    tensors = dict(artifact.tensors)
    for name in simulation.int8.weights:
        exact, bias = simulation.float_weight(name), tensors.get(f"{name}.bias")
        observer = make_observer("minmax", WEIGHT_GRID, axis=0)
        observer.update(exact)
        scale = observer.qparams()[0].float()
        values = (exact / spread(scale, exact)).round().clamp(WEIGHT_GRID.low, WEIGHT_GRID.high)
        tensors.pop(f"{name}.weight_zero_point", None)
        zeros = torch.zeros_like(scale, dtype=torch.int64)
        tensors |= weight_tensors(name, values.to(torch.int8), scale, zeros, bias)
    return dataclasses.replace(artifact, tensors=tensors)


def full_range(artifact: Artifact) -> Artifact:
    """Returns the int8 model with 8 bits for the ranges that used 7."""
    ends = {
        name: (-layer.zero_point * layer.scale, (127 - layer.zero_point) * layer.scale)
        for name, layer in artifact.layers.items()
        if layer.op in RANGED_OPS
    }
    return other_ranges(artifact, ends, 255)


def other_ranges(
    artifact: Artifact, ends: Mapping[str, tuple[float, float]], highest: int
) -> Artifact:
    """Returns the int8 model with other ranges of some layers' outputs.

    Args:
        artifact: The int8 model.
        ends: Layer name to lower and upper end.
        highest: The integer for the upper end.
    """
    integers = IntegerRange(0, highest)
    layers = dict(artifact.layers)
    for name, (low, high) in ends.items():
        layers[name] = layers[name].on(integers.grid(low, high))
    return dataclasses.replace(artifact, layers=layers)
