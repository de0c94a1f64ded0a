"""torchvision's page on quantized models and its script; the transfer-learning tutorial."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader

import qzoo
import qzoo as models  # the tutorial's `import torchvision.models.quantization as models`
from qzoo import ShuffleNet_V2_X0_5_QuantizedWeights, shufflenet_v2_x0_5
from qzoo.datasets.digits import Digits
from qzoo.native.model import from_native
from qzoo.sharing.convert import convert_checkpoint
from tests.helpers import snippets as cases
from tests.helpers import trained, zoo


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
@pytest.mark.parametrize("index", [3, 77, 400])
def test_models_page(index: int, tmp_path: Path) -> None:
    """https://docs.pytorch.org/vision/stable/models.html, "Quantized models".

    With weights that come with the package, in the place of ResNet50_QuantizedWeights.DEFAULT.
    """
    from torchvision.io import read_image

    picture, label = Digits("test")[index]
    picture.save(tmp_path / "digit.png")
    img = read_image(str(tmp_path / "digit.png"))

    weights = ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1
    model = shufflenet_v2_x0_5(weights=weights, quantize=True)
    model.eval()
    preprocess = weights.transforms()
    batch = preprocess(img).unsqueeze(0)
    prediction = model(batch).squeeze(0).softmax(0)
    class_id = prediction.argmax().item()
    score = prediction[class_id].item()
    category_name = weights.meta["categories"][class_id]

    assert category_name == str(label) and score > 0.5
    cases.assert_int8(model)


@pytest.mark.parametrize("quantize", [False, True])
def test_the_spelling_before_weights(quantize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pretrained=`, which older tutorials use, means the weights that it means in torchvision."""
    asked = []

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        asked.append(f"{type(self).__name__}.{self.name}")
        raise qzoo.DownloadError("no network here")

    monkeypatch.setattr("qzoo.weights.QuantizedWeightsEnum.artifact", refuse)
    monkeypatch.setattr("qzoo.models._build.float_state_dict", refuse)
    with pytest.raises(qzoo.DownloadError), pytest.warns(FutureWarning, match="IMAGENET1K_.*V1"):
        models.resnet50(pretrained=True, progress=True, quantize=quantize)
    old = "QuantizedWeights.IMAGENET1K_FBGEMM_V1" if quantize else "Weights.IMAGENET1K_V1"
    assert asked == [f"ResNet50_{old}"]
    with pytest.warns(FutureWarning, match="weights=None"):
        models.resnet18(pretrained=False, num_classes=2)
    with pytest.raises(qzoo.ArgumentError, match="weights='DEFAULT' alone"):
        models.resnet18(pretrained=True, weights="DEFAULT")
    with pytest.raises(qzoo.ArgumentError, match="Nobody has published"):
        models.resnet34(pretrained=True, quantize=True)


# What follows is torchvision's references/classification/train_quantization.py, its core.


def test_post_training_quantize_of_the_script(tmp_path: Path) -> None:
    """--post-training-quantize, whose file torchvision's and qzoo's builders load."""
    model = trained.digits_model("shufflenet_v2_x0_5")
    images, labels = cases.digits(count=128)
    float_top1 = cases.top1(model, images, labels)
    saved = tmp_path / "quantized_post_train_model.pth"
    with zoo.engine(cases.ENGINE), zoo.quiet():
        model.eval()
        model.fuse_model(is_qat=False)
        model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
        torch.ao.quantization.prepare(model, inplace=True)
        with torch.inference_mode():
            for image, _target in cases.loader("train", 64, 32):
                model(image)
        torch.ao.quantization.convert(model, inplace=True)
        torch.save(model.state_dict(), saved)

        cases.assert_int8(model)
        assert float_top1 > 95 and cases.top1(model, images, labels) >= float_top1 - 2
        # What the script's users do next: build with quantize=True, load the file.
        again = shufflenet_v2_x0_5(quantize=True, num_classes=10, backend="x86")
        again.load_state_dict(torch.load(saved, weights_only=False))
        with torch.no_grad():
            wanted = model(images)
            assert torch.equal(again(images), wanted)
    artifact = convert_checkpoint(saved, model="shufflenet_v2_x0_5", backend="x86")
    with torch.no_grad():
        assert torch.equal(qzoo.native.model.to_native(artifact)(images), wanted)


def test_qat_of_the_script(tmp_path: Path) -> None:
    """Training, whose checkpoint holds the int8 model under "eval_model"."""
    model = trained.digits_model("shufflenet_v2_x0_5")
    images, labels = cases.digits(count=64)
    float_top1 = cases.top1(model, images, labels)
    criterion = nn.CrossEntropyLoss()
    num_observer_update_epochs, num_batch_norm_update_epochs = 1, 0
    with zoo.engine(cases.ENGINE), zoo.quiet():
        model.fuse_model(is_qat=True)
        model.train()
        model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
        torch.ao.quantization.prepare_qat(model, inplace=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0001, momentum=0.9, weight_decay=1e-4)
        lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
        model.apply(torch.ao.quantization.enable_observer)
        model.apply(torch.ao.quantization.enable_fake_quant)
        # This model's batch norms stand for trained ones, so they are frozen from the start.
        model.apply(torch.nn.intrinsic.qat.freeze_bn_stats)
        for epoch in range(2):
            for image, target in cases.loader("train", 32, 16):
                loss = criterion(model(image), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            lr_scheduler.step()
            with torch.inference_mode():
                if epoch >= num_observer_update_epochs:
                    model.apply(torch.ao.quantization.disable_observer)
                if epoch >= num_batch_norm_update_epochs:
                    model.apply(torch.nn.intrinsic.qat.freeze_bn_stats)
                quantized_eval_model = copy.deepcopy(model)
                quantized_eval_model.eval()
                quantized_eval_model.to(torch.device("cpu"))
                torch.ao.quantization.convert(quantized_eval_model, inplace=True)
            model.train()
            model.apply(torch.nn.intrinsic.qat.freeze_bn_stats)
            checkpoint = {
                "model": model.state_dict(),
                "eval_model": quantized_eval_model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "lr_scheduler": lr_scheduler.state_dict(),
                "epoch": epoch,
            }
            torch.save(checkpoint, tmp_path / "checkpoint.pth")
        with torch.no_grad():
            wanted = quantized_eval_model(images)
    cases.assert_int8(quantized_eval_model)
    assert cases.top1(quantized_eval_model, images, labels) >= float_top1 - 3 > 90
    # Both state dicts of the checkpoint become artifacts with the same answers.
    for part in ("eval_model", "model"):
        artifact = convert_checkpoint(
            tmp_path / "checkpoint.pth", model="shufflenet_v2_x0_5", backend="x86", part=part
        )
        with torch.no_grad():
            assert torch.equal(qzoo.native.model.to_native(artifact)(images), wanted)


# What follows is "Quantized Transfer Learning for Computer Vision", which PyTorch has deleted:
# https://github.com/pytorch/tutorials/blob/0a7e686/intermediate_source/
# quantized_transfer_learning_tutorial.rst


def train_model(
    model: nn.Module, criterion: Any, optimizer: Any, scheduler: Any, **how: Any
) -> Any:
    """The tutorial's function, without its copies and prints; returns the last epoch's accuracy."""
    for _epoch in range(how["num_epochs"]):
        for phase in ["train", "val"]:
            model.train(phase == "train")
            running_corrects = 0
            for inputs, labels in how["dataloaders"][phase]:
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    outputs = model(inputs)
                    _, preds = torch.max(outputs, 1)
                    loss = criterion(outputs, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                running_corrects += int(torch.sum(preds == labels.data))
            if phase == "train":
                scheduler.step()
    return 100 * running_corrects / len(how["dataloaders"]["val"].dataset)


def create_combined_model(model_fe: Any) -> nn.Module:
    """The tutorial's function."""
    model_fe_features = nn.Sequential(
        model_fe.quant,
        model_fe.conv1,
        model_fe.bn1,
        model_fe.relu,
        model_fe.maxpool,
        model_fe.layer1,
        model_fe.layer2,
        model_fe.layer3,
        model_fe.layer4,
        model_fe.avgpool,
        model_fe.dequant,
    )
    new_head = nn.Sequential(nn.Dropout(p=0.5), nn.Linear(model_fe.fc.in_features, 2))
    return nn.Sequential(model_fe_features, nn.Flatten(start_dim=1), new_head)


@pytest.fixture
def dataloaders() -> dict[str, Any]:
    """Zeros and ones, in the place of ants and bees."""
    loaders: dict[str, Any] = {}
    for phase, split, count in (("train", "train", 1300), ("val", "test", 400)):
        pictures, labels = cases.digits(split, count, 32)
        two = [(p, label) for p, label in zip(pictures, labels, strict=True) if label < 2]
        loaders[phase] = DataLoader(two, batch_size=16)
    return loaders


def test_head_on_a_quantized_feature_extractor(
    dataloaders: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part 1. Where the tutorial downloads, an int8 model of random features stands in."""
    random_features, (images, _) = models.resnet18(), cases.digits(side=32)
    with torch.no_grad():
        for _ in range(20):  # batch norm's averages
            random_features(images)
    stands_in = zoo.eager_ptq(random_features, images, "x86")
    weights = models.ResNet18_QuantizedWeights
    artifact = from_native(stands_in, backend="x86")
    monkeypatch.setattr(weights, "artifact", lambda self, progress: artifact)
    with zoo.quiet():
        model_fe = models.resnet18(pretrained=True, progress=True, quantize=True)
    assert model_fe.fc.in_features == 512
    new_model = create_combined_model(model_fe)
    new_model = new_model.to("cpu")
    criterion = nn.CrossEntropyLoss()
    optimizer_ft = optim.SGD(new_model.parameters(), lr=0.01, momentum=0.9)
    exp_lr_scheduler = optim.lr_scheduler.StepLR(optimizer_ft, step_size=7, gamma=0.1)
    how = {"num_epochs": 3, "dataloaders": dataloaders}
    right = train_model(new_model, criterion, optimizer_ft, exp_lr_scheduler, **how)

    assert [tuple(p.shape) for p in new_model.parameters()] == [(2, 512), (2,)]
    cases.assert_int8(new_model[0], 20)
    assert right > 90  # the features are random, but zeros and ones are far apart


def test_fine_tuned_feature_extractor(dataloaders: dict[str, Any]) -> None:
    """Part 2, with the whole model trained while it is fake-quantized."""
    with zoo.quiet():
        model = models.resnet18(pretrained=False, progress=True, quantize=False)
        model.train()
        model.fuse_model()
        model_ft = create_combined_model(model)
        model_ft[0].qconfig = torch.quantization.default_qat_qconfig
        model_ft = torch.quantization.prepare_qat(model_ft, inplace=True)
        for param in model_ft.parameters():
            param.requires_grad = True
        criterion = nn.CrossEntropyLoss()
        optimizer_ft = optim.SGD(model_ft.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.1)
        exp_lr_scheduler = optim.lr_scheduler.StepLR(optimizer_ft, step_size=5, gamma=0.3)
        how = {"num_epochs": 1, "dataloaders": dataloaders}
        right = train_model(model_ft, criterion, optimizer_ft, exp_lr_scheduler, **how)
        model_ft.cpu()
        model_quantized_and_trained = torch.quantization.convert(model_ft, inplace=False)

    assert right > 90
    cases.assert_int8(model_quantized_and_trained[0], 20)
    assert type(model_quantized_and_trained[2][1]) is nn.Linear
    images, labels = map(torch.stack, zip(*dataloaders["val"].dataset, strict=True))
    with torch.no_grad():
        fake, given = model_ft(images), model_quantized_and_trained(images)
    # Ranges that moving averages have not caught up with in 17 steps cost as much with
    # torchvision's builder: 8.8 dB with either, and 96 % right.
    assert cases.sqnr_db(given, fake) > 5
    assert cases.top1(model_quantized_and_trained, images, labels) > 90
    # Its own modules in one's own Sequential are no model of the zoo any more: qzoo says so.
    with pytest.raises(qzoo.ArtifactError, match="not made by one of qzoo's builders"):
        from_native(model_quantized_and_trained)
