"""The weight enums and the metadata files, their only source."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models import Weights, WeightsEnum

import qzoo
from qzoo.registry import get_entry
from tests.helpers.places import ROOT
from tests.helpers.zoo import BUILDERS, TORCHVISION

META = ROOT / "weights_meta"
FILES = sorted(p for p in META.glob("*.json") if p.name != "schema.json")
FACTS = ROOT.parent / "shared" / "facts" / "torchvision_quantized_weights.json"
MEMBERS = [m for n in BUILDERS for m in qzoo.get_model_weights(n)]
PUBLISHED = [m for m in MEMBERS if m.meta["source"] == "published by torchvision"]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = read(META / "schema.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_metadata_file_is_valid(path: Path, validator: Any) -> None:
    data = read(path)
    assert [e.message for e in validator.iter_errors(data)] == []
    assert data["architecture"] == path.stem
    assert data["default"] is None or data["default"] in data["weights"]
    entry = get_entry(path.stem)  # what `qzoo info` and `list` say without importing it
    assert data["float_weights"] == entry.float_weights.__name__
    assert entry.weights.__name__ == data["float_weights"].replace("_Weights", "_QuantizedWeights")
    assert set(data["weights"]) | {"DEFAULT"} == set(entry.weights.__members__) | {"DEFAULT"}


def test_every_architecture_has_a_file() -> None:
    assert [p.stem for p in FILES] == sorted(BUILDERS)


BREAKS: dict[str, tuple[list[str], Any]] = {
    "no url": (["weights", "*", "url"], None),
    "plain http": (["weights", "*", "url"], "http://example.com/a.pth"),
    "url of another kind": (["weights", "*", "url"], "https://example.com/a.zip"),
    "no hash": (["weights", "*", "sha256_prefix"], None),
    "hash that is none": (["weights", "*", "sha256_prefix"], "XYZ"),
    "unknown backend": (["weights", "*", "backend"], "tpu"),
    "text for a figure": (["weights", "*", "metrics"], {"ImageNet-1K": {"acc@1": "76"}}),
    "more than 100 %": (["weights", "*", "metrics"], {"ImageNet-1K": {"acc@1": 101}}),
    "no figure": (["weights", "*", "metrics"], {}),
    "unknown preset": (["weights", "*", "transforms", "preset"], "Segmentation"),
    "no crop": (["weights", "*", "transforms", "crop_size"], None),
    "two means": (["weights", "*", "transforms", "mean"], [0.5, 0.5]),
    "unknown source": (["weights", "*", "source"], "heard somewhere"),
    "measured, not reproducible": (["weights", "*", "source"], "measured by qzoo"),
    "unknown classes": (["weights", "*", "categories"], "imagenet-21k"),
    "misspelt field": (["weights", "*", "filesize"], 3),
    "member without backend": (["weights", "IMAGENET1K_V1"], {}),
    "no parameters": (["num_params"], 0),
    "one side": (["min_size"], [1]),
    "no architecture": (["architecture"], None),
    "misspelt top field": (["gmac"], 1.0),
    "weights as a list": (["weights"], []),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_metadata_is_rejected(name: str, validator: Any) -> None:
    data = copy.deepcopy(read(META / "resnet50.json"))
    steps, value = BREAKS[name]
    place = data
    for step in steps[:-1]:
        place = place[next(iter(place)) if step == "*" else step]
    if value is None:
        del place[steps[-1]]
    else:
        place[steps[-1]] = value
    assert not validator.is_valid(data)


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_members_are_torchvision_weights(member: WeightsEnum) -> None:
    assert isinstance(member, WeightsEnum) and isinstance(member.value, Weights)
    assert repr(member) == f"{type(member).__name__}.{member.name}"
    assert member.meta["backend"] in qzoo.BACKENDS
    assert all(isinstance(c, str) for c in member.meta["categories"])
    assert len(member.meta["categories"]) == member.meta["builder_kwargs"].get("num_classes", 1000)
    assert isinstance(member.meta["min_size"], tuple)
    assert type(member).verify(member.name) is member
    assert type(member).verify(str(member)) is member
    assert qzoo.get_weight(str(member)) is member


def test_an_enum_refuses_members_of_another() -> None:
    enum = qzoo.ResNet50_QuantizedWeights
    assert enum.verify(None) is None
    with pytest.raises(qzoo.ArgumentError, match="should be a member of ResNet50"):
        enum.verify(qzoo.ResNet18_QuantizedWeights.DEFAULT)
    with pytest.raises(qzoo.UnknownNameError, match="has no member 'V9'"):
        enum.verify("V9")


@pytest.mark.parametrize("name", BUILDERS)
def test_size_figures_are_those_of_the_architecture(name: str) -> None:
    entry, data = get_entry(name), read(META / f"{name}.json")
    published = next(iter(entry.float_weights))
    kwargs = {"aux_logits": name == "inception_v3"} if entry.aux else {}
    count = sum(p.numel() for p in entry.skeleton(kwargs).parameters())
    assert data["num_params"] == published.meta["num_params"] == count
    assert data["min_size"] == list(published.meta["min_size"])
    assert data["gmacs"] == published.meta["_ops"]
    assert data["crop_size"] == entry.float_weights["DEFAULT"].transforms.keywords["crop_size"]


@pytest.mark.parametrize("member", PUBLISHED, ids=str)
def test_published_members_say_what_torchvisions_own_say(member: WeightsEnum) -> None:
    theirs = getattr(torchvision.models.quantization, type(member).__name__)[member.name]
    assert member.url == theirs.url
    for key in ("num_params", "min_size", "categories", "backend", "unquantized", "recipe",
                "_metrics", "_ops", "_file_size"):  # fmt: skip
        assert member.meta[key] == theirs.meta[key], key


def test_defaults_are_torchvisions() -> None:
    for name in TORCHVISION:
        enum = qzoo.get_model_weights(name)
        theirs = getattr(torchvision.models.quantization, enum.__name__)
        assert enum["DEFAULT"].name == theirs["DEFAULT"].name


def test_every_published_entry_is_there_with_its_facts() -> None:
    if not FACTS.is_file():
        pytest.skip(f"{FACTS}, the list of what torchvision publishes, is not on this machine")
    seen = []
    for entry in read(FACTS)["entries"]:
        enum = qzoo.get_model_weights(entry["builder"])
        assert enum.__name__ == entry["weights_enum"]
        assert get_entry(entry["builder"]).float_weights.__name__ == entry["float_weights_enum"]
        assert enum["DEFAULT"].name == entry["DEFAULT"]
        for name, facts in entry["members"].items():
            member = enum[name]
            seen.append(member)
            meta = member.meta
            assert member.url == facts["url"]
            assert meta["sha256_prefix"] in facts["url"]
            assert meta["backend"] == facts["backend"]
            assert meta["num_params"] == facts["num_params"]
            assert list(meta["min_size"]) == facts["min_size"]
            figures = {"acc@1": facts["acc1"], "acc@5": facts["acc5"]}
            assert meta["_metrics"] == {"ImageNet-1K": figures}
            assert meta["_ops"] == facts["_ops"]
            assert meta["_file_size"] == facts["_file_size"]
            assert str(meta["unquantized"]) == facts["unquantized"]
            assert meta["recipe"] == facts["recipe"]
            assert meta["method"] == facts["method"]
            assert member.transforms().to_dict() == facts["transforms"]
            if (figures := facts.get("unquantized_metrics")) and figures["acc1"] is not None:
                float_meta = meta["unquantized"].meta
                assert float_meta["_metrics"]["ImageNet-1K"]["acc@1"] == figures["acc1"]
    assert len(seen) == 14 and set(map(str, seen)) == set(map(str, PUBLISHED))


@pytest.mark.parametrize("member", PUBLISHED, ids=str)
def test_transforms_compute_what_torchvisions_preset_computes(member: WeightsEnum) -> None:
    theirs = getattr(torchvision.models.quantization, type(member).__name__)[member.name]
    ours, preset = member.transforms(), theirs.transforms()
    pixels = torch.randint(0, 256, (3, 260, 347), dtype=torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    assert torch.equal(ours(pixels), preset(pixels))
    assert torch.equal(ours(picture), preset(picture))
    assert type(ours).from_dict(ours.to_dict()).to_dict() == ours.to_dict()
    assert ours.describe() == preset.describe()


def test_a_missing_metadata_file_is_one_clear_sentence() -> None:
    with pytest.raises(qzoo.QzooError, match="install qzoo again"):
        qzoo.metadata.read_metadata("no_such_model")
