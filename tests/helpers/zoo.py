"""What the tests of the models share: the builders, small inputs, models with varied numbers."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    convert,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
)

import qzoo

#: torchvision's twelve quantizable models.
TORCHVISION = (
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "resnet18",
    "resnet50",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
)
#: What torchvision lacks.
OWN = (
    "mobilenet_v3_small",
    "resnet34",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
BUILDERS = TORCHVISION + OWN
#: Builders whose model has auxiliary classifiers in training.
WITH_AUX = ("googlenet", "inception_v3")
#: One builder of each definition.
DEFINITIONS = (
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x1_0",
)
#: Keywords that make the largest models narrow: as deep, with the same blocks, ten times faster.
SLIM = {
    "resnet101": {"width_per_group": 8},
    "resnet152": {"width_per_group": 8},
    "resnext101_32x8d": {"width_per_group": 1},
    "resnext101_64x4d": {"width_per_group": 1},
    "wide_resnet50_2": {"width_per_group": 16},
    "wide_resnet101_2": {"width_per_group": 16},
}
ENGINES = tuple(qzoo.backends.available_engines())


def by_definition(names: Sequence[str] = BUILDERS) -> list[Any]:
    """Returns parameters for tests of all builders; one of a definition runs by default.

    The others of its definition differ from it in numbers of blocks and channels alone; they run
    among the extended tests.
    """
    return [n if n in DEFINITIONS else pytest.param(n, marks=pytest.mark.extended) for n in names]


def with_large(names: Sequence[str]) -> list[Any]:
    """Returns parameters for tests of many builders; the largest run among the extended tests."""
    return [pytest.param(n, marks=pytest.mark.extended) if n in SLIM else n for n in names]


def small_images(name: str, batch: int = 2) -> Tensor:
    """Returns the smallest batch that the model takes, [batch, 3, H, W], from a seed of its own."""
    side = 75 if name == "inception_v3" else 32
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, side, side, generator=generator)


def float_model(name: str, varied: bool = True, slim: bool = False, **kwargs: Any) -> nn.Module:
    """Returns the float model in eval mode.

    Inception's auxiliary classifier is left out unless asked for: it takes 299 pixels to run.

    Args:
        name: The builder's name.
        varied: Whether to give it batch norm statistics that are worth folding.
        slim: Whether the largest models may be narrow ones.
        **kwargs: The builder's keywords.
    """
    kwargs = {**(SLIM.get(name, {}) if slim else {}), **kwargs}
    if name in WITH_AUX:
        kwargs = {"init_weights": False, "aux_logits": name == "googlenet", **kwargs}
    model = qzoo.get_model(name, **kwargs)
    return (vary(model) if varied else model).eval()


def vary(model: nn.Module) -> nn.Module:
    """Gives every batch norm random statistics and parameters, in place."""
    generator = torch.Generator().manual_seed(2)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(uniform(module.running_mean, -0.2, 0.2))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
                module.weight.copy_(uniform(module.weight, 0.4, 0.9))
                module.bias.copy_(uniform(module.bias, -0.2, 0.2))
    return model


def eager_ptq(model: nn.Module, images: Tensor, backend: str = "x86") -> nn.Module:
    """Quantizes a copy of a quantizable model as PyTorch's own tutorial does."""
    model = copy.deepcopy(model).eval()
    model.fuse_model()  # type: ignore[operator]
    model.qconfig = get_default_qconfig(backend)  # type: ignore[assignment]
    with engine(backend), quiet(), torch.no_grad():
        prepare(model, inplace=True)
        model(images)
        return convert(model, inplace=True)


def eager_qat(model: nn.Module, images: Tensor, backend: str = "x86") -> nn.Module:
    """Trains a copy of a quantizable model for one step as PyTorch's own tutorial does."""
    model = copy.deepcopy(model).train()
    model.fuse_model()  # type: ignore[operator]
    model.qconfig = get_default_qat_qconfig(backend)  # type: ignore[assignment]
    with engine(backend), quiet():
        prepare_qat(model, inplace=True)
        outputs = model(images)
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        loss = nn.functional.cross_entropy(logits, torch.arange(len(logits)))
        if not isinstance(outputs, Tensor):
            loss = loss + sum(o.square().mean() for o in outputs[1:] if o is not None)
        loss.backward()
        missing = [n for n, p in model.named_parameters() if p.grad is None]
        assert not missing, f"no gradient reaches {missing}"
        torch.optim.SGD(model.parameters(), 1e-3).step()
        return convert(model.eval(), inplace=True)


def on_one_grid(artifact: qzoo.Artifact) -> qzoo.Artifact:
    """Returns the artifact with one grid for the outputs of all convolutions and functionals."""
    layers = {
        name: dataclasses.replace(layer, scale=0.05, zero_point=0)
        if layer.op in ("conv2d", "functional")
        else layer
        for name, layer in artifact.layers.items()
    }
    return dataclasses.replace(artifact, layers=layers)


def same_in_threads(model: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Returns whether eight threads at once get for single images what one got for the batch."""
    expected = model(images)

    def work(start: int) -> bool:
        places = [(start + n) % len(images) for n in range(5)]
        return all(torch.equal(model(images[i : i + 1]), expected[i : i + 1]) for i in places)

    with ThreadPoolExecutor(8) as pool:
        return all(pool.map(work, range(8)))


@contextlib.contextmanager
def engine(name: str) -> Iterator[None]:
    """Selects PyTorch's quantized engine, as users of PyTorch do, for one block."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings of PyTorch's and torchvision's own flows, which are not under test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def uncalibrated(name: str, **kwargs: Any) -> nn.Module:
    """Returns the int8 model with random weights, without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qzoo.UncalibratedWarning)
        return qzoo.get_model(name, quantize=True, **kwargs)


def calibrated(
    name: str, images: int = 4, size: int = 64, slim: bool = False
) -> tuple[Any, Tensor]:
    """Returns an artifact for oneDNN and the images that it was calibrated with.

    Args:
        name: The model.
        images: How many.
        size: Their height and width in pixels; inception_v3 takes 75 at least.
        slim: Whether the largest models may be narrow ones.
    """
    size = 75 if name == "inception_v3" else size
    x = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(5))
    kwargs = {"aux_logits": False} if name in WITH_AUX else {}
    return qzoo.as_artifact(eager_ptq(float_model(name, slim=slim, **kwargs), x, "onednn")), x
