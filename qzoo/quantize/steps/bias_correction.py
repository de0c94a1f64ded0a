"""Bias correction: takes back the mean error that rounding adds to each channel.

Source: M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, section 4.2 and appendix D (with data), https://arxiv.org/abs/1906.04721.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...reference.run import compute_weighted
from ..state import Quantization
from .layerwise import Integers, Site, walk


def correct_biases(state: Quantization) -> None:
    """Makes the mean of every int8 layer's outputs, channel by channel, the float layer's.

    Layers are corrected in the order of the forward pass, each on what the corrected int8 layers
    before it give. Means are of the values before a ReLU. A convolution of the mean input is the
    mean of the convolution, so that one small convolution a layer suffices.

    Args:
        state: The model, calibrated and with weight scales; its `biases` are set.
    """

    def visit(site: Site) -> None:
        name = site.name
        own = state.bias(name)
        before = state.biases.get(name, own)
        wanted = _mean_output(state, name, mean(site.float_inputs), state.weight(name))
        given = _mean_output(state, name, mean(site.int8_inputs), state.dequantized(name))
        # The float layer's own bias: an earlier step may have changed the int8 one.
        wanted += own - before
        state.biases[name] = before + (wanted - given)

    state.notes["bias_correction_images"] = walk(state, visit, "correct biases")


def mean(batches: Sequence[Any]) -> Tensor:
    """Returns the mean over images, with a batch dimension of 1, float32."""
    total, count = torch.zeros((), dtype=torch.float32, device="cpu"), 0
    for batch in batches:
        x = batch.real() if isinstance(batch, Integers) else batch
        total = total + x.sum(dim=0, keepdim=True, dtype=torch.float64)
        count += len(x)
    return (total / count).float()


def _mean_output(state: Quantization, name: str, x: Tensor, weight: Tensor) -> Tensor:
    """Returns the mean output of each channel before a ReLU, with the int8 bias, float32 [C]."""
    y = compute_weighted(state.layers[name], x, weight, state.int8_bias(name), relu=False)
    return y.mean(dim=(0, 2, 3)) if y.dim() == 4 else y.mean(dim=0)
