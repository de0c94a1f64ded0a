"""What the tests of documented snippets share: models, loaders, and what int8 must mean.

The snippets are those of PyTorch's, torchao's and torchvision's documentation: the same calls in
the same order. Only imports, the line that builds the model, sizes and data are changed, and
`print` lines left out. Each test names its document.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import quantized as nnq
from torch.utils.data import DataLoader

from tests.helpers import trained, zoo

ENGINE = "x86" if "x86" in zoo.ENGINES else zoo.ENGINES[0]


@functools.cache
def _digits(split: str, count: int) -> tuple[Tensor, Tensor]:
    items = trained.digits(split, trained.digits_model("shufflenet_v2_x0_5"), count)
    pictures, labels = zip(*items, strict=True)
    return torch.stack(pictures), torch.tensor(labels)


def digits(split: str = "test", count: int = 64, side: int = 64) -> tuple[Tensor, Tensor]:
    """Returns normalized digits [count, 3, side, side] of all classes, and their labels."""
    pictures, labels = _digits(split, count)
    if side != 64:
        pictures = nn.functional.interpolate(pictures, size=(side, side), mode="bilinear")
    return pictures, labels


def loader(split: str, count: int, batch: int, side: int = 64) -> DataLoader[Any]:
    """Returns batches of digits and labels; the order is fixed, so that runs are comparable."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    pictures, labels = digits(split, count, side)
    return DataLoader([(pictures[i], labels[i]) for i in order], batch_size=batch)


def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the share of right answers, in percent."""
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).float().mean())


def sqnr_db(given: Tensor, wanted: Tensor) -> float:
    """Returns how far `given` stands above its own error, in decibel."""
    noise = (given - wanted).square().mean()
    return 10 * float(torch.log10(wanted.square().mean() / noise))


def assert_int8(model: nn.Module, layers: int | None = None) -> None:
    """Checks that every convolution and linear layer holds int8 weights, and none is float."""
    left = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert not left, f"still float: {left}"
    quantized = [m for m in model.modules() if isinstance(m, (nnq.Conv2d, nnq.Linear))]
    assert quantized and layers in (None, len(quantized))
    for module in quantized:
        assert module.weight().dtype is torch.qint8


def weighted_layers(model: nn.Module) -> int:
    """Returns how many convolutions and linear layers a float model has."""
    return sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
