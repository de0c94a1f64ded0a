"""The steps of PTQ recipes that repair layer after layer, against formulas and brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import qzoo
import qzoo.quantize.steps.adaround as adaround
from qzoo.backends import get_backend
from qzoo.quantize.data import open_calibration
from qzoo.quantize.state import Quantization
from qzoo.quantize.steps.adaround import _moments, descend, round_adaptively
from qzoo.quantize.steps.bias_correction import correct_biases
from qzoo.quantize.steps.calibrate import calibrate, choose_weight_scales
from qzoo.quantize.steps.layerwise import Site, walk
from qzoo.quantize.steps.shared_ranges import share_ranges
from qzoo.reference import build_reference, reference_outputs

MODELS = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"]


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def calibrated(name: str) -> Quantization:
    """Returns a model with batch norms that have seen images, ready for the later steps."""
    model = qzoo.get_model(name, num_classes=5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
                nn.init.uniform_(module.bias, -0.5, 0.5)
        model.train()(images(32))
    data = open_calibration(images(), images=8, batch_size=4, seed=0, transform=None)
    state = Quantization(model.eval(), get_backend("onednn"), data, progress=False)
    choose_weight_scales(state, "minmax")
    calibrate(state, "minmax")
    share_ranges(state)
    return state


@pytest.mark.parametrize("name", MODELS)
def test_the_walk_gives_what_the_reference_model_gives(name: str) -> None:
    state = calibrated(name)
    seen: dict[str, Tensor] = {}

    def visit(site: Site) -> None:
        seen[site.name] = torch.cat([b.real() for b in site.int8_inputs])

    assert walk(state, visit, "walk") == 8
    assert list(seen) == [n for n in state.weighted() if n in seen] and len(seen) > 15
    reference = build_reference(state.artifact())
    wanted = reference_outputs(reference, images())
    first, second = state.weighted()[:2]
    scale, zero_point = state.ranges["quant"]
    given = (seen[first] / scale + zero_point).round()
    assert (given - wanted["quant"].float()).abs().max() <= 1
    if name == "resnet18":  # there a plain max pool lies between the first two convolutions
        scale, zero_point = state.ranges[first]
        pooled = nn.functional.max_pool2d(wanted[first].float(), 3, 2, 1)
        assert ((seen[second] / scale + zero_point).round() - pooled).abs().max() <= 1


@pytest.mark.parametrize("name", MODELS)
def test_bias_correction_makes_the_means_agree(name: str) -> None:
    state = calibrated(name)
    layer = state.weighted()[-1]

    def gap() -> float:
        logits = build_reference(state.artifact())(images()).mean(0)
        with torch.no_grad():
            return float((logits - state.fused(images()).mean(0)).abs().max())

    before = gap()
    correct_biases(state)
    # What is left is the rounding of the logits themselves.
    assert gap() <= max(0.6 * state.ranges[layer][0], 0.5 * before)
    assert set(state.biases) == set(state.weighted())


def test_descent_finds_what_trying_all_finds_or_nearly() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        x = torch.randn(20, 8, generator=generator, dtype=torch.float64)
        own = x.T @ x + 0.01 * torch.eye(8)
        wanted = torch.randn(1, 1, 8, generator=generator, dtype=torch.float64) * 3
        target = wanted @ own

        def cost(q: Tensor, own: Tensor = own, target: Tensor = target) -> float:
            return float(q @ own @ q.mT - 2 * target @ q.mT)

        low, high = wanted.floor(), wanted.ceil()
        start = wanted.round()
        found = descend(own[None], target, low, high, start)
        assert bool(((found == low) | (found == high)).all())
        choices = itertools.product(*zip(low.flatten().tolist(), high.flatten().tolist()))  # noqa: B905
        every = [cost(torch.tensor(c, dtype=torch.float64).reshape(1, 1, 8)) for c in choices]
        assert cost(found) <= cost(start) + 1e-9
        better = sum(c < cost(found) - 1e-9 for c in every)
        assert better <= 12, "far from the best of 256 roundings"


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_moments_tell_the_error_of_outputs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few layers, in chunks and stripes much smaller than usual, so that there are several."""
    state = calibrated(name)
    monkeypatch.setattr(adaround, "CHUNK", 1)
    monkeypatch.setattr(adaround, "STRIPE", 7)
    seen = []

    def visit(site: Site) -> None:
        weight, layer = state.weight(site.name), state.layers[site.name]
        if weight[0].numel() > 200:
            return
        x = torch.cat(site.float_inputs).double()
        y = torch.cat([part.real() for part in site.int8_inputs]).double()

        def outputs(inputs: Tensor, w: Tensor) -> Tensor:
            if layer.op == "linear":
                return nn.functional.linear(inputs, w)
            geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return nn.functional.conv2d(inputs, w, None, *geometry)

        def directly(q: Tensor) -> float:
            error = outputs(x, weight.double()) - outputs(y, q)
            return float(error.transpose(0, 1).flatten(1).var(dim=1, correction=0).sum())

        groups = layer.groups if layer.op == "conv2d" else 1
        wanted = weight.reshape(groups, -1, weight[0].numel())
        own, target = (m.double() for m in _moments(state, site, wanted))

        def formula(q: Tensor) -> float:
            q = q.reshape(wanted.shape)
            return float(((q @ own) * q).sum() - 2 * (target * q).sum())

        a, b = state.dequantized(site.name).double(), 0.9 * weight.double()
        difference = directly(a) - directly(b)
        assert formula(a) - formula(b) == pytest.approx(difference, rel=1e-3), site.name
        seen.append(2 * wanted.shape[1] < wanted.shape[2])

    walk(state, visit, "measure")
    assert len(seen) >= 3 and len(set(seen)) == 2  # by outputs, and not


@pytest.mark.parametrize(
    "name", [pytest.param("resnet18", marks=pytest.mark.extended), *MODELS[1:]]
)
def test_adaptive_rounding_lowers_the_error_of_layers(name: str) -> None:
    state = calibrated(name)
    errors: list[tuple[float, float]] = []
    nearest = {n: state.integers(n).clone() for n in state.weighted()}
    round_adaptively(state)

    def visit(site: Site) -> None:
        weight = state.weight(site.name)
        layer = state.layers[site.name]
        groups = layer.groups if layer.op == "conv2d" else 1
        wanted = weight.reshape(groups, -1, weight[0].numel())
        own, target = (x.double() for x in _moments(state, site, wanted))

        def error(integers: Tensor) -> float:
            scale = state.weight_scales[site.name].reshape(-1, *[1] * (weight.dim() - 1))
            q = (integers * scale).double().reshape(wanted.shape)
            # E|w x - q y|^2 up to a term without q.
            return float(((q @ own) * q).sum() - 2 * (target * q).sum())

        errors.append((error(state.integers(site.name)), error(nearest[site.name])))

    walk(state, visit, "measure")
    worse = [i for i, (after, before) in enumerate(errors) if after > before + abs(before) * 1e-3]
    assert len(worse) <= len(errors) // 10
    assert 0 < state.notes["adaround_changed"] < 0.6
    for layer, integers in nearest.items():
        assert (state.rounded[layer].int() - integers.int()).abs().max() <= 1


def test_concatenations_and_their_branches_share_a_range() -> None:
    state = calibrated("shufflenet_v2_x0_5")
    stages = {n.split(".")[0] for n in state.ranges if n.startswith("stage")}
    assert stages == {"stage2", "stage3", "stage4"}
    for stage in stages:
        cats = {state.ranges[n] for n in state.ranges if n.startswith(stage) and "branch" not in n}
        assert len(cats) == 1
        last = [n for n in state.weighted() if n.startswith(f"{stage}.1.branch2")][-1]
        assert state.ranges[last] in cats
