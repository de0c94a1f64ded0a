"""PyTorch's page "Quantization" and its tutorial on static quantization, in eager mode."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qzoo
from qzoo import mobilenet_v2, resnet18
from tests.helpers import snippets as cases
from tests.helpers import trained, zoo

criterion = nn.CrossEntropyLoss()
#: Of a MobileNetV2 with four blocks in the place of seventeen.
SMALL: dict[str, Any] = {
    "num_classes": 10,
    "inverted_residual_setting": [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]],
}


def resnet18_groups(model: nn.Module) -> list[list[str]]:
    """Lists what users of `fuse_modules` write out by hand for a ResNet-18."""
    groups = [["conv1", "bn1", "relu"]]
    for name, _module in model.named_modules():
        if name.endswith(".relu"):
            block = name.removesuffix(".relu")
            groups += [[f"{block}.conv1", f"{block}.bn1", name], [f"{block}.conv2", f"{block}.bn2"]]
        elif name.endswith(".downsample"):
            groups.append([f"{name}.0", f"{name}.1"])
    return groups


def test_ptq_of_the_quantization_page() -> None:
    """https://docs.pytorch.org/docs/2.7/quantization.html, "Post Training Static Quantization"."""
    model_fp32 = zoo.vary(resnet18(num_classes=10))
    input_fp32, _ = cases.digits(count=16, side=32)
    with zoo.engine(cases.ENGINE), zoo.quiet(), torch.no_grad():
        model_fp32.eval()
        model_fp32.qconfig = torch.ao.quantization.get_default_qconfig("x86")
        groups = resnet18_groups(model_fp32)
        model_fp32_fused = torch.ao.quantization.fuse_modules(model_fp32, groups)
        model_fp32_prepared = torch.ao.quantization.prepare(model_fp32_fused)
        model_fp32_prepared(input_fp32)
        model_int8 = torch.ao.quantization.convert(model_fp32_prepared)
        res = model_int8(input_fp32)

        cases.assert_int8(model_int8, cases.weighted_layers(model_fp32))
        assert cases.sqnr_db(res, model_fp32(input_fp32)) > 15
        # The zoo's fuse_model fuses the same groups, so the answers are the same to the bit.
        mine = zoo.eager_ptq(model_fp32, input_fp32, "x86")
        assert torch.equal(mine(input_fp32), res)
        assert torch.equal(qzoo.compile(model_int8, runtime="torch")(input_fp32), res)


def test_qat_of_the_quantization_page(tmp_path: Path) -> None:
    """The same page, "Quantization Aware Training for Static Quantization"."""
    model_fp32 = trained.digits_model("shufflenet_v2_x0_5")
    images, labels = cases.digits(count=128)
    float_top1 = cases.top1(model_fp32, images, labels)
    assert float_top1 > 95  # what the model has learned to lose
    with zoo.engine(cases.ENGINE), zoo.quiet():
        model_fp32.eval()
        model_fp32.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
        model_fp32.train()
        model_fp32.fuse_model(is_qat=True)
        model_fp32_prepared = torch.ao.quantization.prepare_qat(model_fp32.train())

        # The page's training loop is "not shown". This model's batch norms stand for trained ones.
        model_fp32_prepared.apply(torch.nn.intrinsic.qat.freeze_bn_stats)
        optimizer = torch.optim.SGD(model_fp32_prepared.parameters(), lr=1e-3)
        for image, target in cases.loader("train", 64, 16):
            optimizer.zero_grad()
            criterion(model_fp32_prepared(image), target).backward()
            optimizer.step()

        model_fp32_prepared.eval()
        model_int8 = torch.ao.quantization.convert(model_fp32_prepared)
        cases.assert_int8(model_int8)
        assert cases.top1(model_int8, images, labels) > float_top1 - 3
        with torch.no_grad():
            wanted, given = model_fp32_prepared(images), model_int8(images)
        assert cases.sqnr_db(given, wanted) > 20  # int8 is what was trained for
        qzoo.save(model_int8, tmp_path / "qat.safetensors")
        again = qzoo.load(tmp_path / "qat.safetensors")
        with torch.no_grad():
            assert torch.equal(again(images), given)


# What follows is https://docs.pytorch.org/tutorials/advanced/static_quantization_tutorial.html


def evaluate(model: nn.Module, criterion: Any, data_loader: Any, neval_batches: int) -> float:
    """The tutorial's function, without its meters."""
    model.eval()
    right = count = 0
    with torch.no_grad():
        for done, (image, target) in enumerate(data_loader, 1):
            output = model(image)
            criterion(output, target)
            right += int((output.argmax(1) == target).sum())
            count += len(target)
            if done >= neval_batches:
                break
    return 100 * right / count


def train_one_epoch(
    model: nn.Module,
    criterion: Any,
    optimizer: Any,
    data_loader: Any,
    device: torch.device,
    ntrain_batches: int,
) -> float:
    """The tutorial's function, without its meters; returns the mean loss."""
    model.train()
    losses = []
    for done, (image, target) in enumerate(data_loader, 1):
        image, target = image.to(device), target.to(device)
        output = model(image)
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if done >= ntrain_batches:
            break
    return sum(losses) / len(losses)


@pytest.fixture
def float_model_file(tmp_path: Path) -> Path:
    """The file that the tutorial downloads: a state dict of floats."""
    path = tmp_path / "mobilenet_pretrained_float.pth"
    torch.save(zoo.vary(mobilenet_v2(**SMALL)).state_dict(), path)
    return path


def load_model(model_file: Path) -> Any:
    """The tutorial's function; the first line is the builder."""
    model = mobilenet_v2(**SMALL)
    state_dict = torch.load(model_file)
    model.load_state_dict(state_dict)
    model.to("cpu")
    return model


@pytest.mark.parametrize("config", ["default_qconfig", "x86"])
def test_ptq_of_the_static_tutorial(config: str, float_model_file: Path) -> None:
    """Section 4: first with one scale per weight, then with one per channel."""
    data_loader, data_loader_test = cases.loader("train", 48, 16, 32), cases.loader("test", 32, 16)
    scripted_file = str(float_model_file.with_name("scripted_quantized.pth"))
    images, _ = next(iter(data_loader))
    with zoo.engine(cases.ENGINE), zoo.quiet():
        float_model = load_model(float_model_file).to("cpu")
        float_model.eval()
        float_model.fuse_model()
        with torch.no_grad():
            wanted = float_model(images)

        my_model = load_model(float_model_file).to("cpu")
        my_model.eval()
        my_model.fuse_model()
        if config == "default_qconfig":
            my_model.qconfig = torch.ao.quantization.default_qconfig
        else:
            my_model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
        torch.ao.quantization.prepare(my_model, inplace=True)
        evaluate(my_model, criterion, data_loader, neval_batches=3)
        torch.ao.quantization.convert(my_model, inplace=True)
        evaluate(my_model, criterion, data_loader_test, neval_batches=2)
        torch.jit.save(torch.jit.script(my_model), scripted_file)
        with torch.no_grad():
            given, scripted = my_model(images), torch.jit.load(scripted_file)(images)

    # The tutorial prints this block before and after: fused, then int8.
    assert [type(m).__name__ for m in my_model.features[1].conv][-2:] == ["Conv2d", "Identity"]
    cases.assert_int8(my_model, cases.weighted_layers(float_model))
    per_channel = my_model.features[0][0].weight().qscheme() is torch.per_channel_affine
    assert per_channel == (config == "x86")
    assert cases.sqnr_db(given, wanted) > (15 if per_channel else 5)
    assert torch.equal(scripted, given)
    qzoo.save(my_model, float_model_file.with_name("mine.safetensors"))
    stored = qzoo.Artifact.read(float_model_file.with_name("mine.safetensors"))
    assert stored.info.builder_kwargs == SMALL
    with torch.no_grad(), zoo.engine(cases.ENGINE):
        again = qzoo.load(float_model_file.with_name("mine.safetensors"))
        assert cases.sqnr_db(again(images), given) > 40


def test_qat_of_the_static_tutorial(float_model_file: Path, tmp_path: Path) -> None:
    """Section 5, with both freezes; three epochs instead of eight."""
    data_loader, data_loader_test = cases.loader("train", 48, 16, 32), cases.loader("test", 32, 16)
    losses = []
    with zoo.engine(cases.ENGINE), zoo.quiet():
        qat_model = load_model(float_model_file)
        qat_model.fuse_model(is_qat=True)
        optimizer = torch.optim.SGD(qat_model.parameters(), lr=0.01)
        qat_model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
        torch.ao.quantization.prepare_qat(qat_model, inplace=True)
        for nepoch in range(3):
            cpu = torch.device("cpu")
            losses.append(train_one_epoch(qat_model, criterion, optimizer, data_loader, cpu, 3))
            if nepoch > 1:
                qat_model.apply(torch.ao.quantization.disable_observer)
            if nepoch > 0:
                qat_model.apply(torch.nn.intrinsic.qat.freeze_bn_stats)
            quantized_model = torch.ao.quantization.convert(qat_model.eval(), inplace=False)
            quantized_model.eval()
            evaluate(quantized_model, criterion, data_loader_test, neval_batches=2)

        assert losses[-1] < losses[0]
        observers = [m for m in qat_model.modules() if hasattr(m, "observer_enabled")]
        assert observers and not any(int(m.observer_enabled) for m in observers)
        frozen = copy.deepcopy(qat_model.features[0][0].bn.running_mean)
        train_one_epoch(qat_model, criterion, optimizer, data_loader, cpu, 1)
        assert torch.equal(qat_model.features[0][0].bn.running_mean, frozen)

        cases.assert_int8(quantized_model)
        images, _ = cases.digits(count=16, side=32)
        with torch.no_grad():
            wanted = quantized_model(images)
        qzoo.save(quantized_model, tmp_path / "qat.safetensors")
        with torch.no_grad():
            assert torch.equal(qzoo.load(tmp_path / "qat.safetensors")(images), wanted)
