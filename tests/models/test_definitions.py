"""What graph quantizers ask of a definition, and fusion."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic.qat import ConvBn2d, ConvBnReLU2d
from torch.overrides import TorchFunctionMode

import qzoo
from tests.helpers.zoo import BUILDERS, WITH_AUX, float_model, quiet, small_images

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU)
ACTIVATION_FUNCTIONS = {
    nn.functional.relu, nn.functional.relu_, nn.functional.relu6, nn.functional.hardtanh,
    nn.functional.hardswish, nn.functional.hardsigmoid, nn.functional.sigmoid,
    nn.functional.silu, torch.relu, torch.relu_, torch.sigmoid,
    Tensor.relu, Tensor.relu_, Tensor.sigmoid, Tensor.clamp,
}  # fmt: skip


def test_the_zoo_has_the_builders_that_the_tests_cover() -> None:
    assert sorted(BUILDERS) == qzoo.list_models()


class _LooseActivations(TorchFunctionMode):
    """Lists the activation functions that no activation module or FloatFunctional called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ACTIVATION_FUNCTIONS:
            files: list[str] = []
            frame: FrameType | None = sys._getframe(1)
            while frame is not None:
                files.append(frame.f_code.co_filename)
                frame = frame.f_back
            if not any(f.endswith(("activation.py", "functional_modules.py")) for f in files):
                self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", BUILDERS)
def test_every_activation_call_has_its_own_module(name: str) -> None:
    model = float_model(name, varied=False, slim=True)
    calls: Counter[str] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, ACTIVATIONS):
            module.register_forward_hook(lambda *_, path=path: calls.update([path]))
    for training in (False, True):
        calls.clear()
        loose = _LooseActivations()
        with torch.no_grad(), loose:
            model.train(training)(small_images(name))
        assert set(calls.values()) == {1}
        assert not loose.found


@pytest.mark.parametrize("name", BUILDERS)
def test_fusing_for_ptq_folds_every_batch_norm(name: str) -> None:
    model, images = float_model(name), small_images(name)
    with torch.no_grad():
        expected = model(images)
        model.fuse_model()
        fused = model(images)
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(fused, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("training", [False, True])
def test_the_fused_form_can_be_asked_for(training: bool) -> None:
    model = float_model("resnet18").train(training)
    model.fuse_model(is_qat=training)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) is training


@pytest.mark.parametrize("name", BUILDERS)
def test_fusing_for_qat_keeps_batch_norm_trainable(name: str) -> None:
    model, images = float_model(name, slim=True), small_images(name)
    with torch.no_grad():
        expected = model(images)
        model.train().fuse_model()
        fused = model.eval()(images)
    assert torch.equal(fused, expected)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    inside = [m for m in model.modules() if type(m).__name__ in ("ConvBn2d", "ConvBnReLU2d")]
    assert len(norms) == len(inside)


def test_prepared_for_qat_a_fused_group_is_one_module() -> None:
    model = float_model("resnet18").train()
    model.fuse_model(is_qat=True)
    model.qconfig = qzoo.BACKENDS["x86"].qat_qconfig()
    with quiet():
        prepared = torch.ao.quantization.prepare_qat(model)
    assert type(prepared.conv1) is ConvBnReLU2d
    assert type(prepared.layer1[0].conv2) is ConvBn2d


@pytest.mark.parametrize("name", WITH_AUX)
def test_auxiliary_classifiers_run_in_training_only(name: str) -> None:
    model = float_model(name, varied=False, aux_logits=True)
    images = small_images(name)
    if name == "inception_v3":
        images = torch.randn(2, 3, 299, 299)
    with torch.no_grad():
        assert model(images).shape == (2, 1000)
        outputs = model.train()(images)
    assert [o.shape for o in outputs] == [(2, 1000)] * len(outputs)
    # The names are those of torchvision's float models: GoogLeNet's second field is aux2.
    fields = {"googlenet": ("logits", "aux_logits2", "aux_logits1"),
              "inception_v3": ("logits", "aux_logits")}  # fmt: skip
    assert outputs._fields == fields[name]


def test_googlenets_auxiliary_outputs_are_not_swapped() -> None:
    model = float_model("googlenet", varied=False, dropout_aux=0.0).train()
    seen: dict[str, Tensor] = {}
    model.aux1.register_forward_hook(lambda *args: seen.update(aux1=args[-1]))
    model.aux2.register_forward_hook(lambda *args: seen.update(aux2=args[-1]))
    with torch.no_grad():
        outputs = model(small_images("googlenet"))
    assert torch.equal(outputs.aux_logits1, seen["aux1"])
    assert torch.equal(outputs.aux_logits2, seen["aux2"])


@pytest.mark.parametrize("name", BUILDERS)
def test_float_model_exports(name: str) -> None:
    model, images = float_model(name, slim=True), small_images(name)
    exported = torch.export.export(model, (images,)).module(check_guards=False)
    with torch.no_grad():
        torch.testing.assert_close(exported(images), model(images))


def test_a_copy_of_a_float_model_is_independent() -> None:
    model = float_model("resnet18")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.fc.weight.zero_()
    assert float(model.fc.weight.detach().abs().sum()) > 0
