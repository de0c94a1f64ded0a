"""Published int8 weights as records: the same facts as torchvision's enums, found by name."""

from __future__ import annotations

from typing import Any

import pytest
from torchvision.models._meta import _IMAGENET_CATEGORIES

import qzoo
from qzoo.metadata import enum_name
from qzoo.pictures.classes import class_names
from qzoo.pictures.preset import Preset
from qzoo.published import all_weights, find_weights, published_weights, weights_of
from tests.helpers.zoo import BUILDERS

MEMBERS: list[Any] = [m for n in BUILDERS for m in qzoo.get_model_weights(n)]


def test_imagenets_classes_are_torchvisions() -> None:
    assert class_names("imagenet-1k") == list(_IMAGENET_CATEGORIES)
    assert class_names(["a"]) == ["a"] and class_names(None) is None


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_records_say_what_the_enums_say(member: Any) -> None:
    found = find_weights(str(member))
    assert str(found) == repr(member) and found == member.published
    assert (found.architecture, found.name) == (member.meta["architecture"], member.name)
    assert (found.url, found.embedded) == (member.url, member.embedded)
    assert class_names(found.classes) == member.meta["categories"]
    assert vars(Preset.from_dict(found.transforms)) == vars(
        Preset.from_dict(member.transforms().to_dict())
    )
    for key in ("backend", "builder_kwargs", "method", "recipe"):
        assert getattr(found, key) == member.meta[key]
    assert found.metrics == member.meta["_metrics"]
    assert found.sha256 == member.meta.get("sha256")
    assert found.sha256_prefix == member.meta.get("sha256_prefix")


def test_all_records_are_those_of_the_enums() -> None:
    assert sorted(map(str, all_weights())) == sorted(map(str, MEMBERS))
    for name in BUILDERS:
        enum = qzoo.get_model_weights(name)
        assert enum_name(name) == enum.__name__
        assert [w.name for w in weights_of(name)] == [m.name for m in enum]
        if "DEFAULT" in enum.__members__:
            assert published_weights(name).name == enum["DEFAULT"].name


@pytest.mark.parametrize(
    ("model", "member"),
    [("ResNet50", "imagenet1k_fbgemm_v2"), ("quantized_resnet50", "default"),
     ("resnet50", "ResNet50_QuantizedWeights.IMAGENET1K_FBGEMM_V2")],
)  # fmt: skip
def test_names_in_any_case(model: str, member: str) -> None:
    assert str(published_weights(model, member)) == "ResNet50_QuantizedWeights.IMAGENET1K_FBGEMM_V2"


@pytest.mark.parametrize("full", [
    "ResNet50_QuantizedWeights.IMAGENET1K_FBGEM_V2", "ResNet50_QuantizedWeight.DEFAULT",
    "ResNet50_QuantizedWeights", "ResNet152_QuantizedWeights.DEFAULT", "Nothing", "",
])  # fmt: skip
def test_wrong_names_get_the_enums_answer(full: str) -> None:
    with pytest.raises(qzoo.UnknownNameError) as enums:
        qzoo.get_weight(full)
    with pytest.raises(qzoo.UnknownNameError) as records:
        find_weights(full)
    # Suggestions may differ: the enums know torchvision's float weights, too.
    assert str(records.value).partition(" Did you")[0] == str(enums.value).partition(" Did you")[0]
    with pytest.raises(qzoo.UnknownNameError, match="Did you mean 'resnet50'"):
        published_weights("resnet5")
