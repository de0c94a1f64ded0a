"""What controls quantization-aware training: schedules, frozen parts, several processes, errors."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import qzoo
from qzoo.native.model import from_native
from qzoo.quantize import ptq, qat
from tests.helpers import zoo

SMALL = "shufflenet_v2_x0_5"


def float_model(name: str = SMALL, **kwargs: Any) -> nn.Module:
    return zoo.float_model(name, num_classes=7, **kwargs)


def images(batch: int = 4) -> Tensor:
    return zoo.small_images(SMALL, batch)


def test_ranges_are_averaged_as_written():
    """Batches count alike at first; the input's range is the simplest to follow."""
    model: Any = qat.prepare(float_model())
    index = model.quant.index
    batches = [images() * factor for factor in (1.0, 3.0, 0.5)]
    for batch in batches:
        model(batch)
    highs = torch.stack([b.max() for b in batches])
    lows = torch.stack([b.min() for b in batches])
    assert torch.allclose(model.ranges.maximum[index], highs.mean(), rtol=1e-6)
    assert torch.allclose(model.ranges.minimum[index], lows.mean(), rtol=1e-6)
    model.ranges.batches.fill_(1000)
    before = model.ranges.maximum[index].clone()
    model(batches[1])
    assert torch.allclose(model.ranges.maximum[index], 0.99 * before + 0.01 * highs[1], rtol=1e-5)
    scale = (model.ranges.maximum - model.ranges.minimum) / 255
    assert torch.allclose(model.ranges.scale, scale)


@pytest.mark.parametrize("options", [{}, {"learn_ranges": True}])
def test_frozen_observers_do_not_move(options):
    model: Any = qat.prepare(float_model(), data=images(), progress=False, **options)
    model.freeze_observers()
    before = {k: v.clone() for k, v in model.ranges.state_dict().items()}
    model(images() * 5)
    assert all(torch.equal(v, before[k]) for k, v in model.ranges.state_dict().items())
    model.freeze_observers(False)
    model.eval()(images() * 5)
    assert all(torch.equal(v, before[k]) for k, v in model.ranges.state_dict().items())
    model.train()(images() * 5)
    moved = not torch.equal(model.ranges.maximum, before["maximum"])
    assert moved != bool(options)  # learned ranges are the optimizer's to move


def test_schedules_freeze_by_epoch_and_by_step():
    model: Any = qat.prepare(float_model(), batch_norm="keep")
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    schedule = qat.Schedule(observer_epochs=2, batch_norm_epochs=1, observer_steps=30)
    for epoch, step, observing, averaging in (
        (0, 0, True, True),
        (1, 10, True, False),
        (2, 20, False, False),
        (1, 30, False, False),
        (0, 0, True, True),  # as after loading an earlier checkpoint
    ):
        schedule.apply(model, epoch, step)
        assert model.ranges.observing is observing
        assert norm.training is averaging
        assert model.eval().train().ranges.observing is observing
        assert norm.training is averaging
    qat.Schedule().apply(model, 100, 100)
    assert model.ranges.observing and norm.training
    wrapped = torch.nn.Module()
    wrapped.module = model  # as DistributedDataParallel keeps it
    qat.Schedule(observer_epochs=0).apply(wrapped)
    assert not model.ranges.observing
    with pytest.raises(qzoo.ArgumentError, match="observer_epochs should be a whole number"):
        qat.Schedule(observer_epochs=-1)
    with pytest.raises(qzoo.ArgumentError, match=r"not in quantization-aware training.*prepare"):
        schedule.apply(float_model())


def test_without_ranges_there_is_nothing_to_evaluate_or_convert():
    model = qat.prepare(float_model())
    with pytest.raises(qzoo.ArgumentError, match=r"no ranges yet.*training batch.*data="):
        model.eval()(images())
    with pytest.raises(qzoo.ArgumentError, match=r"no ranges yet.*nothing to convert"):
        qat.convert(model)
    model.train()(images())
    assert qat.convert(model)(images()).shape == (4, 7)


def test_int8_models_are_refused():
    int8 = ptq(float_model(), images(), progress=False)
    with pytest.raises(qzoo.ArgumentError, match="already int8"):
        qat.prepare(int8)
    with pytest.raises(qzoo.ArtifactError, match="qzoo's builders"):
        qat.prepare(nn.Linear(1, 1))
    for model in (float_model(), int8):
        with pytest.raises(qzoo.ArgumentError, match="not in quantization-aware training"):
            qat.convert(model)


def test_results_of_other_models_are_refused():
    artifact = from_native(ptq(float_model(), images(), progress=False))
    with pytest.raises(qzoo.ArgumentError, match=r"is a shufflenet_v2_x0_5.*a resnet18"):
        qat.prepare(zoo.float_model("resnet18"), from_ptq=artifact)
    with pytest.raises(qzoo.ArgumentError, match=r"'fc' of the PTQ result does not fit"):
        qat.prepare(zoo.float_model(SMALL, num_classes=5), from_ptq=artifact)
    with pytest.raises(qzoo.ArgumentError, match=r"made for the backend onednn|made for .* x86"):
        qat.prepare(float_model(), "qnnpack", from_ptq=artifact)
    with pytest.raises(qzoo.ArtifactError, match="still float"):
        qat.prepare(float_model(), from_ptq=float_model())
    with pytest.raises(qzoo.ArgumentError, match="not both"):
        qat.prepare(float_model(), from_ptq=artifact, data=images())


def test_unknown_names_are_refused():
    for option, value in (("batch_norm", "folded"), ("flow", "fx"), ("recipe", "fats")):
        with pytest.raises(qzoo.UnknownNameError, match=rf"Unknown {option} '{value}'"):
            qat.prepare(float_model(), data=images(), **{option: value})
    with pytest.raises(qzoo.UnknownNameError, match="Unknown backend"):
        qat.prepare(float_model(), "fbgem")
    with pytest.raises(qzoo.ArgumentError, match="matches no layer"):
        qat.prepare(float_model(), keep_float=["head"])


def test_diverged_training_is_not_converted():
    model: Any = qat.prepare(float_model())
    model(images())
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    with pytest.raises(qzoo.ArgumentError, match=r"not finite.*diverged.*learning rate"):
        qat.convert(model)


# Several processes.


def _train(rank: int, world: int, folder: str) -> None:
    """Trains for two steps on a share of each batch; process 0 stores what came of it."""
    torch.set_num_threads(1)
    if world > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = qat.prepare(float_model())
    trained = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(trained.parameters(), 1e-3)
    losses = []
    for factor in (1.0, 2.0):
        share = (images(8) * factor).chunk(world)[rank]
        labels = (torch.arange(8) % 7).chunk(world)[rank]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(trained(share), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    torch.save({"state": model.state_dict(), "losses": losses}, f"{folder}/{world}-{rank}.pt")
    qat.to_artifact(trained)
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.extended
def test_two_processes_observe_what_one_would(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_train, args=(r, 2, str(tmp_path))) for r in range(2)]
    for worker in workers:
        worker.start()
    _train(0, 1, str(tmp_path))
    for worker in workers:
        worker.join(timeout=240)
        assert worker.exitcode == 0
    one = torch.load(tmp_path / "1-0.pt", weights_only=True)
    two = [torch.load(tmp_path / f"2-{rank}.pt", weights_only=True) for rank in range(2)]
    mean = [sum(losses) / 2 for losses in zip(*(t["losses"] for t in two), strict=True)]
    assert mean == pytest.approx(one["losses"], rel=1e-4)
    for key, value in one["state"].items():
        assert torch.equal(two[0]["state"][key], two[1]["state"][key]), key
        if key in ("ranges.minimum", "ranges.maximum", "ranges.scale"):
            assert torch.allclose(two[0]["state"][key], value, rtol=1e-3, atol=1e-6), key


def test_ptq_refuses_a_model_in_training():
    model = qat.prepare(float_model(), data=images(), progress=False)
    with pytest.raises(qzoo.errors.ArgumentError, match=r"qat\.convert"):
        ptq(model, images(), progress=False)
