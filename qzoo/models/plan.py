"""What a converted architecture consists of, known before any number is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..artifact.layers import Layer
from ..native.layers import plan_layers
from ..registry import ModelEntry


def plan(entry: ModelEntry, kwargs: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Layer]]:
    """Returns the fused model on the meta device and the layers it will have once converted.

    Args:
        entry: The architecture.
        kwargs: The model's own keywords.

    Returns:
        The fused skeleton, for shapes and batch-norm settings, and module name to layer with
        scale 1.0 and zero point 0 throughout.

    Raises:
        ArgumentError: The keywords do not build such a model.
    """
    fused: Any = entry.skeleton(kwargs)
    with torch.device("meta"):
        fused.fuse_model(is_qat=False)
    return fused, plan_layers(fused)
