"""Quantization-aware training: every model trains, converts, and answers as it was validated."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qzoo
from qzoo.datasets import Digits
from qzoo.datasets.evaluate import evaluate
from qzoo.native.model import from_native
from qzoo.quantize import ptq, qat
from qzoo.reference import build_reference
from tests.helpers import zoo

SMALL = "resnet18"


def images(name: str = SMALL, batch: int = 4) -> Tensor:
    return zoo.small_images(name, batch)


def float_model(name: str = SMALL) -> nn.Module:
    return zoo.float_model(name, slim=True, num_classes=7)


def step(model: nn.Module, x: Tensor, lr: float = 1e-3) -> float:
    """Trains for one step and returns the loss.

    Every parameter moves by a share of its size, because gradients of random networks vanish.
    """
    labels = torch.arange(len(x)) % 7
    loss = nn.functional.cross_entropy(model(x), labels.to(x.device))
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(lr * parameter.abs().mean() * parameter.grad.sign())
    return float(loss.detach())


def check_converts(model: Any, x: Tensor) -> None:
    """The int8 model must answer as the model in training does in eval mode."""
    int8 = qat.convert(model)
    artifact = from_native(int8)
    head = [layer for layer in artifact.layers.values() if layer.op == "linear"][-1]
    with torch.no_grad():
        wanted = model.eval()(x)
        reference = (build_reference(artifact)(x) - wanted).abs() / head.scale
        native = (int8(x) - wanted).abs() / head.scale
    model.train()
    # The same float32 arithmetic, but for sums in another order where a tie may turn.
    assert reference.max() < 1.01
    # Exact integer sums turn more of them, which the later layers of a random network spread.
    assert native.max() < 6.01
    assert native.mean() < 1
    chosen = wanted.gather(1, int8(x).argmax(1)[:, None])[:, 0]
    assert ((wanted.amax(1) - chosen) / head.scale).max() < 1.01  # the same class, or a tie


@pytest.mark.parametrize("name", zoo.by_definition())
def test_every_builder_trains_and_converts(name):
    x = images(name)
    model = qat.prepare(float_model(name))
    assert model.training
    first = step(model, x)
    assert step(model, x) != first
    check_converts(model, x)
    assert model(x).shape == (4, 7)


@pytest.mark.parametrize("backend", ["x86", "qnnpack"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_batch_norm_is_kept(name, backend):
    x = images(name, 8)
    plain = float_model(name)
    model = qat.prepare(plain, backend, batch_norm="keep")
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(norms) == {n for n, m in plain.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = {n: m.running_mean.clone() for n, m in norms.items()}
    step(model, x)
    assert all(int(m.num_batches_tracked) == 1 for m in norms.values())
    assert all(not torch.equal(m.running_mean, before[n]) for n, m in norms.items())
    check_converts(model, x)
    model.freeze_batch_norm()
    after = {n: m.running_mean.clone() for n, m in norms.items()}
    weight = next(iter(norms.values())).weight.clone()
    step(model, x)
    step(model.eval().train(), x)
    assert all(torch.equal(m.running_mean, after[n]) for n, m in norms.items())
    assert not torch.equal(next(iter(norms.values())).weight, weight)
    check_converts(model, x)


def test_negative_and_dead_batch_norm_gains_convert():
    plain = float_model()
    with torch.no_grad():
        plain.bn1.weight[:3] = torch.tensor([-0.5, 0.0, -1.0])
        plain.layer1[0].bn2.weight.zero_()
    for backend in ("onednn", "qnnpack"):
        for mode in ("fold", "keep"):
            model = qat.prepare(plain, backend, batch_norm=mode)
            assert step(model, images()) < 100
            check_converts(model, images())


@pytest.mark.parametrize("mode", ["fold", "keep"])
def test_learned_ranges_train_and_convert(mode):
    model = qat.prepare(float_model("mobilenet_v3_small"), learn_ranges=True, batch_norm=mode)
    x = images("mobilenet_v3_small")
    step(model, x)
    before = model.ranges.scale.detach().clone()
    step(model, x)
    moved = (model.ranges.scale.detach() != before).float().mean()
    assert moved > 0.9
    check_converts(model, x)


def test_layers_kept_in_float():
    model = qat.prepare(float_model(), keep_float=["layer4.*", "fc"])
    step(model, images())
    artifact = qat.to_artifact(model)
    assert artifact.float_layers == [
        n for n in artifact.float_layers if n.startswith(("layer4", "fc"))
    ]
    assert torch.equal(artifact.tensors["fc.weight"], model.fc.weight.detach())
    check_converts(model, images())


def test_starting_from_ptq_answers_as_ptq():
    plain = float_model("shufflenet_v2_x0_5")
    x = images("shufflenet_v2_x0_5", 8)
    int8 = ptq(plain, x, progress=False)
    artifact = from_native(int8)
    model = qat.prepare(plain, from_ptq=int8)
    with torch.no_grad():
        wanted = build_reference(artifact)(x)
        assert torch.equal(model.eval()(x), wanted)
        kept = qat.prepare(plain, from_ptq=artifact, batch_norm="keep").eval()(x)
    assert (kept - wanted).abs().max() <= 2.01 * artifact.layers["fc"].scale
    again = qat.to_artifact(model)
    assert again.layers == artifact.layers
    assert again.tensors.keys() == artifact.tensors.keys()
    for name, tensor in artifact.tensors.items():
        assert torch.allclose(again.tensors[name].float(), tensor.float(), rtol=1e-6, atol=0), name
    check_converts(model, x)


def test_weights_that_ptq_moved_start_on_their_integers():
    plain = float_model()
    artifact = from_native(ptq(plain, images(batch=8), progress=False))
    # As after adaptive rounding, bias correction, cut off outliers, rescaled layers.
    generator = torch.Generator().manual_seed(0)
    tensors = dict(artifact.tensors)
    values = tensors["layer1.0.conv1.weight"]
    moved = torch.randint(-1, 2, values.shape, generator=generator)
    tensors["layer1.0.conv1.weight"] = (values + moved).clamp(-127, 127).to(torch.int8)
    tensors["layer1.0.conv2.weight_scale"] = tensors["layer1.0.conv2.weight_scale"] * 0.7
    tensors["layer2.0.conv1.weight_scale"] = tensors["layer2.0.conv1.weight_scale"] * 3
    tensors["layer1.0.conv1.bias"] = tensors["layer1.0.conv1.bias"] + 0.1
    artifact = qzoo.Artifact(artifact.info, artifact.layers, tensors)
    for mode in ("fold", "keep"):
        model = qat.prepare(plain, from_ptq=artifact, batch_norm=mode)
        again = qat.to_artifact(model)
        for name, tensor in tensors.items():
            assert torch.allclose(again.tensors[name].float(), tensor.float(), atol=1e-5), name
        step(model, images())
        check_converts(model, images())


def test_calibration_images_give_the_ranges_that_ptq_takes():
    plain, x = float_model(), images(batch=8)
    model = qat.prepare(plain, data=x, recipe="fast", progress=False)
    found = qat.to_artifact(model).layers
    assert found == from_native(ptq(plain, x, recipe="fast", progress=False)).layers
    assert model.eval()(x).isfinite().all()


def test_concatenated_layers_share_a_range():
    model = qat.prepare(float_model("googlenet"))
    step(model, images("googlenet"))
    layers = qat.to_artifact(model).layers
    names = [
        f"inception3a.{n}" for n in ("branch1.conv", "branch2.1.conv", "branch4.1.conv", "cat")
    ]
    assert len({(layers[n].scale, layers[n].zero_point) for n in names}) == 1
    assert layers["inception3a.branch2.0.conv"].scale != layers["inception3a.cat"].scale


@pytest.mark.parametrize("mode", ["fold", "keep"])
def test_an_interrupted_training_goes_on_bit_for_bit(mode):
    x = images(batch=6)

    def fresh() -> Any:
        return qat.prepare(float_model(), batch_norm=mode)

    whole = fresh()
    step(whole, x), step(whole, x.flip(0))
    whole.freeze_batch_norm()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = fresh()
    resumed.load_state_dict(state)
    for batch in (x * 1.5, x[:3]):
        assert step(whole, batch) == step(resumed, batch)
    for (name, a), (_, b) in zip(
        whole.state_dict().items(), resumed.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    whole.freeze_observers()
    resumed.load_state_dict(whole.state_dict())
    assert not resumed.ranges.observing


def test_copies_are_independent():
    model = qat.prepare(float_model())
    step(model, images())
    twin = copy.deepcopy(model)
    before = twin.ranges.maximum.clone()
    step(model, images() * 2)
    assert torch.equal(twin.ranges.maximum, before)
    step(twin, images() * 2)
    assert torch.equal(twin.ranges.maximum, model.ranges.maximum)
    assert torch.equal(twin.fc.weight, model.fc.weight)
    assert qat.to_artifact(twin).tensors.keys() == qat.to_artifact(model).tensors.keys()


def test_nothing_but_the_copy_changes():
    plain = float_model().train()
    before = copy.deepcopy(plain.state_dict())
    random = torch.get_rng_state()
    model = qat.prepare(plain, data=images(), progress=False)
    step(model, images())
    qat.convert(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert plain.training and all(m.training for m in plain.modules())
    assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())


def test_memory_format_and_names_are_kept():
    plain = float_model().to(memory_format=torch.channels_last)
    model = qat.prepare(plain)
    weight = model.layer1.get_submodule("0").conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    step(model, x)
    kept = {n for n, _ in model.named_parameters() if n.endswith("weight")}
    assert kept == {n for n, p in plain.named_parameters() if n.endswith("weight") and p.dim() > 1}


def test_a_mobilenet_v3_converts_to_the_accuracy_it_validated_at():
    """PyTorch's own route loses 12 points here (pytorch/pytorch#114859)."""
    pytest.importorskip("sklearn", reason="the digits extra is not installed")
    weights = qzoo.MobileNet_V3_Small_QuantizedWeights.DIGITS_X86_V1
    artifact = weights.artifact()
    preset = weights.transforms()
    model = qat.prepare(qzoo.mobilenet_v3_small(num_classes=10), from_ptq=artifact)
    train, test = Digits("train", preset), Digits("test", preset)
    x = torch.stack([train[i][0] for i in range(0, 1344, 42)])
    y = torch.tensor([train[i][1] for i in range(0, 1344, 42)])
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    validated = evaluate(model, test, progress=False)
    converted = evaluate(qat.convert(model), test, progress=False)
    assert validated.top1 > 98.5
    assert abs(converted.correct[1] - validated.correct[1]) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("mode", ["fold", "keep"])
def test_cuda_trains_as_the_cpu_does(mode):
    x = images(batch=8)
    plain = float_model()
    cpu = qat.prepare(plain, batch_norm=mode)
    gpu = qat.prepare(copy.deepcopy(plain).cuda(), batch_norm=mode)
    assert next(gpu.parameters()).is_cuda and gpu.ranges.scale.is_cuda
    for _ in range(2):
        assert step(gpu, x.cuda()) == pytest.approx(step(cpu, x), rel=1e-2)
    assert torch.allclose(gpu.ranges.maximum.cpu(), cpu.ranges.maximum, rtol=0.05, atol=0.01)
    gpu.freeze_observers()
    step(gpu, x.cuda())
    check_converts(gpu.cpu(), x)


@pytest.mark.parametrize("options", [{}, {"batch_norm": "keep", "backend": "qnnpack"},
                                     {"learn_ranges": True}], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_model_in_training_is_pickled_and_copied_whole(name, options):
    x = images(name)
    model: Any = qat.prepare(float_model(name), **options)
    step(model, x)
    model.freeze_observers()
    next(model.parameters()).requires_grad_(False)
    for copied in (lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy):
        twin = copied(model)
        assert twin.training and not twin.ranges.observing
        gradients = [p.requires_grad for p in twin.parameters()]
        assert gradients == [p.requires_grad for p in model.parameters()]
        outputs = []
        for each in (model, twin):
            torch.manual_seed(0)  # for dropout
            each.zero_grad()
            outputs.append(each(x))
            outputs[-1].square().sum().backward()
        assert torch.equal(*outputs)
        pairs = zip(model.named_parameters(), twin.named_parameters(), strict=True)
        for (key, mine), (_, other) in pairs:
            if mine.requires_grad:
                assert mine is not other and torch.equal(mine.grad, other.grad), key
        assert qat.to_artifact(twin).to_bytes() == qat.to_artifact(model).to_bytes()
