"""PyTorch's own ways to int8, whose observers choose the ranges."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from .. import _torch_ao
from ..artifact.format import Artifact
from ..artifact.native import attach_info, from_native, model_info
from ..backends import Backend, quantized_engine, run_engine
from .data import Calibration
from .state import fused_copy


def torch_artifact(
    model: nn.Module, calibration: Calibration, backend: Backend, flow: str, progress: bool
) -> Artifact:
    """Quantizes with PyTorch's default observers of a backend.

    Args:
        model: A float model of the zoo; left as it was.
        calibration: The images.
        backend: The numeric configuration.
        flow: "eager".
        progress: Whether to show a progress bar.
    """
    observed: Any = fused_copy(model)
    _torch_ao.insert_observers(observed, backend.qconfig())
    bar = tqdm(calibration, desc="calibrate", unit="batch", leave=False, disable=not progress)
    with torch.inference_mode():
        for images in bar:
            observed(images)
    with quantized_engine(run_engine(backend.name)):
        _torch_ao.convert_observed(observed)
        return from_native(attach_info(observed, model_info(model)), backend=backend.name)
