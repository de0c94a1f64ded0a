"""Int8 against float, layer by layer, on the same images.

Each layer is compared twice. "Accumulated": both models run by themselves, so that the errors of
all layers before add up. "Alone": the int8 layer gets the float model's inputs, rounded to the grid
that they have in int8, so that only the layer's own error is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..artifact.given import Int8Model, as_artifact
from ..artifact.grid import Grid
from ..errors import ArgumentError
from ..native.model import to_native
from ..quantize.data import LabelledImages
from ..quantize.mixed.damage import Damage, DamageMeter
from ..quantize.mixed.replay import simulate
from ..quantize.observers import MSE, IntegerRange
from ..quantize.simulate import Simulation
from ..reference.compare import native_outputs
from ..reference.ops import QUANTIZE, arguments
from .measures import Error, ErrorMeter, Figures, Histogram, OutputRange, RangeMeter
from .options import AnalysisOptions
from .ranges import BestRange, best_ranges
from .weights import WeightError, compare_weights


@dataclass(frozen=True)
class LayerComparison(Figures):
    """One layer of the int8 model beside the same layer of the float model.

    Attributes:
        name: The layer, or the call that rounds to another layer's grid (a pool).
        layer: The layer that the grid belongs to.
        op: What it computes.
        kept_float: Whether its weights are float in the int8 model.
        outputs: Number of output values compared.
        accumulated: Error with all that came before it in int8.
        alone: Error with the float model's inputs, rounded.
        range: The grid beside the float values.
        weight: Error of the weights; None without int8 weights.
        channels: Number of output channels.
        dead_channels: Channels that had one and the same integer everywhere on all images, while
            the float values differed by more than a step.
        histogram: The float outputs.
    """

    name: str
    layer: str
    op: str
    kept_float: bool
    outputs: int
    accumulated: Error
    alone: Error
    range: OutputRange
    weight: WeightError | None
    channels: int
    dead_channels: int
    histogram: Histogram


@dataclass(frozen=True)
class Comparison(Figures):
    """A whole int8 model beside its float model.

    Attributes:
        images: Number of images.
        layers: One entry per rounding, in the order of the forward pass.
        native: What the int8 model, run by PyTorch's kernels, does to the logits.
        simulated: What exact arithmetic on the same integers does; where it differs much from
            `native`, the kernels compute something else (a CPU whose 16-bit sums saturate).
    """

    images: int
    layers: tuple[LayerComparison, ...]
    native: Damage
    simulated: Damage

    def layer(self, name: str) -> LayerComparison:
        """Returns the layer called so.

        Raises:
            ArgumentError: There is none.
        """
        for found in self.layers:
            if found.name == name:
                return found
        raise ArgumentError(f"The comparison has no layer {name!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Returns all figures as JSON values."""
        return {
            "images": self.images,
            "native": self.native.to_dict(),
            "simulated": self.simulated.to_dict(),
            "layers": [layer.to_dict() for layer in self.layers],
        }


def compare(
    model: nn.Module,
    int8: Int8Model,
    data: Any,
    *,
    images: int = 256,
    seed: int = 0,
    transform: Any = None,
    progress: bool = True,
) -> Comparison:
    """Compares an int8 model with its float model, layer by layer.

    Where the int8 model's recipe scaled channels (cross-layer equalization), the same is done to
    the float model first, which changes no answer of it.

    Args:
        model: The float model that was quantized; left as it was.
        int8: The int8 model, in any form that `qzoo.as_artifact` takes.
        data: Images, as `qzoo.quantize.data.open_labelled` takes them.
        images: How many of them to use at most.
        seed: Seed of their choice.
        transform: Makes tensors of pictures; None takes the model's own transforms.
        progress: Whether to show a progress bar on stderr.

    Raises:
        ArgumentError: The models do not belong together, or the images are not what they take.
    """
    options = AnalysisOptions(images=images, seed=seed, transforms=transform)
    found = options.open(data, model, images)
    return compare_layers(*open_pair(model, int8, found), found, progress)


def open_pair(
    model: nn.Module, int8: Int8Model, batches: LabelledImages
) -> tuple[Simulation, nn.Module]:
    """Returns the simulation of a float and an int8 model, and the native int8 model.

    Args:
        model: The float model.
        int8: The int8 model.
        batches: Images to check the float model on.

    Raises:
        ArgumentError: The models do not belong together.
    """
    artifact = as_artifact(int8)
    return simulate(model, artifact, next(iter(batches))[0]), to_native(artifact)


def compare_layers(
    simulation: Simulation, native: nn.Module, batches: Any, progress: bool = True
) -> Comparison:
    """Compares layer by layer; see `compare`.

    Args:
        simulation: The float model and the artifact.
        native: The artifact's native model.
        batches: Pairs of images and labels or None, all of one size.
        progress: Whether to show a progress bar on stderr.
    """
    meters = {step: _Meters(simulation.grids[step]) for step in simulation.steps}
    exact, real = DamageMeter(), DamageMeter()
    count = size = 0
    bar = tqdm(desc="compare", unit="image", leave=False, disable=not progress)
    with torch.inference_mode():
        for whole, labels in batches:
            # Beside the float values there are two sets of integers and their real values.
            size = size or max(1, simulation.batch_size(whole[:1]) // 2)
            for start in range(0, len(whole), size):
                x = whole[start : start + size]
                y = None if labels is None else labels[start : start + size]
                values = simulation.values(x)
                floats = simulation.float_outputs(values)
                rounded = {step: _integers(v, simulation.grids[step]) for step, v in floats.items()}
                own = native_outputs(native, simulation.reference, x)
                alone = native_outputs(native, simulation.reference, x, rounded)
                for step, meter in meters.items():
                    meter.update(floats[step], own[step], alone[step])
                truth = simulation.logits(values)
                real.update(truth, native(x), y)
                exact.update(truth, simulation.run(x, simulation.int8), y)
                count += len(x)
                bar.update(len(x))
    bar.close()
    adjustable = {s: m.observer for s, m in meters.items() if s in simulation.artifact.layers}
    best = best_ranges(simulation, adjustable)
    layers = tuple(_layer(simulation, step, meters[step], best.get(step)) for step in meters)
    return Comparison(count, layers, real.result(), exact.result())


class _Meters:
    """All that is gathered of one step."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.accumulated, self.alone = ErrorMeter(grid.scale), ErrorMeter(grid.scale)
        self.range = RangeMeter(grid)
        self.observer = MSE(IntegerRange())
        self.ends: list[Tensor] = []

    def update(self, expected: Tensor, own: Tensor, alone: Tensor) -> None:
        self.accumulated.update(expected, _real(own, self.grid))
        self.alone.update(expected, _real(alone, self.grid))
        self.range.update(expected, own)
        self.observer.update(expected)
        dims = [d for d in range(expected.dim()) if d != 1]
        ends = [own.amin(dims), own.amax(dims), expected.amin(dims), expected.amax(dims)]
        lows, highs = torch.stack([ends[0], ends[2]]), torch.stack([ends[1], ends[3]])
        if self.ends:
            lows, highs = torch.minimum(lows, self.ends[0]), torch.maximum(highs, self.ends[1])
        self.ends = [lows, highs]

    def dead(self) -> int:
        """Returns how many channels int8 flattened to one value."""
        spans = self.ends[1] - self.ends[0]
        return int(((spans[0] == 0) & (spans[1] > self.grid.scale)).sum())


def _layer(
    simulation: Simulation, step: str, meters: _Meters, best: BestRange | None
) -> LayerComparison:
    seen, grid = meters.range, meters.grid
    weighted = step in simulation.int8.weights
    layer = simulation.artifact.layers.get(step)
    return LayerComparison(
        name=step,
        layer=simulation.owners[step],
        op=simulation.op(step),
        kept_float=layer is not None and layer.float,
        outputs=seen.count,
        accumulated=meters.accumulated.result(),
        alone=meters.alone.result(),
        range=OutputRange(
            scale=grid.scale,
            zero_point=grid.zero_point,
            low=seen.low,
            high=seen.high,
            float_low=seen.minimum,
            float_high=seen.maximum,
            clipped_low=seen.clipped[0] / seen.count,
            clipped_high=seen.clipped[1] / seen.count,
            saturated_low=seen.saturated[0] / seen.count,
            saturated_high=seen.saturated[1] / seen.count,
            excess_db=None if best is None else best.excess_db,
            best_low=None if best is None else best.low,
            best_high=None if best is None else best.high,
            shared=best is not None and best.shared,
        ),
        weight=compare_weights(simulation, step) if weighted else None,
        channels=meters.ends[0].shape[1],
        dead_channels=meters.dead(),
        histogram=Histogram.of_observer(meters.observer),
    )


def _integers(values: Tensor, grid: Grid) -> Tensor:
    """Returns the integers that values are rounded to, uint8."""
    return QUANTIZE(values, *arguments(grid))


def _real(integers: Tensor, grid: Grid) -> Tensor:
    return (integers.float() - grid.zero_point) * grid.scale
