"""A layer given a wrong scale is ranked first, whatever layer it is."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from qzoo.analysis import analyze
from qzoo.analysis.compare import compare_layers
from qzoo.analysis.suspects import rank
from qzoo.artifact.format import Artifact
from qzoo.native.model import from_native, to_native
from qzoo.quantize import measure_sensitivity, ptq
from qzoo.quantize.mixed.replay import simulate
from tests.helpers.trained import digits, digits_model
from tests.helpers.zoo import float_model, small_images

#: Model, and one layer of every kind that it has.
CASES = {
    "resnet18": ("quant", "conv1", "layer1.1.add_relu", "layer2.0.downsample.0",
                 "layer3.1.conv2", "fc"),
    "mobilenet_v3_small": ("features.0.0", "features.0.2", "features.2.block.1.0",
                           "features.4.block.2.fc1", "features.4.block.2.skip_mul",
                           "features.5.skip_add", "features.9.block.3.0", "classifier.0"),
    "shufflenet_v2_x0_5": ("conv1.0", "stage2.0.branch1.0", "stage2.1.branch2.3", "stage3.2.cat",
                           "stage3.4.branch2.5", "conv5.0", "fc"),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def healthy(request):
    """A float model, its healthy artifact, images, and the layers to plant faults in."""
    name = request.param
    if name == "resnet18":
        model, images = float_model(name, num_classes=10), small_images(name, 16)
    else:
        model = digits_model(name)
        images = torch.stack([image for image, _ in digits("test", model, 16)])
        images = torch.nn.functional.interpolate(images, 40)
    int8 = ptq(model, images, backend="onednn", recipe="fast", progress=False)
    simulation = simulate(model, from_native(int8))
    base = measure_sensitivity(simulation, [(images, None)], modes=["int8"], progress=False)
    return simulation, images, base, CASES[name]


def _ranked(healthy, faulty: Artifact, layer: str):
    """Ranks the layers of a faulty model.

    What other layers do alone in int8 does not depend on the one at fault, and is not measured
    again.
    """
    simulation, images, base, _ = healthy
    other = simulation.with_artifact(faulty)
    comparison = compare_layers(other, to_native(faulty), [(images, None)], progress=False)
    fresh = measure_sensitivity(
        other, [(images, None)], modes=["int8"], layers=[layer], progress=False
    ).layers[0]
    layers = tuple(fresh if la.name == layer else la for la in base.layers)
    return rank(comparison, dataclasses.replace(base, layers=layers))


def test_nothing_is_suspected_of_a_healthy_model(healthy):
    simulation, images, base, _ = healthy
    native = to_native(simulation.artifact)
    comparison = compare_layers(simulation, native, [(images, None)], progress=False)
    assert not [s.name for s in rank(comparison, base) if s.wrong]


def test_a_wrong_scale_of_outputs_is_ranked_first(healthy):
    artifact = healthy[0].artifact
    for i, name in enumerate(healthy[3]):
        layer = artifact.layers[name]
        factor = (8.0, 1 / 6, 3.0, 1 / 12)[i % 4]
        bad = dataclasses.replace(layer, scale=layer.scale * factor)
        faulty = dataclasses.replace(artifact, layers={**artifact.layers, name: bad})
        first, second, *_ = _ranked(healthy, faulty, name)
        assert first.name == name and first.wrong_range and not first.wrong_weights, (name, factor)
        assert not second.wrong, (name, factor, second.name)


def test_a_wrong_scale_of_weights_is_ranked_first(healthy):
    artifact = healthy[0].artifact
    weighted = [n for n in healthy[3] if f"{n}.weight" in artifact.tensors]
    for i, name in enumerate(weighted):
        scale = artifact.tensors[f"{name}.weight_scale"].clone()
        factor = (1.3, 0.5, 4.0)[i % 3]
        if i % 2:
            scale *= factor  # all channels
        else:
            scale[: len(scale) // 4] *= factor  # some
        tensors = {**artifact.tensors, f"{name}.weight_scale": scale}
        faulty = dataclasses.replace(artifact, tensors=tensors)
        first, second, *_ = _ranked(healthy, faulty, name)
        assert first.name == name and first.wrong_weights, (name, factor)
        assert not second.wrong, (name, factor, second.name)


def test_a_wrong_zero_point_is_ranked_first(healthy):
    artifact = healthy[0].artifact
    name = "fc" if "fc" in artifact.layers else "classifier.3"
    layer = artifact.layers[name]
    bad = dataclasses.replace(layer, zero_point=(layer.zero_point + 128) % 256)
    faulty = dataclasses.replace(artifact, layers={**artifact.layers, name: bad})
    first = _ranked(healthy, faulty, name)[0]
    assert first.name == name and first.wrong_range


def test_the_whole_diagnosis_names_it_first():
    """By the one call that users make, without help."""
    model = digits_model("shufflenet_v2_x0_5")
    # Calibrated on what it is judged by: else ranges that other images outgrow are found as well.
    test = digits("test", model, 24)
    artifact = from_native(ptq(model, test, backend="onednn", recipe="fast", progress=False))
    name = "stage3.1.branch2.0"
    bad = dataclasses.replace(artifact.layers[name], scale=artifact.layers[name].scale / 20)
    faulty = dataclasses.replace(artifact, layers={**artifact.layers, name: bad})
    diagnosis = analyze(model, faulty, test, images=24, sensitivity_images=8, progress=False)
    assert diagnosis.ranking[0].name == name
    assert diagnosis.findings[0].kind == "wrong range"
    assert diagnosis.findings[0].severity == "fault"
    assert diagnosis.findings[0].layers == (name,)
    # What the finding promises is what another range gives.
    tried = next(e for e in diagnosis.experiments if e.kind == "other ranges")
    now = next(e for e in diagnosis.experiments if e.kind == "as it is")
    assert name in tried.layers and tried.damage.sqnr_db > now.damage.sqnr_db + 5
    assert name in diagnosis.to_html()
