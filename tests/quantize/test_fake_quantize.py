"""Rounding and its gradients against formulas written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qzoo.quantize import qat
from qzoo.quantize.qat.fake_quantize import (
    learned_round_output,
    learned_round_weight,
    round_average,
    round_output,
    round_weight,
)
from qzoo.reference.ops import fake_quantize
from tests.helpers import zoo


def values(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradient(function: Any, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    (y * weights).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("zero_point", [0, 90, 255])
def test_outputs_round_and_pass_gradients_straight_through(zero_point, relu):
    scale = 0.03125  # a power of two, so that no tie depends on how a quotient rounds
    x, weights = values(2, 3, 5, 7), values(2, 3, 5, 7, seed=1)
    low, high = float(-zero_point), float(255 - zero_point)
    y, grad = gradient(lambda x: round_output(x, scale, low, high, relu), x, weights)
    bottom = 0.0 if relu else low
    assert torch.equal(y, torch.round(x / scale).clamp(bottom, high) * scale)
    inside = (x / scale > low - 0.5) & (x / scale < high + 0.5)
    if relu:
        inside &= x > 0
    assert torch.equal(grad, weights * inside)
    with torch.no_grad():
        assert torch.equal(round_output(x.clone(), scale, low, high, relu), y)
    rounded = fake_quantize(x.relu() if relu else x, scale, zero_point, 0, 255, torch.uint8)
    assert torch.equal(rounded, y)


def test_nothing_is_written_where_gradients_are_asked_for():
    x = values(4, 4).requires_grad_()
    before = x.detach().clone()
    round_output(x, 0.1, -10.0, 10.0, False)
    round_average(x, 0.1)
    round_weight(x, torch.tensor(0.1), True)
    assert torch.equal(x.detach(), before)


def test_averages_pass_every_gradient():
    x, weights = values(3, 4), values(3, 4, seed=1)
    y, grad = gradient(lambda x: round_average(x, 0.25), x, weights)
    assert torch.equal(y, torch.round(x / 0.25) * 0.25)
    assert torch.equal(grad, weights)


@pytest.mark.parametrize("clip", [False, True])
def test_weights_round_in_steps_of_each_channel(clip):
    x, weights = values(3, 2, 2, 2), values(3, 2, 2, 2, seed=1)
    step = (2.0 ** -torch.arange(5, 8).double()).reshape(3, 1, 1, 1)
    y, grad = gradient(lambda x: round_weight(x, step, clip), x, weights)
    steps = torch.round(x / step)
    cut = steps.abs() > 127
    assert cut.any() and not cut.all()
    assert torch.equal(y, (steps.clamp(-127, 127) if clip else steps) * step)
    assert torch.equal(grad, weights * ~cut if clip else weights)


def test_learned_steps_follow_the_formula_of_lsq():
    x, weights = values(2, 3, 4), values(2, 3, 4, seed=1)
    low, high = -3.0, 6.0
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y, grad = gradient(lambda x: learned_round_output(x, scale, low, high, False), x, weights)
    steps = x / 0.5
    inside = (steps > low - 0.5) & (steps < high + 0.5)
    assert torch.equal(y, steps.round().clamp(low, high) * 0.5)
    assert torch.equal(grad, weights * inside)
    # Equation 3 of the paper, with the scale of its section 2.2.
    slope = torch.where(inside, steps.round() - steps, steps.round().clamp(low, high))
    wanted = (slope * weights).sum() / (12 * high) ** 0.5
    assert scale.grad is not None and torch.allclose(scale.grad, wanted)


def test_learned_weight_steps_have_a_gradient_per_channel():
    x, weights = values(3, 4), values(3, 4, seed=1)
    step = torch.full((3, 1), 0.01, dtype=torch.float64, requires_grad=True)
    learned = learned_round_weight(x, step)
    (learned * weights).sum().backward()
    steps = x / 0.01
    slope = torch.where(steps.abs() < 127.5, steps.round() - steps, steps.sign() * 127)
    wanted = (slope * weights).sum(1, keepdim=True) / (4 * 127) ** 0.5
    assert step.grad is not None and torch.allclose(step.grad, wanted)


@pytest.mark.parametrize("mode", ["fold", "keep"])
@pytest.mark.parametrize("backend", ["onednn", "qnnpack"])
def test_a_layer_of_a_model_follows_the_formula(backend, mode):
    """The first convolution of a ResNet, batch norm and ReLU included, beside float64."""
    model: Any = qat.prepare(zoo.float_model("resnet18"), backend, batch_norm=mode)
    images = zoo.small_images("resnet18", 4)
    model(images)
    model.freeze_observers()
    seen: dict[str, Tensor] = {}
    model.conv1.output.register_forward_hook(lambda m, args, y: seen.update(y=y.detach()))
    rounded: dict[str, Tensor] = {}
    model.quant.register_forward_hook(lambda m, args, y: rounded.update(x=y.detach().double()))
    norm = None if mode == "fold" else model.bn1
    variance = None if norm is None else norm.running_var.clone().double()
    model(images)
    weight = model.conv1.weight.detach().double()
    gain = torch.ones(64, dtype=torch.float64)
    if norm is not None and backend == "qnnpack":
        gain = norm.weight.detach().double() / (variance + norm.eps).sqrt()
    folded = weight * gain.reshape(-1, 1, 1, 1)
    dims = (1, 2, 3) if backend == "onednn" else (0, 1, 2, 3)
    step = folded.abs().amax(dims, keepdim=True) / 127
    used = torch.round(folded / step) * step / gain.reshape(-1, 1, 1, 1)
    bias = None if mode == "keep" else model.conv1.bias.detach().double()
    y = nn.functional.conv2d(rounded["x"], used, bias, 2, 3)
    if norm is not None:
        affine = norm.weight.detach().double(), norm.bias.detach().double()
        y = nn.functional.batch_norm(y, None, None, *affine, training=True, eps=norm.eps)
    index = model.conv1.output.index
    scale, zero = float(model.ranges.scale[index]), int(model.ranges.zero_point[index])
    wanted = (torch.round(y.relu() / scale) + zero).clamp(0, 255).sub(zero) * scale
    off = (wanted - seen["y"].double()).abs() / scale
    assert off.max() < 1.01  # a tie
    assert (off > 0.5).float().mean() < 1e-3
