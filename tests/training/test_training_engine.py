"""The parts of the training engine, each against an independent truth."""

from __future__ import annotations

import random
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.optim import SGD
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision import transforms as T

from qzoo import training
from qzoo.errors import MissingDependencyError, UnknownNameError
from qzoo.training import sources
from qzoo.training.options import OptimizerOptions, ScheduleOptions


@pytest.fixture(scope="module")
def engine() -> ModuleType:
    return training


# The order of images


def keys(engine: ModuleType, epoch: int = 0, start: int = 0, **settings: Any) -> list[Any]:
    order = engine.Order(**{"count": 50, "batch_size": 8, "seed": 1, **settings})
    order.epoch, order.start = epoch, start
    return list(order)


def test_processes_share_the_batches_of_one(engine: ModuleType) -> None:
    alone = keys(engine, batch_size=12)
    shares = [keys(engine, batch_size=4, rank=rank, world=3) for rank in range(3)]
    joined = [[key for part in parts for key in part] for parts in zip(*shares, strict=True)]
    assert joined == alone
    assert len(alone) == len(engine.Order(50, 4, 1, world=3)) == 4


def test_an_epoch_sees_each_image_once_and_the_next_in_another_order(engine: ModuleType) -> None:
    first = [key.image for batch in keys(engine) for key in batch]
    second = [key.image for batch in keys(engine, epoch=1) for key in batch]
    assert len(set(first)) == len(first) == 48
    assert first != second
    assert first == [key.image for batch in keys(engine) for key in batch]
    assert first != [key.image for batch in keys(engine, seed=2) for key in batch]


def test_an_epoch_can_begin_anywhere(engine: ModuleType) -> None:
    assert keys(engine, epoch=3, start=2) == keys(engine, epoch=3)[2:]


def test_repeated_augmentation(engine: ModuleType) -> None:
    seen = [key for batch in keys(engine, copies=3) for key in batch]
    assert len(set(seen)) == len(seen) == 48
    assert set(Counter(key.image for key in seen).values()) == {3}


class Noise:
    """Items that show what all three global generators gave."""

    targets = (0,) * 10

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        drawn = [float(torch.rand(())), random.random(), float(np.random.rand())]
        return torch.tensor([*drawn, index]), 0


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_follows_from_seed_epoch_and_image(engine: ModuleType, workers: int) -> None:
    def images(epoch: int, start: int = 0) -> torch.Tensor:
        batches = engine.LoadedBatches(Noise(), engine.Order(10, 2, seed=5), workers)
        return torch.cat([images for images, _ in batches.epoch(epoch, start)])

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    whole = images(0)
    assert torch.equal(images(0, 3), whole[6:])
    again = engine.LoadedBatches(Noise(), engine.Order(10, 5, seed=5), 0).epoch(0)
    assert torch.equal(torch.cat([x for x, _ in again]), whole), "whatever the batch size"
    other = images(1)
    assert not set(whole[:, :3].flatten().tolist()) & set(other[:, :3].flatten().tolist())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


def test_random_states_come_back(engine: ModuleType, tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [float(torch.rand(())), random.gauss(0, 1), float(np.random.standard_normal())]

    cpu, files = torch.device("cpu"), engine.checkpoint
    before = files.random_state(cpu)
    draw()  # leaves half a pair of normal numbers in Python's and NumPy's states
    files.save_checkpoint(tmp_path / "c.pth", {"settings": {}, "random": files.random_state(cpu)})
    expected = draw()
    stored = files.load_checkpoint(tmp_path / "c.pth", {})
    files.set_random_state(stored["random"], cpu)
    assert draw() == expected
    files.set_random_state(before, cpu)


# Optimization

SCHEDULE: dict[str, Any] = {
    "lr": 0.4, "epochs": 20, "lr_step_size": 3, "lr_gamma": 0.7, "lr_min": 0.01,
    "lr_warmup_method": "linear", "lr_warmup_decay": 0.05,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "warmup", "method"),
    list(product(["step", "cosine", "exponential"], [0, 4], ["linear", "constant"])),
)
def test_schedules_are_torchvisions(
    engine: ModuleType, kind: str, warmup: int, method: str
) -> None:
    options = ScheduleOptions(**{
        **SCHEDULE, "lr_scheduler": kind, "lr_warmup_epochs": warmup, "lr_warmup_method": method,
    })  # fmt: skip
    weight = [nn.Parameter(torch.zeros(1))]
    own, other = SGD(weight, 0.4), SGD(weight, 0.4)
    schedule = engine.make_schedule(own, options)
    main: Any = {
        "step": lambda: schedulers.StepLR(other, 3, 0.7),
        "cosine": lambda: schedulers.CosineAnnealingLR(other, 20 - warmup, 0.01),
        "exponential": lambda: schedulers.ExponentialLR(other, 0.7),
    }[kind]()
    if warmup:
        rise = (
            schedulers.LinearLR(other, 0.05, total_iters=warmup)
            if method == "linear"
            else schedulers.ConstantLR(other, 0.05, total_iters=warmup)
        )
        main = schedulers.SequentialLR(other, [rise, main], [warmup])
    for epoch in range(20):
        assert own.param_groups[0]["lr"] == pytest.approx(other.param_groups[0]["lr"]), epoch
        for optimizer in (own, other):
            optimizer.step()
        schedule.step()
        main.step()


def test_norm_layers_have_their_own_weight_decay(engine: ModuleType) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    one = engine.parameter_groups(model, OptimizerOptions(weight_decay=0.1))
    assert [len(group["params"]) for group in one] == [6]
    apart = OptimizerOptions(weight_decay=0.1, norm_weight_decay=0.0)
    norms, others = engine.parameter_groups(model, apart)
    assert (len(norms["params"]), norms["weight_decay"]) == (2, 0.0)
    assert (len(others["params"]), others["weight_decay"]) == (4, 0.1)


@pytest.mark.parametrize("name", ["sgd", "sgd_nesterov", "rmsprop", "adamw"])
def test_optimizers_take_their_options(engine: ModuleType, name: str) -> None:
    weight = nn.Parameter(torch.ones(1))
    options = OptimizerOptions(opt=name, momentum=0.8, weight_decay=0.01)
    optimizer = engine.make_optimizer([{"params": [weight], "lr": 0.5}], options, 0.1)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.01)
    assert group.get("momentum", 0.8) == 0.8
    assert group.get("nesterov", False) == (name == "sgd_nesterov")


def test_average_is_pytorchs(engine: ModuleType) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    ema = engine.optim.Ema(model, 0.9)
    other = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    other.update_parameters(model)  # the first one copies
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.rand_like(parameter))
        model(torch.rand(8, 3, 4, 4))
        ema.update(model)
        other.update_parameters(model)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with ema.applied(model):
        for name, value in other.module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                assert int(model.state_dict()[name]) == 3
            else:
                assert torch.allclose(model.state_dict()[name], value), name
                assert not torch.equal(model.state_dict()[name], own[name])
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    ema.update(model, follow=True)
    assert all(torch.equal(value, own[name]) for name, value in ema.state.items())


# Images and losses


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_mixing_blends_labels_as_it_blends_images(engine: ModuleType, way: str) -> None:
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 20, 20)
    labels = torch.arange(6)
    mixing = engine.mixing.Mixing(float(way == "mixup"), float(way == "cutmix"), 6, seed=0)
    shares = set()
    for step in range(5):
        mixed, targets = mixing(images, labels, 0, step)
        # Image i is all i, so that its mean tells how much of it there is.
        assert torch.allclose(targets.sum(1), torch.ones(6))
        expected = (targets * torch.arange(6.0)).sum(1)
        assert torch.allclose(mixed.mean((1, 2, 3)), expected, atol=1e-5)
        assert torch.equal(mixing(images, labels, 0, step)[0], mixed)
        if way == "cutmix":
            assert set(mixed.unique().tolist()) <= set(range(6))
        shares.add(round(float(targets[3, 3]), 4))
    assert len(shares) > 2
    assert torch.equal(images[2], torch.full((3, 20, 20), 2.0)), "the batch itself is unchanged"


def test_a_teacher_pulls_towards_its_answers(engine: ModuleType) -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    logits, answers = student(images), teacher(images)
    plain = nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
    assert torch.equal(engine.Loss(0.1)(logits, labels, images), plain)
    loss = engine.Loss(0.1, teacher, share=0.3, temperature=4.0)(logits, labels, images)
    p, q = (answers / 4).softmax(1), (logits / 4).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    assert torch.allclose(loss, 0.7 * plain + 0.3 * 16 * divergence)
    loss.backward()
    assert student.weight.grad is not None
    assert teacher.weight.grad is None
    same = engine.Loss(0.0, student, share=1.0)(logits, labels, images)
    assert float(same.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["imagenet", "ra", "ta_wide", "augmix"])
def test_augmentations_go_before_and_erasing_after_normalizing(
    engine: ModuleType, name: str
) -> None:
    preset = sources.open_data("digits", None).preset(16)
    made: Any = sources.train_transforms("crop", 16, preset, auto_augment=name, random_erase=0.5)
    kinds = [type(t) for t in made.transforms]
    policy = {
        "imagenet": T.AutoAugment, "ra": T.RandAugment, "ta_wide": T.TrivialAugmentWide,
        "augmix": T.AugMix,
    }[name]  # fmt: skip
    assert kinds.index(policy) < kinds.index(T.ToTensor) < kinds.index(T.Normalize)
    assert kinds[-1] is T.RandomErasing
    without: Any = sources.train_transforms("none", 16, preset)
    plain = without.transforms
    assert {type(t) for t in plain}.isdisjoint({policy, T.RandomErasing})


# Options


def parse(engine: ModuleType, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    @click.command(cls=engine.Command)
    @engine.training_options(epochs=7)
    def command(**options: Any) -> None:
        found.update(options)

    done = CliRunner().invoke(command, ["--output-dir", "x", *words])
    assert done.exit_code == 0, done.output
    return found


def test_presets_give_way_to_options_wherever_they_stand(engine: ModuleType) -> None:
    plain = parse(engine)
    assert (plain["epochs"], plain["lr"], plain["model_ema"]) == (7, 0.1, False)
    before = parse(engine, "--lr", "0.5", "--preset", "torchvision-mobilenet_v2")
    after = parse(engine, "--preset", "torchvision-mobilenet_v2", "--lr", "0.5")
    assert before == after
    assert (after["lr"], after["epochs"], after["weight_decay"]) == (0.5, 300, 4e-5)
    new = parse(engine, "--preset", "torchvision-resnet50-v2")
    assert (new["model_ema"], new["lr_scheduler"], new["ra_reps"]) == (True, "cosine", 4)


def test_every_preset_sets_options_that_there_are(engine: ModuleType) -> None:
    known = set(parse(engine))
    qat = {"backend", "num_observer_update_epochs", "num_batch_norm_update_epochs"}
    for name, values in engine.presets.PRESETS.items():
        assert set(values) <= known | (qat if "qat" in name else set()), name
        if "qat" not in name:
            parse(engine, "--preset", name)
    with pytest.raises(UnknownNameError, match="Did you mean 'torchvision-resnet18'"):
        engine.presets.preset("torchvision-resnet19")


def test_torchvisions_names_of_schedules_are_known(engine: ModuleType) -> None:
    assert parse(engine, "--lr-scheduler", "CosineAnnealingLR")["lr_scheduler"] == "cosine"
    assert parse(engine, "--wd", "0.3", "-j", "2", "-b", "5")["weight_decay"] == 0.3


def test_other_defaults_must_exist(engine: ModuleType) -> None:
    with pytest.raises(TypeError, match="epoch_count"):
        engine.training_options(epoch_count=1)


# Logs


def test_missing_packages_are_named(
    engine: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "qzoo\[train\]"'):
        engine.logs.TensorBoard(tmp_path)
    with pytest.raises(MissingDependencyError, match=r'pip install "qzoo\[plot\]"'):
        engine.logs.check_plotting()
    with engine.logs.TensorBoard(None) as board:
        board.add(1, loss=2.0)  # nothing was asked for
    assert not list(tmp_path.iterdir())
