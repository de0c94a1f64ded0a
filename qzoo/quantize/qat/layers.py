"""The layers of a model in quantization-aware training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...artifact.grid import HARDSIGMOID_GRID
from .fake_quantize import (
    WEIGHT_MAX,
    learned_round_output,
    learned_round_weight,
    round_average,
    round_output,
    round_weight,
)
from .ranges import Ranges


class Rounding(nn.Module):
    """What rounds activations; it has no state of its own.

    Attributes:
        ranges: All ranges of the model.
    """

    ranges: Ranges

    def __init__(self, ranges: Ranges) -> None:
        super().__init__()
        # Not as a submodule: state dicts should hold the ranges once.
        object.__setattr__(self, "ranges", ranges)


class Output(Rounding):
    """Rounds a layer's output to the layer's range, with ReLU if asked for.

    Attributes:
        index: Which of the ranges.
        relu: Whether negative values become 0.
    """

    def __init__(self, ranges: Ranges, index: int, relu: bool = False) -> None:
        super().__init__(ranges)
        self.index, self.relu = index, relu

    def forward(self, x: Tensor) -> Tensor:
        """Returns the rounded output; may overwrite `x` where no gradient is asked for."""
        ranges = self.ranges
        if self.training and ranges.moving:
            ranges.note(self.index, x, self.relu)
        if ranges.bypass:
            return F.relu(x) if self.relu else x
        steps = ranges.steps(self.index)
        if ranges.learns(self.index, x):
            scale = ranges.scale[self.index]
            return learned_round_output(x, scale, steps.low, steps.high, self.relu)
        return round_output(x, *steps, self.relu)

    def extra_repr(self) -> str:
        """Says what `print(model)` shows of it."""
        return f"range={self.index}, relu={self.relu}"


class Input(Output):
    """Rounds images, which are the caller's and must not be overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the rounded images."""
        return super().forward(x if torch.is_grad_enabled() and x.requires_grad else x.clone())


class Average(Rounding):
    """Rounds averages of rounded values to the grid that those lie on, as int8 kernels do."""

    def __init__(self, ranges: Ranges, index: int) -> None:
        super().__init__(ranges)
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """Returns the rounded averages; may overwrite `x` where no gradient is asked for."""
        if self.ranges.bypass:
            return x
        return round_average(x, self.ranges.steps(self.index).scale)


class Hardsigmoid(Rounding):
    """A hard sigmoid on the fixed grid of PyTorch's int8 kernel: 256 steps from 0 to 255/256."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the rounded gate."""
        y = F.hardsigmoid(x)
        if self.ranges.bypass:
            return y
        return round_output(y, HARDSIGMOID_GRID.scale, 0.0, 255.0, False)


class Weighted(nn.Module):
    """What convolutions and linear layers in training have in common: the rounding of weights.

    The steps follow the weights: 127 of them reach the largest weight, of a channel or of the
    tensor, in every forward pass. So weights are never cut off, and nothing has to be observed.

    Attributes:
        weight: Float32 parameter, output channels first.
        per_channel: Whether each output channel has a step of its own.
        rounded: Whether weights are rounded at all, or the layer is kept float.
        clip: Float32 buffer, [C] or 0-d: which share of the largest weight 127 steps reach, or None
            where that is all of it. PTQ recipes may cut outliers off.
        step: Float32 parameter, [C] or 0-d, where steps are learned, else None.
    """

    weight: Tensor
    clip: Tensor | None
    step: nn.Parameter | None
    per_channel: bool
    rounded: bool

    def set_up(self, per_channel: bool, rounded: bool) -> None:
        """Takes the place of the constructor's second half."""
        self.per_channel, self.rounded = per_channel, rounded
        self.register_buffer("clip", None)
        self.register_parameter("step", None)

    def learn_step(self) -> None:
        """Makes the steps that the weights have now parameters."""
        step = self.own_step(None)
        self.clip = None
        self.step = nn.Parameter(step)

    def own_step(self, gain: Tensor | None) -> Tensor:
        """Returns the step of the int8 weights: float32, [C] or 0-d.

        Args:
            gain: Float [C], what batch norm will multiply each channel's weights by, or None. It
                matters only where all channels share a step.
        """
        if self.step is not None:
            # A step that an optimizer took below 0 means the same as the one above.
            return self.step.abs().clamp(min=torch.finfo(torch.float32).tiny)
        with torch.no_grad():
            dims = tuple(range(1, self.weight.dim()))
            reach = torch.maximum(self.weight.amax(dims), -self.weight.amin(dims))
            if not self.per_channel:
                reach = (reach if gain is None else reach * gain.abs()).amax()
            step = torch.where(reach > 0, reach, 1.0) / WEIGHT_MAX
            return step if self.clip is None else step * self.clip

    def channel_step(self, gain: Tensor | None) -> Tensor:
        """Returns the steps of the weights before batch norm, in a shape that multiplies them."""
        step = self.own_step(gain)
        if gain is not None and not self.per_channel:
            # Rounding folded weights is rounding the weights as they are, in steps of their own.
            step = step / gain.abs().clamp(min=torch.finfo(torch.float32).tiny)
        return step.reshape(-1, *[1] * (self.weight.dim() - 1)) if step.dim() else step

    def effective_weight(self, gain: Tensor | None = None) -> Tensor:
        """Returns the weight to compute with, rounded unless the layer is kept float."""
        if not self.rounded:
            return self.weight
        step = self.channel_step(gain)
        if self.step is not None:
            return learned_round_weight(self.weight, step)
        return round_weight(self.weight, step, self.clip is not None)


class QatConv2d(Weighted, nn.Conv2d):
    """A convolution with rounded weights; `Output` rounds what it gives."""

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """Returns [N, C, H, W]; `gain` is what batch norm will multiply channels by, if it says."""
        return self._conv_forward(x, self.effective_weight(gain), self.bias)


class QatLinear(Weighted, nn.Linear):
    """A linear layer with rounded weights; `Output` rounds what it gives."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, C]."""
        return F.linear(x, self.effective_weight(), self.bias)


def gain_of(weight: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Returns what a batch norm with its running variance multiplies each channel by, float32 [C].

    Args:
        weight: The batch norm's weight, [C].
        variance: Its running variance, [C].
        eps: Added to the variance.
    """
    with torch.no_grad():
        return weight * torch.rsqrt(variance + eps)


def make_weighted(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """Makes the training layer of an artifact's `conv2d` or `linear`.

    Args:
        layer: What the artifact's plan says of it.
        weight: Float32 weight; copied, memory format and all.
        bias: Float32 [C], or None; copied.
    """
    module: Any
    with torch.device("meta"):  # neither allocates nor draws weights
        if layer.op == "linear":
            module = QatLinear(weight.shape[1], weight.shape[0], bias is not None)
        else:
            module = QatConv2d(
                weight.shape[1] * layer.groups,
                weight.shape[0],
                (weight.shape[2], weight.shape[3]),
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
                bias is not None,
            )
    module.weight = nn.Parameter(weight.detach().clone())
    module.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return module
