"""references/train.py: what its options do, and what it says when something is wrong."""

from __future__ import annotations

import errno
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import calling

TINY = [
    *("--model", "shufflenet_v2_x0_5", "--batch-size", "8", "--lr", "0.05", "--workers", "0"),
    *("--train-crop-size", "32", "--epochs", "2", "--threads", "1", "--seed", "1"),
]


def succeed(*options: object) -> str:
    return calling.succeed("train", *TINY, *options)


def fail(*options: object) -> str:
    return calling.fail("train", *TINY, *options)


def stored(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    return calling.rows(folder / "log.csv")


# The scaler leaves steps out whose gradients overflow in float16, the first ones among them.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_everything_at_once(pictures: Path, tmp_path: Path) -> None:
    data, teacher = ("--data-path", pictures), tmp_path / "teacher"
    half = ("--amp", "--amp-dtype", "float16", "--clip-grad-norm", 1)
    succeed(*data, *half, "--output-dir", teacher, "--start-epoch", 1)
    assert stored(teacher)["scaler"]["scale"] > 1
    assert [row["epoch"] for row in rows(teacher)] == ["2"]
    output = tmp_path / "student"
    options = [
        *("--teacher", teacher / "model.safetensors", "--teacher-share", 0.7),
        *("--amp", "--channels-last", "--norm-weight-decay", 0, "--eval-every", 2),
        *("--clip-grad-norm", 1, "--opt", "adamw", "--lr", 0.001),
        *("--tensorboard", "--plot", "--print-freq", 2, "--output-dir", output),
    ]
    printed = succeed(*data, *options)
    assert "top-1" in printed
    assert [bool(row["test_top1"]) for row in rows(output)] == [False, True]
    with Image.open(output / "curve.png") as plot:
        assert plot.size == (1200, 480)
        assert len(np.unique(np.asarray(plot.convert("L")))) > 50

    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    assert {"step/loss", "step/lr", "epoch/loss", "epoch/train_top1", "epoch/test_top1"} <= set(
        events.Tags()["scalars"]
    )
    assert [e.step for e in events.Scalars("step/loss")] == [2, 4, 6, 8, 10, 12]
    losses = [e.value for e in events.Scalars("epoch/loss")]
    assert losses == pytest.approx([float(row["loss"]) for row in rows(output)])


def test_only_measuring(pictures: Path, tmp_path: Path) -> None:
    data = ("--data-path", pictures, "--output-dir", tmp_path / "run")
    assert "--weights or --resume" in fail(*data, "--test-only")
    trained = succeed(*data).splitlines()[-1]
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "run").iterdir())
    measured = succeed(*data, "--test-only", "--resume", "auto")
    assert measured.splitlines()[-1] == trained.partition("; wrote")[0]
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "run").iterdir()) == before


def test_a_finished_run_resumed_just_measures(pictures: Path, tmp_path: Path) -> None:
    options = ("--data-path", pictures, "--output-dir", tmp_path, "--epochs", 1)
    first = succeed(*options)
    model = (tmp_path / "model.safetensors").read_bytes()
    again = succeed(*options, "--resume", "auto")
    assert again.splitlines()[-1] == first.splitlines()[-1]
    # The command, which the file records, has another length.
    assert (tmp_path / "model.safetensors").read_bytes()[-10000:] == model[-10000:]


def test_an_earlier_run_is_replaced_only_where_that_is_asked_for(
    pictures: Path, tmp_path: Path
) -> None:
    options = ("--data-path", pictures, "--output-dir", tmp_path, "--epochs", 1)
    succeed(*options)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "qat").mkdir()
    before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir() if p.is_file())
    message = fail(*options, "--seed", 2)
    assert str(tmp_path) in message and "checkpoint.pth" in message and "--overwrite" in message
    assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir() if p.is_file()) == before
    # What fails before training begins costs the earlier run nothing.
    fail(*options, "--seed", 2, "--overwrite", "--batch-size", 500)
    assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir() if p.is_file()) == before
    succeed(*options, "--seed", 2, "--overwrite")
    assert stored(tmp_path)["settings"]["seed"] == 2
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "qat").exists()
    # Beside the results of a run whose checkpoint is gone, --resume does not begin another one.
    (tmp_path / "checkpoint.pth").unlink()
    assert "no checkpoint.pth to go on from" in fail(*options, "--resume")


# What can be wrong


def test_an_empty_class_folder(own_pictures: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (own_pictures / split / "empty").mkdir()
    message = fail("--data-path", own_pictures, "--output-dir", tmp_path / "run")
    assert "empty" in message
    assert str(own_pictures / "train") in message or "class" in message


def test_one_class(own_pictures: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (own_pictures / split / "dark").rename(tmp_path / f"dark-{split}")
    message = fail("--data-path", own_pictures, "--output-dir", tmp_path / "run")
    assert "at least two classes" in message


def test_a_batch_larger_than_the_data(own_pictures: Path, tmp_path: Path) -> None:
    options = ("--data-path", own_pictures, "--output-dir", tmp_path / "run")
    assert "16 images" in fail(*options, "--batch-size", 17)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corrupt_picture_costs_nothing_that_was_learned(
    own_pictures: Path, tmp_path: Path, workers: int, split: str
) -> None:
    output = tmp_path / "run"
    options = ("--data-path", own_pictures, "--output-dir", output)
    succeed(*options, "--epochs", 1)
    before = (output / "checkpoint.pth").read_bytes()
    spoilt = own_pictures / split / "dark" / "1.png"
    whole = spoilt.read_bytes()
    spoilt.write_bytes(whole[:200])
    go_on = (*options, "--resume", "auto", "--workers", workers)
    message = fail(*go_on)
    assert str(spoilt) in message
    assert len(message) < 400
    assert (output / "checkpoint.pth").read_bytes() == before
    spoilt.write_bytes(whole)
    succeed(*go_on)
    assert len(rows(output)) == 2


def test_diverging_training_keeps_the_last_good_checkpoint(pictures: Path, tmp_path: Path) -> None:
    options = [
        *("--data-path", pictures, "--output-dir", tmp_path, "--checkpoint-steps", 1),
        *("--lr", 1e30, "--lr-warmup-epochs", 1, "--lr-warmup-decay", 0),
    ]
    message = fail(*options)
    assert "diverged" in message
    assert "Lower --lr" in message
    assert "in epoch 2" in message
    assert str(tmp_path / "checkpoint.pth") in message
    kept = stored(tmp_path)
    assert len(kept["log"]) == 1
    floats = [v for v in kept["model"].values() if v.is_floating_point()]
    assert all(bool(torch.isfinite(v).all()) for v in floats)
    assert not (tmp_path / "model.safetensors").exists()


def test_resuming_another_run(pictures: Path, tmp_path: Path) -> None:
    options = ("--data-path", pictures, "--output-dir", tmp_path, "--epochs", 1)
    succeed(*options)
    resume = (*options, "--resume", tmp_path / "checkpoint.pth")
    for other, words in {
        "model='shufflenet_v2_x0_5', not 'resnet18'": ("--model", "resnet18"),
        "lr=0.05, not 0.1": ("--lr", 0.1),
        "images_per_step=8, not 4": ("--batch-size", 4),
    }.items():
        assert other in fail(*resume, *words)
    state = stored(tmp_path)
    torch.save({**state, "settings": {**state["settings"], "script": "qat.py"}}, tmp_path / "q.pth")
    assert "script='qat.py', not 'train.py'" in fail(*options, "--resume", tmp_path / "q.pth")
    del state["model"]["conv1.0.weight"]
    torch.save(state, tmp_path / "d.pth")
    assert "conv1.0.weight" in fail(*options, "--resume", tmp_path / "d.pth")


def test_resuming_on_changed_data_says_so(own_pictures: Path, tmp_path: Path) -> None:
    options = ("--data-path", own_pictures, "--output-dir", tmp_path / "run")
    succeed(*options, "--epochs", 1)
    (own_pictures / "train" / "dark" / "1.png").unlink()
    printed = succeed(*options, "--resume", "auto")
    assert "other training images" in printed


def test_a_full_disk_loses_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, full = tmp_path / "straight", tmp_path / "full"
    data = ("--data-path", pictures)
    succeed(*data, "--output-dir", straight)
    succeed(*data, "--output-dir", full, "--epochs", 1)
    before = sorted((p.name, p.read_bytes()) for p in full.iterdir())

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        message = fail(*data, "--output-dir", full, "--resume", "auto")
    assert "No space left on device" in message
    assert f"--resume {full / 'checkpoint.pth'}" in message
    assert sorted((p.name, p.read_bytes()) for p in full.iterdir()) == before
    succeed(*data, "--output-dir", full, "--resume", "auto")
    a, b = stored(straight)["model"], stored(full)["model"]
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_file_too_large_for_the_system_loses_nothing(pictures: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    options = ("--data-path", pictures, "--output-dir", tmp_path, "--epochs", 1)
    succeed(*options)
    before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        message = fail(*options, "--epochs", 2, "--resume", "auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in message
    assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()) == before
