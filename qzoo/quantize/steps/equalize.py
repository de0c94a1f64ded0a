"""Cross-layer equalization: channels of one tensor that need the same range.

A channel may be made larger where it is computed and smaller where it is read, which leaves the
model's outputs as they are, because ReLU, pools and additions let a factor above 0 pass. Then no
channel uses only a small part of a grid that a larger channel decides on.

Backends with one scale per weight tensor get the factors of the paper, which make the weights'
ranges equal on both sides of each channel. Backends with a scale per output channel hold their
weights well as they are; what the channels of one tensor still share is the grid of the
activations, so there the factors even out the activations' ranges instead, in part: whatever a
channel gains there, the weights that read it lose.

Source: M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, section 4.1, https://arxiv.org/abs/1906.04721. That activations should be evened out in
part only is SmoothQuant's, G. Xiao et al., 2022, https://arxiv.org/abs/2211.10438, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..state import Quantization
from .calibrate import forward
from .channels import FIXED, Channels

#: How far activations are evened out: 0 leaves them alone, 1 gives all channels the same range.
SHARE = 0.6
#: Rounds of evening out weights, each of which goes half of the way.
ROUNDS = 40
#: The largest factor, and one over the smallest: nearly dead channels need no more.
LIMIT = 32.0
#: Channels whose weights are this many times larger where they are read than where they are made,
#: or the other way round, are dead: scaled up, their biases would spoil the range of the others.
DEAD = 8192.0
#: Calibration images that the ranges of activations are taken from, at most.
IMAGES = 256


def equalize(state: Quantization) -> None:
    """Scales channels between layers; the float model's outputs stay the same but for rounding.

    Comes before all other steps. Channels that cannot be scaled, such as those of a hard swish, are
    left alone.

    Args:
        state: The model; the weights and biases of `state.fused` are changed.
    """
    groups = Channels(state)
    if groups.count == 1:
        state.notes["equalized_channels"] = 0
        return
    even_out = _by_activations if state.backend.per_channel else _by_weights
    factors = even_out(state, groups)
    factors[FIXED] = 1.0
    scale_channels(state, groups, factors)
    state.notes["equalized"] = "activations" if state.backend.per_channel else "weights"
    state.notes["equalized_channels"] = groups.count - 1


def _by_activations(state: Quantization, groups: Channels) -> Tensor:
    """Returns the factor of each group that evens out the activations' ranges in part."""
    ranges = torch.zeros(groups.count, dtype=torch.float32, device="cpu")

    def watch(name: str, output: Tensor) -> None:
        own = output.abs().transpose(0, 1).flatten(1).amax(dim=1)
        ranges.scatter_reduce_(0, groups.outputs[name], own, "amax")

    seen = 0
    with state.watching(watch), torch.no_grad():
        for batch in state.calibration:
            forward(state.fused, batch[: IMAGES - seen])
            seen += len(batch)
            if seen >= IMAGES:
                break
    # Only what a channel is beside the others matters, not the tensor's size.
    alive = ranges[1:][ranges[1:] > 0]
    usual = alive.median() if len(alive) else torch.ones((), dtype=torch.float32, device="cpu")
    return (ranges / usual).clamp(1 / LIMIT, LIMIT).pow(-SHARE)


def _by_weights(state: Quantization, groups: Channels) -> Tensor:
    """Returns the factor of each group that makes the weights' ranges equal on its two sides."""
    logs = torch.zeros(groups.count, dtype=torch.float32, device="cpu")
    magnitudes = {name: _magnitudes(state, name) for name in state.weighted()}
    for _ in range(ROUNDS):
        made, read = torch.zeros(2, groups.count, dtype=torch.float32, device="cpu")
        for name, weight in magnitudes.items():
            rows, columns = groups.outputs[name], columns_of(state, name, groups.inputs[name])
            now = weight * (logs[rows][:, None] - logs[columns]).exp()
            made.scatter_reduce_(0, rows, now.amax(dim=1), "amax")
            read.scatter_reduce_(0, columns.flatten(), now.flatten(), "amax")
        gaps = read / made
        alive = (made > 0) & (read > 0) & (gaps < DEAD) & (gaps > 1 / DEAD)
        logs += torch.where(alive, gaps.log() / 4, 0.0).nan_to_num(0.0)
        logs[FIXED] = 0.0
    limit = float(torch.tensor(LIMIT, dtype=torch.float32, device="cpu").log())
    return logs.clamp(-limit, limit).exp()


def _magnitudes(state: Quantization, name: str) -> Tensor:
    """Returns each kernel's largest magnitude, float32 [C out, C in of a group]."""
    weight = state.weight(name).abs()
    return weight.flatten(2).amax(dim=2) if weight.dim() > 2 else weight


def columns_of(state: Quantization, name: str, inputs: Tensor) -> Tensor:
    """Returns what belongs to each kernel of a weight, of one value per input channel."""
    count = state.layers[name].groups if state.layers[name].op == "conv2d" else 1
    own = inputs.reshape(count, -1)
    return own.repeat_interleave(len(state.weight(name)) // count, dim=0)


def scale_channels(state: Quantization, groups: Channels, factors: Tensor) -> None:
    """Divides every weight by its inputs' factors and multiplies it by its outputs'.

    Args:
        state: The model; the weights and biases of `state.fused` are changed.
        groups: Which channels belong together.
        factors: The factor of each group, above 0, float32 [groups].
    """
    for name in state.weighted():
        outputs = factors[groups.outputs[name]]
        weight, bias = state.weight(name), state.bias(name)
        ratio = outputs[:, None] / columns_of(state, name, factors[groups.inputs[name]])
        weight.mul_(ratio.reshape(*ratio.shape, *[1] * (weight.dim() - 2)))
        bias.mul_(outputs)
