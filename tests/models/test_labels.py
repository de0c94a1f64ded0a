"""What models say of their inputs and outputs, and how one says it to them."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms as T
from torchvision.models import ResNet50_Weights

import qzoo
from qzoo.classify import classify
from qzoo.errors import QuantizationWarning
from qzoo.importers.checkpoint import load_float, save_float
from qzoo.quantize import ptq, qat, tune
from qzoo.transforms import ImageClassification

WEIGHTS = qzoo.ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1
PRESET = ImageClassification(crop_size=32, resize_size=40)
STEPS = [T.Resize(40), T.CenterCrop(32), T.ToTensor(), T.Normalize([0.4] * 3, [0.2] * 3)]
TAKEN: dict[str, Any] = {
    "qzoo's preset": PRESET,
    "torchvision's preset": ResNet50_Weights.IMAGENET1K_V2.transforms(),
    "torchvision's weights": ResNet50_Weights.IMAGENET1K_V2.transforms,
    "qzoo's weights": WEIGHTS.transforms,
    "a description": PRESET.to_dict(),
    "a Compose": T.Compose(STEPS),
}


def random_picture(width: int = 61, height: int = 47) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prepared(transforms: Any, picture: Image.Image) -> torch.Tensor:
    if isinstance(transforms, dict):
        return ImageClassification.from_dict(transforms)(picture)
    if isinstance(transforms, functools.partial):
        transforms = transforms()
    return transforms(picture)


@pytest.fixture
def int8() -> nn.Module:
    return qzoo.shufflenet_v2_x0_5(weights=WEIGHTS, quantize=True)


def digits_float() -> nn.Module:
    torch.manual_seed(0)
    return qzoo.shufflenet_v2_x0_5(num_classes=3).eval()


@pytest.mark.parametrize("what", TAKEN)
def test_transforms_are_taken_as_people_have_them(
    what: str, int8: nn.Module, tmp_path: Path
) -> None:
    picture, path = random_picture(), tmp_path / "m.safetensors"
    expected = prepared(TAKEN[what], picture)
    qzoo.save(int8, path, transforms=TAKEN[what])
    assert torch.equal(qzoo.load(path).transforms(picture), expected)
    int8.save_pretrained(tmp_path / "folder", transforms=TAKEN[what])
    assert torch.equal(qzoo.load(tmp_path / "folder").transforms(picture), expected)
    save_float(digits_float(), path, transforms=TAKEN[what])
    assert torch.equal(load_float(path).transforms(picture), expected)
    int8.transforms = TAKEN[what]
    assert torch.equal(int8.transforms(picture), expected)
    assert "transforms" not in dict(int8.named_modules())


class Brighter(torchvision.transforms._presets.ImageClassification):
    def forward(self, img: Any) -> Any:
        return super().forward(img) + 1


@pytest.mark.parametrize(
    "transforms",
    [
        lambda picture: picture,
        T.Compose([T.Resize((40, 40)), *STEPS[1:]]),
        T.Compose([T.RandomHorizontalFlip(), *STEPS]),
        T.Compose(STEPS[1:]),
        Brighter(crop_size=32),
    ],
)
def test_other_transforms_are_refused_or_warned_of(
    transforms: Callable[..., Any], int8: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(qzoo.ArgumentError, match="cannot be recorded"):
        qzoo.save(int8, tmp_path / "m.safetensors", transforms=transforms)
    assert not list(tmp_path.iterdir())
    with pytest.warns(QuantizationWarning, match="does not record its transforms"):
        made = ptq(digits_float(), torch.randn(4, 3, 32, 32), transforms=transforms, progress=False)
    assert made.transforms is None


def test_what_calibrates_is_kept(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for number in (1, 2):
            random_picture().save(tmp_path / name / f"{number}.png")
    options: dict[str, Any] = {"transforms": PRESET, "progress": False}
    model = digits_float()
    trained = qat.prepare(model, data=tmp_path, **options)
    for made in (
        ptq(model, tmp_path, recipe="fast", **options),
        tune(model, tmp_path, max_drop=100, recipe="fast", **options).artifact,
        qat.convert(trained.eval()),
    ):
        path = tmp_path / "made.safetensors"
        made.write(path) if isinstance(made, qzoo.Artifact) else qzoo.save(made, path)
        loaded = qzoo.load(path)
        assert loaded.transforms.to_dict() == PRESET.to_dict()
        assert classify(loaded, [random_picture()])
    assert model.transforms is None


def test_public_on_models_of_every_kind(int8: nn.Module, tmp_path: Path) -> None:
    digits = list("0123456789")
    qzoo.save(int8, tmp_path / "m.safetensors")
    for model in (
        int8,
        qzoo.load(tmp_path / "m.safetensors"),
        copy.deepcopy(int8),
        pickle.loads(pickle.dumps(int8)),
        qzoo.compile(int8, "torch"),
    ):
        assert model.classes == digits
        assert model.transforms.to_dict() == WEIGHTS.transforms().to_dict()
    fresh: Any = qzoo.resnet18(num_classes=2)
    assert fresh.classes is None and fresh.transforms is None
    fresh.classes = ("cat", "dog")
    save_float(fresh, tmp_path / "float.safetensors")
    assert load_float(tmp_path / "float.safetensors").classes == ["cat", "dog"]
    unknown = qzoo.QuantizableMobileNetV2()
    assert unknown.classes is None and unknown.transforms is None


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet", "inception_v3"])
@pytest.mark.parametrize("classes", [0, -3, 2.5, True, "10", None])
def test_models_without_classes_are_refused(name: str, classes: Any) -> None:
    for options in ({}, {"quantize": True}):
        with pytest.raises(qzoo.ArgumentError, match="num_classes should be a whole number above"):
            qzoo.get_model(name, num_classes=classes, **options)


@pytest.mark.parametrize(
    ("builder", "quantize", "spelling", "member"),
    [
        ("shufflenet_v2_x0_5", True, "digits_x86_v1", "DIGITS_X86_V1"),
        ("shufflenet_v2_x0_5", True, "Default", "IMAGENET1K_FBGEMM_V1"),
        ("resnet50", False, "imagenet1k_v2", "IMAGENET1K_V2"),
        ("resnet50", False, "ResNet50_Weights.Imagenet1k_V1", "IMAGENET1K_V1"),
    ],
)
def test_names_of_weights_ignore_case(
    builder: str, quantize: bool, spelling: str, member: str
) -> None:
    from qzoo.registry import get_entry
    from qzoo.weights import resolve_weights

    entry = get_entry(builder)
    found = resolve_weights(spelling, quantize, entry.weights, entry.float_weights)
    assert found is not None and found.name == member
    assert qzoo.get_weight(f"{type(found).__name__}.{member.lower()}") is found


def test_int8_weights_for_a_float_model_are_named_in_any_case() -> None:
    with pytest.raises(qzoo.ArgumentError, match="are int8 weights"):
        qzoo.resnet50(weights="imagenet1k_fbgemm_v1")
    with pytest.raises(qzoo.ArgumentError, match="are float weights"):
        qzoo.resnet50(weights="imagenet1k_v1", quantize=True)
    with pytest.raises(qzoo.UnknownNameError, match="Did you mean 'IMAGENET1K_FBGEMM_V2'"):
        qzoo.resnet50(weights="imagenet1k_fbgem_v2", quantize=True)
