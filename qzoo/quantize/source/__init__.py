"""A float model that is to be quantized: what it is, its layers, and that it is what it claims."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...artifact.format import ModelInfo
from ...artifact.picture_size import usual_size
from ...backends import Backend
from ..data import Calibration
from .faithful import check_same_answers, noise
from .float_model import float_copy, fuse
from .layers import (
    Source,
    check_layers,
    fused_layers,
    int8_info,
    ranged_layers,
    record_forward,
)

__all__ = ["Source", "open_source", "ranged_layers", "record_forward"]

#: How many calibration images a model is checked on.
_IMAGES = 2


def open_source(model: nn.Module, backend: Backend, calibration: Calibration) -> Source:
    """Copies a float model that is to be quantized and checks that it can be.

    Args:
        model: A float model of the zoo; left as it was.
        backend: The numeric configuration.
        calibration: Images to compare the model with its architecture on; where there are none,
            noise is taken.

    Raises:
        ArgumentError: The model is already int8, cannot be fused, is not what its builder makes,
            or computes something else than its architecture.
        ArtifactError: The model does not come from one of qzoo's builders.
    """
    plain = float_copy(model)
    fused = fuse(plain)
    layers = fused_layers(fused)
    info = int8_info(model, layers, fused, backend)
    check_layers(plain, fused, info, layers)
    recording = record_forward(info, layers)
    images = _some_images(calibration, info)
    source = Source(plain, fused, layers, info, recording)
    check_same_answers(model, source, images)
    return source


def _some_images(calibration: Calibration, info: ModelInfo) -> Tensor:
    if calibration.count:
        # Reading images may draw random numbers; calibration is to draw the same ones again.
        with torch.random.fork_rng(devices=[]):
            return next(iter(calibration))[:_IMAGES]
    return noise(usual_size(info))
