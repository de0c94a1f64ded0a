"""What PTQ cannot use is one clear error or a named warning, and the model stays as it was."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder

import qzoo
from qzoo.errors import ArgumentError, ArtifactError, ImageError, QuantizationWarning
from qzoo.native.model import from_native
from qzoo.quantize import ptq
from qzoo.transforms import ImageClassification
from tests.helpers.zoo import float_model, small_images

NAME = "resnet18"
PRESET = ImageClassification(crop_size=32, resize_size=32)


@pytest.fixture(scope="module")
def fresh() -> nn.Module:
    return float_model(NAME, num_classes=5)


@pytest.fixture
def model(fresh: nn.Module) -> nn.Module:
    return copy.deepcopy(fresh)  # drawing random weights takes ten times as long


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures in torchvision's layout: a folder per class, of unlike sizes and numbers."""
    rng = np.random.default_rng(0)
    for name, count in (("bright", 6), ("dark", 3)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def quantized(model: nn.Module, data: Any, **options: Any) -> nn.Module:
    return ptq(model, data, **{"recipe": "fast", "progress": False, **options})


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Checks that a block leaves weights, statistics, modes, modules and hooks as they were."""

    def look() -> dict[str, Any]:
        return {
            name: (type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
            for name, m in model.named_modules()
        }

    before, modules = copy.deepcopy(model.state_dict()), look()
    gradients = [p.requires_grad for p in model.parameters()]
    yield
    after = model.state_dict()
    assert list(after) == list(before)
    for name, tensor in after.items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7)), name
    assert look() == modules
    assert [p.requires_grad for p in model.parameters()] == gradients


def tensors(model: nn.Module) -> dict[str, Tensor]:
    artifact = from_native(model)
    ranges = {n: torch.tensor([la.scale, la.zero_point]) for n, la in artifact.layers.items()}
    return {**artifact.tensors, **ranges}


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = tensors(first), tensors(second)
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_folder_of_classes_is_the_data_set_of_its_pictures(model, photos) -> None:
    with untouched(model):
        given = quantized(model, photos, images=6, transforms=PRESET)
    dataset = ImageFolder(str(photos), PRESET)
    assert same(given, quantized(model, dataset, images=6))
    assert same(given, quantized(model, str(photos), images=6, transforms=PRESET))
    recipe = from_native(given).info.recipe
    assert recipe["calibration_images"] == 6
    other = quantized(model, photos, images=6, transforms=PRESET, seed=5)
    assert from_native(other).info.recipe["calibration_sha256"] != recipe["calibration_sha256"]


def test_a_flat_folder_is_all_of_its_pictures(model, photos) -> None:
    with untouched(model):
        given = quantized(model, photos / "dark", transforms=PRESET)
    files = sorted((photos / "dark").iterdir())
    images = torch.stack([PRESET(Image.open(file)) for file in files])
    # The order of the images does not matter to an observer of minimum, maximum and counts.
    assert same(given, quantized(model, images))


def test_folders_without_pictures_are_refused(model, photos, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    (photos / "dark" / "9.png").write_bytes(b"no picture either")
    cases: list[tuple[Path, dict, type[Exception], str]] = [
        (tmp_path / "nowhere", {}, ArgumentError, "There is no folder"),
        (tmp_path / "empty", {"transforms": PRESET}, ArgumentError, "holds no pictures"),
        (photos, {}, ArgumentError, "pass transforms="),
        (photos, {"transforms": PRESET}, ImageError, "9.png"),
    ]
    for path, options, error, words in cases:
        with untouched(model), pytest.raises(error, match=words):
            quantized(model, path, **options)


@pytest.mark.parametrize("kind", ["tensor", "loader", "data set", "folder"])
def test_a_single_image_is_warned_of_once(kind: str, model, photos) -> None:
    image = small_images(NAME, 1)
    for file in list((photos / "dark").iterdir())[1:]:
        file.unlink()
    data = {
        "tensor": image,
        "loader": DataLoader(TensorDataset(image)),
        "data set": TensorDataset(image),
        "folder": photos / "dark",
    }[kind]
    with untouched(model), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        int8 = quantized(model, data, transforms=PRESET)
    told = [str(w.message) for w in seen if w.category is QuantizationWarning]
    assert len(told) == 1 and "single image" in told[0]
    assert bool(torch.isfinite(int8(image)).all())


def late(value: float) -> TensorDataset:
    """Returns images of which only the last one, in the last batch, holds a bad value."""
    images = small_images(NAME, 5)
    images[4, 1, 3, 3] = value
    return TensorDataset(images)


@pytest.mark.parametrize("recipe", ["fast", "default", "torchvision"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (late(float("nan")), "not finite"),
        (late(float("-inf")), "not finite"),
        (late(255.0), "raw pixels"),
        (TensorDataset(torch.zeros(4, 1, 32, 32)), "float tensors"),
        (TensorDataset(torch.zeros(4, 3, 32, 32, dtype=torch.uint8)), "evaluation transforms"),
        ([torch.zeros(3, 32, 32), torch.zeros(3, 32, 32)], "float tensors"),
        ([(torch.zeros(3, 32, 32), 0), (torch.zeros(3, 32, 30), 1)], "differ in shape"),
        ([{"image": torch.zeros(3, 32, 32)}] * 2, "dict objects"),
    ],
)
def test_bad_images_in_later_batches(data: Any, words: str, recipe: str, model) -> None:
    with untouched(model), pytest.raises(ArgumentError, match=words):
        quantized(model, data, recipe=recipe, batch_size=2)


@pytest.mark.parametrize("recipe", ["fast", "default", "torchvision"])
def test_images_that_a_model_cannot_take(recipe: str) -> None:
    inception = float_model("inception_v3", num_classes=5)
    with untouched(inception), pytest.raises(ArgumentError, match="cannot process"):
        quantized(inception, torch.zeros(2, 3, 32, 32), recipe=recipe)


def test_a_model_in_train_mode_is_warned_of_and_stays_so(model) -> None:
    images = small_images(NAME, 4)
    wanted = quantized(model, images, recipe="default")
    model.train()
    model.layer1.eval()  # a mixture, as where a part is frozen
    with untouched(model), pytest.warns(QuantizationWarning, match="train mode"):
        given = quantized(model, images, recipe="default")
    assert same(given, wanted) and not given.training


def test_an_int8_model_is_refused(model) -> None:
    images = small_images(NAME, 4)
    int8 = quantized(model, images)
    before = tensors(int8)
    for flow in ("eager", "fx", "pt2e"):
        with pytest.raises(ArgumentError, match="already int8"):
            quantized(int8, images, recipe="default", flow=flow)
    assert all(torch.equal(v, before[k]) for k, v in tensors(int8).items())


class Unfusable(type(float_model(NAME, varied=False))):  # type: ignore[misc]
    """Somebody's own variation, whose blocks fuse_model does not know."""

    def fuse_model(self, is_qat: bool | None = None) -> None:
        raise NotImplementedError("fusing is not written yet")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(512, 512, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(512)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)).relu()


def subclass(model: Any) -> None:
    model.__class__ = Unfusable


def other_block(model: Any) -> None:
    model.layer4[1] = Block().eval()


def missing_block(model: Any) -> None:
    model.layer4[1] = nn.Identity()


def other_norm(model: Any) -> None:
    model.bn1 = nn.GroupNorm(8, 64)


def deep_head(model: Any) -> None:
    model.fc = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 5))


def skipped(model: Any) -> None:
    model.layer4[1].forward = nn.Identity().forward


def not_finite(model: Any) -> None:
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0, 0, 0] = float("nan")


@pytest.mark.parametrize("recipe", ["fast", "default", "torchvision"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (subclass, "Unfusable cannot be fused"),
        (other_block, "'layer4.1.bn1'"),
        (missing_block, "'layer4.1.conv1' is not what resnet18 has there"),
        (other_norm, "cannot be fused"),
        (deep_head, "new head should be one Linear"),
        (skipped, "'layer4.1.conv1' never ran during calibration"),
        (not_finite, "finite"),
    ],
)
def test_changed_models(change: Callable[[Any], None], words: str, recipe: str, model) -> None:
    change(model)
    with untouched(model), pytest.raises(ArgumentError, match=words):
        quantized(model, small_images(NAME, 4), recipe=recipe)


@pytest.mark.parametrize("pattern", ["stage9.*", "layer1.0.conv", "relu", ""])
def test_patterns_that_match_nothing_are_refused(pattern: str, model) -> None:
    for flow in ("eager", "fx", "pt2e"):
        with untouched(model), pytest.raises(ArgumentError, match="matches no layer"):
            options = {"keep_float": ["fc", pattern], "recipe": "default", "flow": flow}
            quantized(model, small_images(NAME, 4), **options)


def test_what_is_no_model_of_the_zoo_is_refused() -> None:
    for other in (nn.Sequential(nn.Conv2d(3, 4, 3)), "resnet18"):
        with pytest.raises(ArtifactError, match="not made by one of qzoo's builders"):
            quantized(other, torch.zeros(2, 3, 32, 32))  # type: ignore[arg-type]
    assert issubclass(ArtifactError, qzoo.QzooError)
