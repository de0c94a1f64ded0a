"""What is frozen in a float model stays frozen in quantization-aware training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qzoo.errors import QuantizationWarning
from qzoo.quantize import qat
from tests.helpers import zoo


def with_frozen_body(name: str) -> nn.Module:
    model = zoo.float_model(name, slim=True, num_classes=7)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    model.requires_grad_(False)
    head.requires_grad_(True)
    return model


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def take_steps(model: nn.Module, x: torch.Tensor) -> None:
    # Of learned ranges, which are one parameter, decay would move those between frozen layers too.
    groups = [
        {"params": [p], "weight_decay": 0.0 if name == "ranges.scale" else 0.1}
        for name, p in model.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


OPTIONS: tuple[dict[str, Any], ...] = (
    {"batch_norm": "fold"},
    {"batch_norm": "keep"},
    {"batch_norm": "keep", "backend": "qnnpack"},
    {"learn_ranges": True},
    {"learn_ranges": True, "batch_norm": "keep"},
)


@pytest.mark.parametrize(
    ("name", "options"),
    [*(("resnet18", options) for options in OPTIONS), ("mobilenet_v3_small", OPTIONS[-1])],
    ids=str,
)
def test_a_frozen_body_does_not_move(name: str, options: dict[str, Any]) -> None:
    x = zoo.small_images(name, 2)
    plain = with_frozen_body(name)
    model = qat.prepare(plain, data=x, progress=False, **options)
    own = trained(plain)
    (head,) = {n.rpartition(".")[0] for n in own}
    learned = {"ranges.scale", f"{head}.step"} if "learn_ranges" in options else set()
    assert trained(model) == own | learned
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    take_steps(model, x)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == own | learned
    if learned:
        # The steps of what the head reads and gives, and none between frozen layers.
        assert int((model.ranges.scale != before["ranges.scale"]).sum()) == 2
    qat.convert(model)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=str)
def test_the_first_layers_stay_frozen_and_all_others_train(options: dict[str, Any]) -> None:
    x = zoo.small_images("resnet18", 2)
    plain = zoo.float_model("resnet18", slim=True, num_classes=7)
    everything = trained(qat.prepare(plain, data=x, progress=False, **options))
    for part in (plain.conv1, plain.bn1, plain.layer1):
        part.requires_grad_(False)
    model = qat.prepare(plain, data=x, progress=False, **options)
    frozen = {n for n in everything if n.startswith(("conv1.", "bn1.", "layer1."))}
    assert frozen and trained(model) == everything - frozen
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    take_steps(model, x)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == everything - frozen


def test_parts_of_a_layer_are_frozen_one_by_one() -> None:
    plain = zoo.float_model("resnet18", slim=True, num_classes=7)
    plain.bn1.requires_grad_(False)
    plain.fc.bias.requires_grad_(False)
    kept = trained(qat.prepare(plain, batch_norm="keep"))
    assert kept == trained(plain)
    folded = trained(qat.prepare(plain))
    assert "conv1.weight" in folded and not {"conv1.bias", "fc.bias"} & folded
    assert {"layer1.0.conv1.weight", "layer1.0.conv1.bias", "fc.weight"} <= folded


def test_a_batch_norm_folded_into_a_frozen_layer_is_frozen_with_a_word() -> None:
    plain = zoo.float_model("resnet18", slim=True, num_classes=7)
    plain.conv1.requires_grad_(False)
    with pytest.warns(QuantizationWarning, match=r"bn1.*batch_norm=\"keep\"") as caught:
        model = qat.prepare(plain)
    assert caught[0].filename == __file__
    assert not {"conv1.weight", "conv1.bias"} & trained(model)


def test_what_is_unfrozen_later_trains() -> None:
    x = zoo.small_images("resnet18", 2)
    model = qat.prepare(with_frozen_body("resnet18"), data=x, learn_ranges=True, progress=False)
    model.requires_grad_(True)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    take_steps(model, x)
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert bool((model.ranges.scale != before["ranges.scale"]).all())


@pytest.mark.extended
def test_pt2e_keeps_a_body_frozen() -> None:
    x = zoo.small_images("resnet18", 2)
    plain = with_frozen_body("resnet18")
    model = qat.prepare(plain, data=x, flow="pt2e", progress=False)
    assert trained(model) == {f"prepared.{name}" for name in trained(plain)}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    take_steps(model, x)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trained(model)
