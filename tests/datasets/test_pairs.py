"""Loaders and data sets that give something else than images and labels are told of plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import qzoo
from qzoo.analysis import analyze
from qzoo.datasets.evaluate import evaluate
from qzoo.errors import ArgumentError
from qzoo.quantize import ptq, tune
from tests.helpers.zoo import float_model

pytestmark = pytest.mark.filterwarnings("ignore:tune calibrates and judges on the same images")
X, Y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
MODEL = float_model("shufflenet_v2_x0_5", num_classes=5)
INT8 = ptq(MODEL, X, recipe="fast", progress=False)
PRESET = qzoo.ImageClassification(crop_size=32, resize_size=32)
WAYS: dict[str, Any] = {
    "ptq": lambda data: ptq(MODEL, data, recipe="fast", progress=False),
    "tune": lambda data: tune(MODEL, data, recipe="fast", progress=False),
    "analyze": lambda data: analyze(MODEL, INT8, data, progress=False),
    "evaluate": lambda data: evaluate(INT8, data, progress=False),
}


def loader(give: Any) -> DataLoader[Any]:
    """Returns a loader of batches of two that `give` makes of images and labels."""

    def collate(items: list[tuple[Tensor, Tensor]]) -> Any:
        images, labels = zip(*items, strict=True)
        return give(torch.stack(images), torch.stack(labels))

    return DataLoader(TensorDataset(X, Y), 2, collate_fn=collate)


DICTS = [{"pixel_values": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)]
ARRAYS = [(x.numpy(), int(y)) for x, y in zip(X, Y, strict=True)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (loader(lambda x, y: {"image": x, "label": y}), r"dict objects \('image', 'label'\)"),
        (loader(lambda x, y: (x.numpy(), y.numpy())), "ndarray objects.*torch.from_numpy"),
        (loader(lambda x, y: x.numpy()), "ndarray objects"),
        (loader(lambda x, y: ()), "empty tuples"),
        (DICTS, r"dict objects \('pixel_values', 'labels'\)"),
        (ARRAYS, "ndarray objects"),
    ],
)
def test_what_is_no_tensor_is_named(way: str, data: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        WAYS[way](data)


@pytest.mark.parametrize("way", ["tune", "analyze", "evaluate"])
@pytest.mark.parametrize(
    "give",
    [
        lambda x, y: (x, nn.functional.one_hot(y, 5)),
        lambda x, y: (x, y.float()),
        lambda x, y: (x, [f"class {i}" for i in y]),
        lambda x, y: (x, y[:1]),
    ],
)
def test_labels_are_one_whole_number_each(way: str, give: Any) -> None:
    with pytest.raises(ArgumentError, match="labels of"):
        WAYS[way](loader(give))


def test_accuracy_needs_labels() -> None:
    for data in (loader(lambda x, y: x), loader(lambda x, y: (x,)), list(X)):
        with pytest.raises(ArgumentError, match="without labels"):
            evaluate(INT8, data, progress=False)


@pytest.mark.parametrize(
    "give", [lambda x, y: (x, y.tolist()), lambda x, y: [x, y.numpy().astype(np.int32)]]
)
def test_labels_as_people_have_them(give: Any) -> None:
    assert evaluate(MODEL, loader(give)) == evaluate(MODEL, TensorDataset(X, Y))


@pytest.mark.parametrize("way", ["ptq", "tune", "analyze"])
@pytest.mark.parametrize(("channels", "words"), [(1, "one channel"), (4, "4 channels")])
def test_other_numbers_of_channels_are_not_supported(way: str, channels: int, words: str) -> None:
    images = torch.randn(2, channels, 32, 32)
    with pytest.raises(ArgumentError, match=f"{words}.*not supported"):
        WAYS[way](images)


def test_transforms_that_fail_on_arrays_are_told_of() -> None:
    data = [np.zeros((32, 32, 3), np.uint8)] * 2
    with pytest.raises(ArgumentError, match="ndarray objects"):
        ptq(MODEL, data, transforms=PRESET, recipe="fast", progress=False)
