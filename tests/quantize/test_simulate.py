"""The simulation of mixtures of float and int8: both ends are the real models."""

from __future__ import annotations

import math

import pytest
import torch

from qzoo.errors import ArgumentError
from qzoo.native.model import from_native
from qzoo.quantize import measure_sensitivity, ptq
from qzoo.quantize.mixed.damage import DamageMeter
from qzoo.quantize.mixed.replay import simulate
from qzoo.quantize.simulate import FLOAT
from tests.helpers.zoo import float_model, small_images

NAMES = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet")


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    torch.manual_seed(0)
    model = float_model(request.param, num_classes=10)
    images = small_images(request.param, 4)
    int8 = ptq(model, images, backend="onednn", recipe="fast", progress=False)
    return model, int8, images, simulate(model, from_native(int8))


def test_all_in_float_is_the_float_model(case):
    model, _, images, simulation = case
    with torch.inference_mode():
        exact = model(images)
        torch.testing.assert_close(simulation.run(images), exact, rtol=1e-4, atol=1e-4)
        values = simulation.values(images)
        assert torch.equal(simulation.logits(values), simulation.run(images))


def test_all_in_int8_is_the_native_model_but_for_single_steps(case):
    _, int8, images, simulation = case
    with torch.inference_mode():
        gap = (simulation.run(images, simulation.int8) - int8(images)).abs()
    steps = gap / simulation.artifact.layers[simulation.ranged[-1]].scale
    assert float(steps.max()) < 3 and float(steps.mean()) < 0.2


def test_computing_only_what_changes_gives_the_same_bits(case):
    _, _, images, simulation = case
    names = simulation.ranged
    with torch.inference_mode():
        for before in (FLOAT, simulation.int8):
            base = simulation.values(images, before)
            for name in (names[0], names[len(names) // 2], names[-1]):
                weights = [name] if name in simulation.weighted else []
                change = before.with_ if before == FLOAT else before.without
                for after in (change(weights, []), change([], [name]), change(weights, [name])):
                    found = simulation.again(base, before, after)
                    assert torch.equal(found, simulation.run(images, after)), (name, after)


def test_nothing_is_written_in_place(case):
    _, _, images, simulation = case
    with torch.inference_mode():
        values = simulation.values(images)
        copies = {n: v.clone() for n, v in values.items() if isinstance(v, torch.Tensor)}
        simulation.again(values, FLOAT, simulation.int8)
        assert all(torch.equal(values[n], v) for n, v in copies.items())


def test_one_layer_at_a_time(case):
    """Alone in float and alone in int8 are what they say, computed by hand for one layer."""
    _, _, images, simulation = case
    name = simulation.weighted[2]
    found = measure_sensitivity(simulation, [(images, None)], layers=[name], progress=False)
    layer = found.layers[0]
    with torch.inference_mode():
        truth = simulation.run(images)
        for mode, part, parts in (
            ("int8", "weights", FLOAT.with_([name], [])),
            ("int8", "both", FLOAT.with_([name], [name])),
            ("float", "outputs", simulation.int8.without([], [name])),
        ):
            meter = DamageMeter()
            meter.update(truth, simulation.run(images, parts))
            assert getattr(layer, mode)[part] == meter.result()
    assert layer.int8["both"].sqnr_db > found.int8.sqnr_db, "one layer harms less than all"
    assert found.images == len(images)


def test_splitting_into_batches_changes_nothing(case):
    _, _, images, simulation = case
    # The last layer: what an untrained model's first ones add may be lost in float32's own noise.
    layers = simulation.weighted[-1:]
    whole = measure_sensitivity(simulation, [(images, None)], layers=layers, progress=False)
    parts = [(images[:1], None), (images[1:], None)]
    split = measure_sensitivity(simulation, parts, layers=layers, progress=False)
    a, b = whole.layers[0].int8["both"], split.layers[0].int8["both"]
    assert a.sqnr_db == pytest.approx(b.sqnr_db, abs=0.05)
    assert a.agreement == b.agreement


def test_damage_by_hand():
    truth = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    given = torch.tensor([[2.0, 1.0], [2.0, 0.0]]) + 7  # the 7 changes no answer
    meter = DamageMeter()
    meter.update(truth, given, torch.tensor([0, 1]))
    damage = meter.result()
    # Signal (1, -1), (-1, 1); noise (-0.5, 0.5), (2, -2): powers 4 and 8.5.
    assert damage.sqnr_db == pytest.approx(10 * math.log10(4 / 8.5))
    assert damage.noise == pytest.approx(8.5 / 4)
    assert damage.agreement == damage.top1 == 50
    p, q = truth.double().softmax(1), given.double().softmax(1)
    assert damage.kl == pytest.approx(float((p * (p / q).log()).sum() / 2))
    same = DamageMeter()
    same.update(truth, truth + 1)
    assert same.result().sqnr_db == math.inf and same.result().noise == 0
    assert same.result().to_dict()["sqnr_db"] is None


def test_a_deadline_ends_after_a_batch(case):
    _, _, images, simulation = case
    batches = [(images[i : i + 1], None) for i in range(4)]
    layers = simulation.weighted[:1]
    found = measure_sensitivity(simulation, batches, layers=layers, deadline=0.0, progress=False)
    assert found.images == 1


def test_models_that_do_not_belong_together_are_refused(case):
    _, int8, _, _ = case
    other = float_model("resnet18", num_classes=12)
    with pytest.raises(ArgumentError, match="float model"):
        simulate(other, from_native(int8))


def test_unknown_names_are_refused(case):
    _, _, images, simulation = case
    for bad in ({"modes": ["int4"]}, {"parts": ["bias"]}, {"layers": ["nowhere"]}):
        with pytest.raises(ArgumentError, match="Unknown"):
            measure_sensitivity(simulation, [(images, None)], progress=False, **bad)
    with pytest.raises(ArgumentError, match="no images"):
        measure_sensitivity(simulation, [], progress=False)
