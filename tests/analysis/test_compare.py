"""Layer by layer: the figures are those that independent code finds."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from qzoo.analysis import compare
from qzoo.analysis.accuracy import paired_interval
from qzoo.analysis.measures import ErrorMeter, RangeMeter
from qzoo.errors import ArgumentError
from qzoo.native.model import from_native
from qzoo.quantize import Recipe, ptq
from qzoo.quantize.mixed.replay import simulate
from qzoo.quantize.state import fused_copy
from qzoo.reference.ops import Grid
from tests.helpers.zoo import float_model, small_images


@pytest.fixture(scope="module")
def resnet():
    model = float_model("resnet18", num_classes=10)
    images = small_images("resnet18", 8)
    artifact = from_native(ptq(model, images, backend="qnnpack", recipe="fast", progress=False))
    return model, artifact, images, compare(model, artifact, images, progress=False)


def test_errors_by_hand():
    meter = ErrorMeter(scale=0.5)
    meter.update(torch.tensor([3.0, -4.0]), torch.tensor([3.0, -3.0]))
    meter.update(torch.tensor([0.0]), torch.tensor([1.0]))
    error = meter.result()
    assert error.sqnr_db == pytest.approx(10 * math.log10(25 / 2))
    assert error.cosine == pytest.approx(21 / math.sqrt(25 * 19))
    assert (error.max_error, error.max_steps) == (1.0, 2.0)
    same = ErrorMeter(1.0)
    same.update(torch.ones(3), torch.ones(3))
    assert same.result().sqnr_db == math.inf and same.result().cosine == pytest.approx(1)
    assert same.result().to_dict()["sqnr_db"] is None


def test_saturation_does_not_count_the_zeros_of_relu():
    rectified = RangeMeter(Grid(0.1, 0))
    rectified.update(torch.tensor([0.0, 0.0, 1.0, 99.0]), torch.tensor([0, 0, 10, 255]).byte())
    assert rectified.saturated == [0, 1] and rectified.clipped == [0, 1]
    signed = RangeMeter(Grid(0.1, 100))
    signed.update(torch.tensor([-99.0, -10.0, 0.0]), torch.tensor([0, 0, 100]).byte())
    assert signed.saturated == [2, 0] and signed.clipped == [1, 0]
    # A range that begins at 0 where values do not is no ReLU.
    wrong = RangeMeter(Grid(0.1, 0))
    wrong.update(torch.tensor([-5.0, 0.0]), torch.tensor([0, 0]).byte())
    assert wrong.saturated == [1, 0] and wrong.clipped == [1, 0]


def test_a_layer_alone_is_the_layer_on_rounded_float_inputs(resnet):
    """conv2 of the first block, computed here from the artifact's numbers."""
    model, artifact, images, comparison = resnet
    name, before = "layer1.0.conv2", "layer1.0.conv1"
    kept = {}
    fused = fused_copy(model)
    for layer in (name, before):
        fused.get_submodule(layer).register_forward_hook(
            lambda _, __, y, layer=layer: kept.update({layer: y})
        )
    with torch.inference_mode():
        fused(images)
    x, y = artifact.layers[before], artifact.layers[name]
    inputs = torch.quantize_per_tensor(kept[before], x.scale, x.zero_point, torch.quint8)
    weight = artifact.tensors[f"{name}.weight"].float() * artifact.tensors[f"{name}.weight_scale"]
    out = F.conv2d(inputs.dequantize(), weight, artifact.tensors[f"{name}.bias"], padding=1)
    given = torch.quantize_per_tensor(out, y.scale, y.zero_point, torch.quint8).dequantize()
    noise = (given - kept[name]).double().square().sum()
    expected = 10 * math.log10(float(kept[name].double().square().sum() / noise))
    assert comparison.layer(name).alone.sqnr_db == pytest.approx(expected, abs=0.05)
    assert comparison.layer(name).range.float_high == pytest.approx(float(kept[name].max()))
    plain = fused.get_submodule(name).weight
    noise = (weight - plain).double().square().sum()
    expected = 10 * math.log10(float(plain.double().square().sum() / noise))
    found = comparison.layer(name).weight
    assert found.error.sqnr_db == pytest.approx(expected, abs=1e-3)
    assert 0.45 < found.error.max_steps <= 0.501 and not found.per_channel
    peaks = plain.abs().amax((1, 2, 3))
    assert found.spread == pytest.approx(float(peaks.max() / peaks.min()), rel=1e-4)


def test_accumulated_errors_are_those_of_the_running_model(resnet):
    model, artifact, images, comparison = resnet
    from qzoo.native.model import to_native

    with torch.inference_mode():
        truth, given = model(images), to_native(artifact)(images)
    ratio = float(truth.double().square().sum() / (given - truth).double().square().sum())
    head = comparison.layers[-1]
    assert head.name == "fc"
    assert head.accumulated.sqnr_db == pytest.approx(10 * math.log10(ratio), abs=0.01)
    # Errors pile up: alone, most layers are more exact.
    better = [la.alone.sqnr_db >= la.accumulated.sqnr_db for la in comparison.layers[5:]]
    assert sum(better) > 0.8 * len(better)


def test_every_rounding_is_there_and_figures_are_json(resnet):
    _, artifact, images, comparison = resnet
    names = [la.name for la in comparison.layers]
    assert len(names) == len(set(names))
    ranged = {n for n, la in artifact.layers.items() if la.op in ("conv2d", "linear", "quantize")}
    assert ranged <= set(names) and "avgpool" in names
    assert comparison.layer("avgpool").layer == "layer4.1.add_relu"
    assert comparison.images == len(images)
    for layer in comparison.layers:
        assert sum(layer.histogram.shares) == pytest.approx(1)
        assert layer.alone.cosine <= 1 and layer.range.clipped <= 1
    text = json.dumps(comparison.to_dict(), allow_nan=False)
    assert json.loads(text)["layers"][0]["name"] == "quant"
    with pytest.raises(ArgumentError, match="no layer 'nowhere'"):
        comparison.layer("nowhere")


def test_good_ranges_have_no_excess_and_wrong_ones_as_much_as_they_should(resnet):
    model, artifact, images, comparison = resnet
    good = [la.range.excess_db for la in comparison.layers if la.range.excess_db is not None]
    assert max(good) < 2
    layer = artifact.layers["layer2.0.conv1"]
    coarse = dataclasses.replace(layer, scale=4 * layer.scale)
    wrong = dataclasses.replace(artifact, layers={**artifact.layers, "layer2.0.conv1": coarse})
    found = compare(model, wrong, images, progress=False).layer("layer2.0.conv1")
    assert found.range.excess_db == pytest.approx(12, abs=2), "each doubling costs 6 dB"
    assert found.range.best_high == pytest.approx(found.range.high / 4, rel=0.3)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_other_families(name):
    """Concatenations that share ranges, gates and hard swishes."""
    model, images = float_model(name, num_classes=10), small_images(name, 8)
    int8 = ptq(model, images, backend="onednn", recipe="fast", progress=False)
    comparison = compare(model, int8, images, progress=False)
    ops = {la.op for la in comparison.layers}
    assert ops >= ({"cat", "mean"} if "shuffle" in name else {"hardsigmoid", "mul", "hardswish"})
    assert any(la.range.shared for la in comparison.layers) == ("shuffle" in name)
    for layer in comparison.layers:
        assert layer.alone.sqnr_db > 15, layer.name
        assert (layer.range.excess_db is None) == (layer.name != layer.layer or "sigmoid" in
                                                   layer.op), layer.name  # fmt: skip
    assert comparison.native.sqnr_db == pytest.approx(comparison.simulated.sqnr_db, abs=2)


def test_layers_kept_in_float_are_marked():
    model, images = float_model("resnet18", num_classes=10), small_images("resnet18", 4)
    int8 = ptq(model, images, recipe="fast", keep_float=["fc"], progress=False)
    layer = compare(model, int8, images, progress=False).layer("fc")
    assert layer.kept_float and layer.weight is None


def test_paired_interval_is_that_of_the_paper():
    """Agresti and Min 2005: the interval of (b - c) / n with half a case added to every cell."""
    low, high = paired_interval(86, 150, 1600)
    assert -5.9 < low < -4.0 + 0.3 and -2.2 < high < -1.9 + 0.3
    low, high = paired_interval(0, 0, 100)
    assert low == pytest.approx(-high) and 0 < high < 3
    assert paired_interval(10, 0, 1000)[0] > 0, "ten lost and none won is no chance"


@pytest.mark.parametrize(("name", "backend"), [("resnet18", "qnnpack"), ("resnet18", "onednn")])
def test_channels_that_were_equalized_are_compared_like_with_like(name, backend):
    """The factors that equalization scaled channels by are found again from the weights."""
    model, images = float_model(name, num_classes=10), small_images(name, 8)
    steps = ("equalize", "weights", "calibrate", "share_ranges")
    int8 = ptq(model, images, backend=backend, recipe=Recipe("own", steps), progress=False)
    assert from_native(int8).info.recipe["equalized_channels"] > 0
    simulation = simulate(model, from_native(int8))
    plain = fused_copy(model).get_submodule("layer1.0.conv1")
    ratio = (simulation.float_weight("layer1.0.conv1") / plain[0].weight).amax((1, 2, 3))
    assert float(ratio.max() / ratio.min()) > 1.2, "this test needs channels that were scaled"
    with torch.inference_mode():
        torch.testing.assert_close(simulation.run(images), model(images), rtol=1e-3, atol=1e-3)
    for layer in compare(model, int8, images, progress=False).layers:
        assert layer.alone.sqnr_db > 30, layer.name
        assert layer.weight is None or layer.weight.excess_db < 2, layer.name
