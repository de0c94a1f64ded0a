"""What an int8 model computes is what the float model computed; edited models are refused."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from qzoo.analysis import analyze
from qzoo.errors import ArgumentError
from qzoo.quantize import ptq, qat, tune
from tests.helpers.zoo import float_model, small_images

IMAGES = small_images("resnet18", 4)


@pytest.fixture(scope="module")
def fresh() -> dict[str, nn.Module]:
    names = ("resnet18", "mobilenet_v3_small", "googlenet")
    return {name: float_model(name, num_classes=5) for name in names}


@pytest.fixture
def models(fresh: dict[str, nn.Module]) -> dict[str, Any]:
    return copy.deepcopy(fresh)


def fast(model: nn.Module, **options: Any) -> nn.Module:
    return ptq(model, IMAGES, **{"recipe": "fast", "progress": False, **options})


def put(name: str, module: nn.Module) -> Callable[[Any], None]:
    """Returns an edit that replaces a module, in eval mode."""

    def change(model: Any) -> None:
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = module.eval()

    return change


def hooked(name: str, hook: Any, before: bool = False) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        module = model.get_submodule(name)
        (module.register_forward_pre_hook if before else module.register_forward_hook)(hook)

    return change


def own_forward(name: str, function: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        module = model.get_submodule(name)
        module.forward = types.MethodType(function, module)

    return change


def set_to(name: str, attribute: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model.get_submodule(name), attribute, value)


class OtherResNet(type(float_model("resnet18", varied=False))):  # type: ignore[misc]
    """Somebody's own forward pass over the builder's modules."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1))


class Leaky(nn.ReLU):
    """A subclass that passes for its base in every check of types."""

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input, 0.1)


def computed_weight(old: bool) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        if old:
            prune.l1_unstructured(model.layer2[0].conv1, "weight", 0.3)
        else:
            nn.utils.parametrizations.spectral_norm(model.layer2[0].conv1)

    return change


REFUSED: list[Any] = [
    ("resnet18", put("maxpool", nn.Sequential()), "'maxpool'"),
    ("resnet18", put("maxpool", nn.MaxPool2d(2, 2)), "'maxpool'"),
    ("resnet18", put("maxpool", nn.AvgPool2d(3, 2, 1)), "'maxpool'"),
    ("resnet18", put("maxpool", nn.MaxPool2d(3, 2, 1, ceil_mode=True)), "'maxpool'"),
    ("resnet18", put("avgpool", nn.AdaptiveMaxPool2d(1)), "'avgpool'"),
    ("resnet18", put("avgpool", nn.Identity()), "'avgpool'"),
    ("resnet18", put("relu", nn.SiLU()), "'relu'"),
    ("resnet18", put("layer1.0.relu", nn.LeakyReLU()), "'layer1.0.relu'"),
    ("resnet18", put("layer2.1.relu", Leaky()), "'layer2.1.relu'"),
    ("resnet18", put("layer4", nn.Identity()), "'layer4.0.conv1'"),
    ("resnet18", put("bn1", nn.GroupNorm(8, 64)), "'bn1'"),
    ("resnet18", put("fc", nn.Identity()), "'fc'"),
    ("resnet18", put("fc", nn.Sequential(nn.Linear(512, 5), nn.ReLU())), "'fc'"),
    ("resnet18", lambda m: m.layer1.append(nn.Hardswish()), "'layer1.2'"),
    ("resnet18", lambda m: setattr(m, "extra", nn.Conv2d(3, 3, 1)), "'extra'"),
    ("resnet18", set_to("layer1.0.conv1", "padding_mode", "reflect"), "'layer1.0.conv1'"),
    ("resnet18", set_to("layer1.0.conv1", "stride", (2, 2)), "'layer1.0.conv1'"),
    ("resnet18", lambda m: setattr(m, "__class__", OtherResNet), "'quant'"),
    ("resnet18", hooked("layer1", lambda m, i, out: out * 1.01), "'layer1.1"),
    ("resnet18", hooked("conv1", lambda m, i: (2 * i[0],), before=True), "'conv1'"),
    (
        "resnet18",
        hooked("layer3.0.add_relu.activation_post_process", lambda m, i, o: o + 1),
        "'layer3.0.add_relu'",
    ),
    ("resnet18", own_forward("layer1.0", lambda self, x: 2 * self.conv1(x)), "'layer1.0.conv2'"),
    ("resnet18", computed_weight(old=True), "'layer2.0.conv1'"),
    ("resnet18", computed_weight(old=False), "'layer2.0.conv1'"),
    ("mobilenet_v3_small", put("features.0.2", nn.SiLU()), "'features.0.2'"),
    ("mobilenet_v3_small", put("features.0.2", nn.ReLU()), "'features.0.2'"),
    ("mobilenet_v3_small", put("features.1.block.1.scale_activation", nn.Sigmoid()), "activation'"),
    ("mobilenet_v3_small", put("avgpool", nn.AdaptiveMaxPool2d(1)), "'avgpool'"),
    ("mobilenet_v3_small", put("classifier.3", nn.Identity()), "'classifier.3'"),
    ("googlenet", set_to("", "transform_input", True), "'quant'"),
    ("googlenet", put("inception3a.branch4.0", nn.AvgPool2d(3, 1, 1)), "'inception3a.branch4.0'"),
]


@pytest.mark.parametrize(("name", "change", "place"), REFUSED)
def test_edits_that_change_answers_are_refused_with_their_place(
    name: str, change: Callable[[Any], None], place: str, models: dict[str, Any]
) -> None:
    change(models[name])
    with pytest.raises(ArgumentError, match=place.replace(".", r"\.")):
        fast(models[name])


ACCEPTED: list[Any] = [
    ("resnet18", put("relu", nn.ReLU(inplace=True))),
    ("resnet18", put("maxpool", nn.MaxPool2d((3, 3), (2, 2), (1, 1)))),
    ("resnet18", put("avgpool", nn.AdaptiveAvgPool2d(1))),
    ("resnet18", put("fc", nn.Linear(512, 7))),
    ("resnet18", set_to("bn1", "eps", 0.3)),
    ("resnet18", hooked("layer1", lambda m, i, out: None)),
    ("resnet18", own_forward("layer1.0", lambda self, x: type(self).forward(self, x))),
    ("resnet18", lambda m: m.to(memory_format=torch.channels_last)),
    ("resnet18", lambda m: m.double()),
    ("mobilenet_v3_small", put("classifier.2", nn.Dropout(0.7))),
    ("mobilenet_v3_small", put("classifier.2", nn.Identity())),
]


@pytest.mark.parametrize(("name", "change"), ACCEPTED)
def test_edits_that_change_no_answer_are_quantized(
    name: str, change: Callable[[Any], None], models: dict[str, Any]
) -> None:
    change(models[name])
    model = models[name]
    int8 = fast(model, backend="onednn")
    with torch.no_grad():
        wanted = model(IMAGES.to(next(model.parameters()).dtype)).float()
        given = int8(IMAGES)
    assert float((given - wanted).norm() / wanted.norm()) < 0.2


@pytest.mark.parametrize(
    "quantize",
    [
        lambda m: fast(m, recipe="torchvision"),
        lambda m: fast(m, recipe="default", flow="fx"),
        lambda m: fast(m, recipe="default", flow="pt2e"),
        lambda m: qat.prepare(m),
        lambda m: qat.prepare(m, data=IMAGES, batch_norm="keep"),
        lambda m: qat.prepare(m, data=IMAGES, flow="pt2e"),
        lambda m: tune(m, IMAGES, test_data=IMAGES, recipe="fast", progress=False),
    ],
)
def test_every_way_to_int8_refuses_them(
    quantize: Callable[[Any], Any], models: dict[str, Any]
) -> None:
    models["resnet18"].maxpool = nn.MaxPool2d(2, 2)
    with pytest.raises(ArgumentError, match="'maxpool'"):
        quantize(models["resnet18"])


def test_an_int8_model_is_not_analyzed_beside_an_edited_float_model(models) -> None:
    model = models["resnet18"]
    int8 = fast(model)
    model.maxpool = nn.MaxPool2d(2, 2)
    with pytest.raises(ArgumentError, match="'maxpool'"):
        analyze(model, int8, IMAGES, progress=False)


def test_functions_that_were_replaced_are_noticed(models, monkeypatch) -> None:
    relu = F.relu
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: relu(x) - 0.1 * relu(-x))
    with pytest.raises(ArgumentError, match="computes something else"):
        fast(models["resnet18"])


def test_sums_that_cancel_out_are_no_edit(models) -> None:
    """A batch norm with a large mean and next to no variance leaves few digits of float32."""
    norm = models["resnet18"].layer1[0].bn1
    with torch.no_grad():
        norm.running_mean.fill_(300.0)
        models["resnet18"].layer1[0].conv1.weight.add_(1.0)
        norm.running_var.fill_(1e-9)
    fast(models["resnet18"])


def test_a_models_own_dropout_is_trained_with(models) -> None:
    models["mobilenet_v3_small"].classifier[2].p = 0.5
    trained = qat.prepare(models["mobilenet_v3_small"])
    assert [m.p for m in trained.modules() if isinstance(m, nn.Dropout)] == [0.5]


def test_errors_of_the_users_own_code_are_told(models) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("no such feature")

    models["resnet18"].fc.register_forward_hook(fail)
    with pytest.raises(ArgumentError, match=r"itself fails.*KeyError"):
        fast(models["resnet18"])
