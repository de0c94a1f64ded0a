"""Mixed precision: the target is met with few layers in float, or the best found comes back."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import qzoo
from qzoo.datasets.evaluate import evaluate
from qzoo.errors import ArgumentError
from qzoo.native.model import from_native
from qzoo.quantize import ptq, tune
from qzoo.quantize.mixed.replay import simulate
from qzoo.quantize.mixed.tune import with_float
from qzoo.quantize.recipes import Recipe
from tests.helpers.trained import PAIRS, digits, digits_model, imbalance
from tests.helpers.zoo import float_model, small_images

FLATTERS = pytest.mark.filterwarnings("ignore:tune calibrates and judges on the same images")
PLANTED = {name for pair in PAIRS for name in pair}


@pytest.fixture(scope="module")
def broken() -> nn.Module:
    """A trained model whose channels differ more than one scale per weight can hold."""
    model = digits_model()
    images = torch.stack([image for image, _ in digits("test", model, 16)])
    with torch.inference_mode():
        before = model(images)
        assert torch.equal(imbalance(model)(images), before), "no float output may change"
    return model


def _options(model: nn.Module, train: int, test: int, recipe: str | Recipe) -> dict:
    data, test_data = digits("train", model, train), digits("test", model, test)
    common = {"backend": "qnnpack", "recipe": recipe, "progress": False}
    return {"data": data, "test_data": test_data, **common}


@pytest.fixture(scope="module")
def options(broken: nn.Module) -> dict:
    return _options(broken, 128, 222, "fast")


def test_the_target_is_met_with_few_layers_in_float(broken, options, tmp_path):
    before = {k: v.clone() for k, v in broken.state_dict().items()}
    tuned = tune(broken, max_drop=0.5, sensitivity_images=16, **options)
    first = tuned.trace[0]
    assert first.action == "quantize" and first.drop > 5, "plain PTQ should break this model"
    assert tuned.met and tuned.drop <= 0.5
    assert 0 < len(tuned.float_layers) <= 8
    assert len(PLANTED & set(tuned.float_layers)) >= len(tuned.float_layers) - 1
    # The figures are those of the model that comes back, measured by other code.
    test = options["test_data"]
    assert evaluate(tuned.model, test, progress=False).top1 == pytest.approx(tuned.top1)
    assert evaluate(broken, test, progress=False).top1 == pytest.approx(tuned.float_top1)
    assert tuned.artifact.float_layers == list(tuned.float_layers)
    tuned.artifact.write(tmp_path / "tuned.safetensors")
    again = qzoo.load(tmp_path / "tuned.safetensors")
    assert evaluate(again, test, progress=False).top1 == pytest.approx(tuned.top1)
    # No layer of it was spared lightly: without it, the same and perhaps more were not enough.
    for name in tuned.float_layers:
        fewer = set(tuned.float_layers) - {name}
        missed = [set(s.float_layers) for s in tuned.trace if not s.met]
        assert any(name not in tried and tried >= fewer for tried in missed), name
    assert all(torch.equal(v, before[k]) for k, v in broken.state_dict().items())
    json.dumps(tuned.to_dict(), allow_nan=False)


def test_an_exhausted_budget_returns_the_best_and_its_trace(broken, options):
    tuned = tune(broken, max_drop=0.0, time_budget=0, **options)
    assert [step.action for step in tuned.trace] == ["quantize"]
    assert not tuned.met and tuned.float_layers == () and "time budget" in tuned.stopped
    assert tuned.drop == tuned.trace[0].drop > 5
    plain = ptq(broken, options["data"], backend="qnnpack", recipe="fast", progress=False)
    expected = from_native(plain)
    assert tuned.artifact.layers == expected.layers
    assert all(torch.equal(v, expected.tensors[k]) for k, v in tuned.artifact.tensors.items())


def test_a_budget_in_between_stops_early_with_the_best_of_its_trace(broken, options, monkeypatch):
    """A clock of its own advances by ten seconds at every look, so that the search is cut short."""
    clock = SimpleNamespace(monotonic=itertools.count(0, 10).__next__)
    # The function of that name hides the module from attribute access.
    monkeypatch.setattr(sys.modules["qzoo.quantize.mixed.tune"], "time", clock)
    few = {**options, "test_data": digits("test", broken, 64)}
    tuned = tune(broken, max_drop=0.0, time_budget=200, sensitivity_images=4, **few)
    assert 1 < len(tuned.trace) < 8 and "time budget" in tuned.stopped
    assert tuned.drop == min(step.drop for step in tuned.trace)


#: Correcting biases on what the int8 layers before give depends on which of them stay in float.
BIASED = Recipe("biased", ("weights", "calibrate", "share_ranges", "bias_correction"))


@pytest.fixture(scope="module")
def biased(broken: nn.Module) -> dict:
    return _options(broken, 64, 64, BIASED)


def test_steps_that_depend_on_the_choice_run_again_with_it(broken, biased):
    tuned = tune(broken, max_drop=2, sensitivity_images=8, **biased)
    actions = [step.action for step in tuned.trace]
    assert actions[0] == "quantize" and actions[-1] == "requantize"
    assert set(actions[1:-1]) <= {"keep", "give back"} and len(actions) > 2
    found = min(tuned.trace[:-1], key=lambda s: (not s.met, len(s.float_layers), s.drop))
    last = tuned.trace[-1]
    assert found.met and last.float_layers == found.float_layers == tuned.float_layers != ()
    # What was measured is what ptq gives with these layers kept in float from the start.
    options = {k: v for k, v in biased.items() if k != "test_data"}
    direct = ptq(broken, keep_float=last.float_layers, **options)
    top1 = evaluate(direct, biased["test_data"], progress=False).top1
    assert top1 == pytest.approx(last.top1)
    # The better one of both comes back, the one found first where they are equal.
    assert tuned.met and tuned.drop == min(found.drop, last.drop if last.met else math.inf)
    assert evaluate(tuned.model, biased["test_data"], progress=False).top1 == tuned.top1
    again = last.met and last.drop < found.drop
    given, wanted = tuned.artifact.tensors, from_native(direct).tensors
    assert all(torch.equal(v, wanted[k]) for k, v in given.items()) == again


def test_a_budget_that_the_search_uses_up_returns_what_it_found(broken, biased, monkeypatch):
    late = [0.0]
    real = time.monotonic
    clock = SimpleNamespace(monotonic=lambda: real() + late[0])
    module = sys.modules["qzoo.quantize.mixed.tune"]
    monkeypatch.setattr(module, "time", clock)
    search = module._Search.run

    def run(self, ranking):
        search(self, ranking)
        late[0] = 1e6

    monkeypatch.setattr(module._Search, "run", run)
    tuned = tune(broken, max_drop=2, sensitivity_images=8, time_budget=1e5, **biased)
    assert {step.action for step in tuned.trace} <= {"quantize", "keep", "give back"}
    assert "time budget" in tuned.stopped
    best = min(tuned.trace, key=lambda s: (not s.met, len(s.float_layers), s.drop))
    assert tuned.met and (tuned.float_layers, tuned.drop) == (best.float_layers, best.drop)
    assert tuned.artifact.float_layers == list(best.float_layers) != []
    assert evaluate(tuned.model, biased["test_data"], progress=False).top1 == tuned.top1
    assert [s.seconds for s in tuned.trace] == sorted(s.seconds for s in tuned.trace)


def test_keeping_layers_afterwards_is_the_same_as_keeping_them_from_the_start(broken, options):
    names = ["features.2.block.0.0", "classifier.3"]
    images = options["data"]
    same = {"backend": "qnnpack", "recipe": "fast", "progress": False}
    base = from_native(ptq(broken, images, **same))
    swapped = with_float(simulate(broken, base), names)
    direct = from_native(ptq(broken, images, keep_float=names, **same))
    assert swapped.layers == direct.layers
    assert swapped.tensors.keys() == direct.tensors.keys()
    assert all(torch.equal(v, direct.tensors[k]) for k, v in swapped.tensors.items())


@FLATTERS
def test_without_labels_changed_answers_count():
    model = float_model("resnet18", num_classes=10)
    images = small_images("resnet18", 16)
    tuned = tune(model, images, 100, recipe="fast", progress=False)
    assert tuned.met and tuned.top1 is None and tuned.float_top1 is None
    with torch.inference_mode():
        changed = (tuned.model(images).argmax(1) != model(images).argmax(1)).double().mean()
    assert tuned.drop == pytest.approx(100 * float(changed))


@FLATTERS
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"max_drop": -1}, "max_drop"),
        ({"max_drop": float("nan")}, "max_drop"),
        ({"time_budget": -2}, "time_budget"),
        ({"sensitivity_images": 0}, "sensitivity_images"),
        ({"keep_float": ["nothing*"]}, "matches no layer"),
    ],
)
def test_impossible_arguments_are_one_sentence(bad, said):
    model = float_model("resnet18", num_classes=10)
    with pytest.raises(ArgumentError, match=said):
        tune(model, small_images("resnet18", 4), recipe="fast", progress=False, **bad)
