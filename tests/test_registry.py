"""The registry, and torch.hub on top of it."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qzoo
from qzoo.registry import get_entry, register_model
from tests.helpers.calling import python
from tests.helpers.places import ROOT
from tests.helpers.zoo import BUILDERS, TORCHVISION, uncalibrated


def test_all_models_are_listed_in_order() -> None:
    assert qzoo.list_models() == sorted(BUILDERS)


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"include": "resnet*"}, ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50"]),
        ({"include": ["*inception*", "googlenet"]}, ["googlenet", "inception_v3"]),
        ({"include": "mobilenet*", "exclude": "*v3*"}, ["mobilenet_v2"]),
        ({"include": "*101*", "exclude": ["res*", "nothing"]}, ["wide_resnet101_2"]),
        ({"include": []}, []),
        ({"include": "RESNET18"}, []),
        ({"exclude": "*"}, []),
    ],
)
def test_filters(filters: dict[str, str | list[str]], names: list[str]) -> None:
    assert qzoo.list_models(**filters) == names


@given(st.text(max_size=30) | st.sampled_from(BUILDERS).map(str.swapcase))
def test_any_name_is_a_models_or_refused_in_a_sentence(name: str) -> None:
    try:
        assert get_entry(name).name == name.lower().strip()
    except qzoo.UnknownNameError as error:
        assert name.lower() not in BUILDERS and "\n" not in str(error)
        with pytest.raises(qzoo.UnknownNameError):
            qzoo.get_model(name)


def test_models_with_and_without_int8_weights() -> None:
    quantized, others = qzoo.list_models(quantized=True), qzoo.list_models(quantized=False)
    assert set(TORCHVISION) <= set(quantized)
    assert sorted(quantized + others) == qzoo.list_models()
    assert all(len(qzoo.get_model_weights(n)) > 0 for n in quantized)
    assert all(len(qzoo.get_model_weights(n)) == 0 for n in others)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_name_leads_to_its_builder_and_weights(name: str) -> None:
    builder = qzoo.get_model_builder(name)
    assert builder.__name__ == name
    weights = qzoo.get_model_weights(name)
    assert weights is qzoo.get_model_weights(builder)
    assert weights.__name__.lower() == f"{name}_quantizedweights"
    assert getattr(qzoo, weights.__name__) is weights


def test_torchvisions_names_of_quantized_models_work() -> None:
    assert qzoo.get_model_builder("quantized_resnet50") is qzoo.resnet50
    assert qzoo.get_model_builder("ResNet50") is qzoo.resnet50


def test_get_model_passes_its_keywords_on() -> None:
    assert qzoo.get_model("resnet18", num_classes=3).fc.out_features == 3


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet51", "Did you mean 'resnet50'"),
        ("mobilenetv2", "Did you mean 'mobilenet_v2'"),
        ("shufflenet_v2", "Did you mean 'shufflenet_v2_x"),
        ("vit_b_16", "qzoo.list_models()"),
        ("", "qzoo.list_models()"),
        ("r" * 100_000, "qzoo.list_models()"),
    ],
)
def test_an_unknown_model_suggests_the_nearest(name: str, suggestion: str) -> None:
    for look_up in (qzoo.get_model, qzoo.get_model_builder, qzoo.get_model_weights):
        with pytest.raises(qzoo.UnknownNameError, match="Unknown model") as caught:
            look_up(name)
        assert suggestion in str(caught.value)
        assert len(str(caught.value)) < 400


def test_weights_by_their_full_name() -> None:
    member = qzoo.get_weight("ResNet50_QuantizedWeights.DEFAULT")
    assert member is qzoo.ResNet50_QuantizedWeights.IMAGENET1K_FBGEMM_V2
    float_member = qzoo.get_weight("ResNet50_Weights.IMAGENET1K_V2")
    assert str(float_member) == "ResNet50_Weights.IMAGENET1K_V2"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResNet50_QuantizedWeights.IMAGENET1K_FBGEMM_V3", "Did you mean 'IMAGENET1K_FBGEMM_V2'"),
        ("Resnet50_QuantizedWeights.DEFAULT", "'ResNet50_QuantizedWeights.DEFAULT'"),
        ("ResNet50_QuantizedWeights", "give an enum and a member"),
        ("DEFAULT", "give an enum and a member"),
        ("ResNet152_QuantizedWeights.DEFAULT", "none yet"),
        ("", "give an enum and a member"),
    ],
)
def test_unknown_weights_suggest_the_nearest(name: str, message: str) -> None:
    with pytest.raises(qzoo.UnknownNameError) as caught:
        qzoo.get_weight(name)
    assert message in str(caught.value)


def test_a_name_can_be_registered_once() -> None:
    entry = qzoo.registry.get_entry("resnet18")

    def resnet18() -> torch.nn.Module:
        raise AssertionError

    with pytest.raises(qzoo.ArgumentError, match="already registered"):
        register_model(entry.weights, entry.float_weights, entry.construct)(resnet18)
    assert qzoo.get_model_builder("resnet18") is qzoo.resnet18


def test_the_public_names_are_those_written_out() -> None:
    assert sorted(set(qzoo.__all__)) == sorted(qzoo.__all__)
    assert all(hasattr(qzoo, name) for name in qzoo.__all__)


@pytest.fixture
def hubconf() -> ModuleType:
    """Returns hubconf.py as torch.hub imports it."""
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_torch_hub_offers_every_builder_and_nothing_else(hubconf: ModuleType) -> None:
    offered = {n for n, v in vars(hubconf).items() if callable(v) and not n.startswith("_")}
    assert offered == set(BUILDERS)
    assert all(getattr(hubconf, n) is qzoo.get_model_builder(n) for n in BUILDERS)


def test_torch_hub_loads_a_builder_with_its_keywords() -> None:
    with pytest.warns(qzoo.UncalibratedWarning):
        model = torch.hub.load(str(ROOT), "mobilenet_v3_small", source="local", quantize=True)
    digests = {qzoo.native.model.from_native(m).digest()
               for m in (model, uncalibrated("mobilenet_v3_small"))}  # fmt: skip
    assert len(digests) == 1
    with pytest.raises(qzoo.UnknownNameError, match="Did you mean"):
        torch.hub.load(str(ROOT), "resnet50", source="local", weights="DEFAULTS", quantize=True)


def test_torch_hub_takes_the_package_beside_hubconf(tmp_path: Path) -> None:
    code = (
        "import sys, torch, warnings; warnings.simplefilter('ignore');"
        "model = torch.hub.load(sys.argv[1], 'resnet18', source='local', num_classes=2);"
        "assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2);"
        "import qzoo; print(qzoo.__file__)"
    )
    done = python("-c", code, ROOT, cwd=tmp_path)
    assert done.stdout.strip() == str(ROOT / "qzoo" / "__init__.py")


def test_hubconf_needs_what_a_build_needs(hubconf: ModuleType) -> None:
    tree = [ast.parse(p.read_text()) for p in (ROOT / "qzoo" / "models").glob("*.py")]
    imported = {
        (n.module or "").partition(".")[0]
        for t in tree
        for n in ast.walk(t)
        if isinstance(n, ast.ImportFrom) and not n.level
    }
    assert imported - set(sys.stdlib_module_names) <= set(hubconf.dependencies)
