"""Recipes go by their steps, never by their name; one rule chooses the backend of new models."""

from __future__ import annotations

import dataclasses
import warnings

import pytest

import qzoo
from qzoo._core import cpu
from qzoo.errors import ArgumentError
from qzoo.native import engines
from qzoo.native.model import from_native
from qzoo.quantize import RECIPES, Recipe, ptq, qat
from tests.helpers.zoo import float_model, small_images

MODEL, IMAGES = float_model("shufflenet_v2_x0_5", num_classes=5), small_images("resnet18", 8)


def numbers(recipe: str | Recipe) -> tuple[str, str]:
    """Returns what the layers and tensors come to, whatever the recipe is called."""
    artifact = from_native(ptq(MODEL, IMAGES, recipe=recipe, progress=False, backend="onednn"))
    info = dataclasses.replace(artifact.info, recipe={})
    method = str(artifact.info.recipe["ptq_steps"])
    return dataclasses.replace(artifact, info=info).digest(), method


@pytest.mark.parametrize("name", ["torchvision", "default", "best", "own"])
def test_names_decide_nothing(name: str) -> None:
    recipe = dataclasses.replace(RECIPES["fast"], name=name)
    assert numbers(recipe) == numbers("fast")


def test_torchvisions_recipe_goes_by_any_name() -> None:
    recipe = dataclasses.replace(RECIPES["torchvision"], name="own")
    assert numbers(recipe) == numbers("torchvision") != numbers("fast")


@pytest.mark.parametrize(
    ("steps", "observer", "words"),
    [
        ((), "mse", "has no steps"),
        (("calibrate",), "mse", "lacks the step 'weights' at all"),
        (("weights",), "mse", "lacks the step 'calibrate' at all"),
        (("weights", "share_ranges", "calibrate"), "mse", "'calibrate' before 'share_ranges'"),
        (("bias_correction", "weights", "calibrate"), "mse", "'weights' before 'bias_correction'"),
        (("weights", "calibrate", "equalize"), "mse", "equalizes channels after 'weights'"),
    ],
)
def test_steps_that_cannot_work_are_refused(
    steps: tuple[str, ...], observer: str, words: str
) -> None:
    with pytest.raises(ArgumentError, match=words):
        ptq(MODEL, IMAGES, recipe=Recipe("torchvision", steps, observer), progress=False)


def test_flows_refuse_steps_of_a_recipe_called_default() -> None:
    recipe = dataclasses.replace(RECIPES["best"], name="default")
    with pytest.raises(ArgumentError, match="no use for"):
        ptq(MODEL, IMAGES, recipe=recipe, flow="fx", progress=False)


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [(None, "x86"), ("avx512_vnni", "onednn"), ("avx_vnni", "onednn")],
)
def test_one_rule_for_the_backend_of_new_models(capability, wanted, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "_facts", lambda: f"flags\t\t: fpu avx512f {capability}\n")
    monkeypatch.setattr(engines, "available_engines", lambda: ["x86", "onednn", "fbgemm"])
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    assert cpu.has_vnni() == (capability is not None)
    assert qzoo.default_backend() == wanted
    assert from_native(ptq(MODEL, IMAGES, recipe="fast", progress=False)).info.backend == wanted
    assert qat.prepare(MODEL).plan.state.backend.name == wanted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its weights are random
        fresh = qzoo.shufflenet_v2_x0_5(quantize=True, num_classes=5)
    assert from_native(fresh).info.backend == wanted
