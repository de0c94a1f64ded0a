"""Calibration: one forward pass over the images, watched by an observer per layer.

Inside `spread_calibration`, every process of a process group takes its share of the batches, and
all get the ranges that a single process would have chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..._torch.defaults import plain_defaults
from ...errors import ArgumentError
from ..observers import Observer, make_observer
from ..source.faithful import cannot_process, check_all_ran
from ..state import WEIGHT_GRID, Quantization
from .ranks import all_reduce_ranges, turns


def calibrate(state: Quantization, observer: str) -> dict[str, Observer]:
    """Chooses every layer's output range.

    Args:
        state: The model; its `ranges` are set.
        observer: Name of the observer of activations.

    Returns:
        Each layer's observer with all it has seen.

    Raises:
        ArgumentError: Images or activations that are not finite, images that the model cannot take,
            or a layer that never ran.
    """
    observers = {name: make_observer(observer, state.grid) for name in state.ranged()}

    def watch(name: str, output: Tensor) -> None:
        try:
            observers[name].update(output)
        except ArgumentError as error:
            raise ArgumentError(f"Layer {name!r} cannot be calibrated: {error}") from None

    rank, world = turns()
    batches = state.calibration.share(rank, world)
    total = len(range(rank, len(state.calibration), world))
    hidden = not state.progress or rank > 0
    with state.watching(watch), torch.inference_mode():
        for images in tqdm(batches, "calibrate", total, unit="batch", leave=False, disable=hidden):
            forward(state.fused, images)
    if world > 1:
        observers = all_reduce_ranges(observers)
    check_all_ran(state.ranged(), [name for name, seen in observers.items() if seen.batches])
    for name, seen in observers.items():
        scale, zero_point = seen.qparams()
        state.ranges[name] = (float(scale[0]), int(zero_point[0]))
    state.notes["observer"] = observer
    return observers


def forward(model: nn.Module, images: Tensor) -> None:
    """Runs a model for what watches it.

    Args:
        model: A float model, perhaps with observers.
        images: Float32 [N, 3, H, W].

    Raises:
        ArgumentError: The model cannot process images of this size.
    """
    try:
        with plain_defaults():
            model(images)
    except RuntimeError as error:
        raise cannot_process(images, error) from error


def choose_weight_scales(state: Quantization, observer: str) -> None:
    """Chooses the scale of every weight: per output channel, or per tensor, as the backend has it.

    Args:
        state: The model; its `weight_scales` are set.
        observer: Name of the observer of weights.

    Raises:
        ArgumentError: Weights that are not finite.
    """
    for name in state.weighted():
        seen = make_observer(observer, WEIGHT_GRID, axis=0 if state.backend.per_channel else None)
        try:
            seen.update(state.weight(name))
        except ArgumentError as error:
            raise ArgumentError(f"The weight of {name!r} cannot be quantized: {error}") from None
        scale = seen.qparams()[0].float()
        state.weight_scales[name] = scale if state.backend.per_channel else scale[0]
