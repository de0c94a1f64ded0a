"""Cross-layer equalization: the same function, with ranges that are more alike."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from qzoo.backends import get_backend
from qzoo.quantize import RECIPES, ptq
from qzoo.quantize.data import open_calibration
from qzoo.quantize.state import Quantization
from qzoo.quantize.steps.calibrate import choose_weight_scales
from qzoo.quantize.steps.channels import FIXED, Channels
from qzoo.quantize.steps.equalize import equalize
from tests.helpers.zoo import SLIM, float_model, small_images


def prepared(name: str, backend: str) -> Quantization:
    images = small_images(name, 8)
    data = open_calibration(images, images=8, batch_size=4, seed=0, transform=None)
    narrow = {"width_per_group": 1} if name == "resnext50_32x4d" else {}
    model = float_model(name, slim=name in SLIM, **narrow)
    return Quantization(model, get_backend(backend), data, progress=False)


def weight_error(state: Quantization, name: str, axis: int) -> float:
    """Returns a weight's squared rounding error over its square, channel by channel, on average."""
    weight, rounded = state.weight(name).movedim(axis, 0), state.dequantized(name).movedim(axis, 0)
    errors = (rounded - weight).square().flatten(1).sum(dim=1)
    return float((errors / weight.square().flatten(1).sum(dim=1)).mean())


@pytest.mark.parametrize("backend", ["onednn", "qnnpack"])
@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet",
     "resnext50_32x4d", "inception_v3"],
)  # fmt: skip
def test_the_float_function_stays(name: str, backend: str) -> None:
    state = prepared(name, backend)
    images = small_images(name, 4)
    weights = {n: state.weight(n).clone() for n in state.weighted()}
    before = state.fused(images)
    equalize(state)
    after = state.fused(images)
    assert float((after - before).abs().max()) <= 1e-4 * float(before.abs().max())
    changed = [n for n, weight in weights.items() if not torch.equal(weight, state.weight(n))]
    assert len(changed) > len(weights) / 3


def test_a_planted_imbalance_goes_and_per_tensor_weights_gain() -> None:
    state = prepared("resnet18", "qnnpack")
    first, second = "layer1.0.conv1", "layer1.0.conv2"
    factors = torch.logspace(-1, 1, 64)
    state.weight(first).mul_(factors[:, None, None, None])
    state.bias(first).mul_(factors)
    state.weight(second).div_(factors[:, None, None])
    choose_weight_scales(state, "minmax")
    before = [weight_error(state, n, axis) for n, axis in ((first, 0), (second, 1))]
    equalize(state)
    choose_weight_scales(state, "minmax")
    after = [weight_error(state, n, axis) for n, axis in ((first, 0), (second, 1))]
    assert after[0] < before[0] / 10 and after[1] < before[1] / 10
    # What the paper wants: both sides of every channel reach equally far.
    made = state.weight(first).abs().flatten(1).amax(dim=1)
    read = state.weight(second).abs().transpose(0, 1).flatten(1).amax(dim=1)
    torch.testing.assert_close(made, read, rtol=0.02, atol=0)


def test_activations_of_unlike_range_become_more_alike() -> None:
    state = prepared("mobilenet_v2", "onednn")
    name = "features.2.conv.1.0"

    def spread() -> float:
        seen: dict[str, Tensor] = {}

        def watch(layer: str, output: Tensor) -> None:
            seen[layer] = output.abs().amax(dim=(0, 2, 3)) if output.dim() == 4 else output

        with state.watching(watch):
            state.fused(small_images("mobilenet_v2", 8))
        alive = seen[name][seen[name] > 0]
        return float(alive.log().std())

    before = spread()
    equalize(state)
    assert spread() < 0.6 * before


def test_channels_that_are_added_belong_together() -> None:
    groups = Channels(prepared("resnet18", "onednn"))
    assert torch.equal(groups.outputs["layer1.0.conv2"], groups.outputs["layer1.1.conv2"])
    assert torch.equal(groups.outputs["conv1"], groups.outputs["layer1.0.add_relu"])
    assert not set(groups.outputs["conv1"].tolist()) & set(
        groups.outputs["layer1.0.conv1"].tolist()
    )
    assert set(groups.outputs["fc"].tolist()) == {FIXED} == set(groups.outputs["quant"].tolist())


def test_shuffled_channels_are_followed() -> None:
    groups = Channels(prepared("shufflenet_v2_x0_5", "onednn"))
    shuffled = groups.outputs["stage2.0.cat"].reshape(2, -1).T.flatten()
    first, second = shuffled.chunk(2)
    assert torch.equal(groups.inputs["stage2.1.branch2.0"], second)
    assert torch.equal(groups.outputs["stage2.1.cat"][: len(first)], first)


def test_a_recipe_with_it_makes_an_int8_model_and_leaves_the_users_alone() -> None:
    model = float_model("shufflenet_v2_x0_5")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    steps = ("equalize", *RECIPES["fast"].steps)
    images = small_images("shufflenet_v2_x0_5", 8)
    recipe = dataclasses.replace(RECIPES["fast"], steps=steps)
    native = ptq(model, images, backend="onednn", recipe=recipe, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        gap = native(images) - model(images)
        assert float(gap.square().mean()) < 0.05 * float(model(images).var())
