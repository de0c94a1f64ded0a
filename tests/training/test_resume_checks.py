"""A checkpoint to resume from may hold anything: a wrong field is refused in a sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qzoo import training
from qzoo.datasets import Digits
from qzoo.datasets.digits import digits_transforms
from qzoo.datasets.sources import open_data
from qzoo.errors import ArtifactError
from qzoo.training import Prepared, Ranks, Trainer
from qzoo.training.checkpoint import CHECKPOINT


def _prepared() -> Prepared:
    """A few scans of 16 pixels, the same to train and to measure on."""
    preset = digits_transforms(16)
    pictures = torch.utils.data.Subset(Digits("train", preset), range(32))
    pictures.targets = [int(pictures[i][1]) for i in range(32)]  # type: ignore[attr-defined]
    order = training.Order(32, 8, 0)
    batches = training.LoadedBatches(pictures, order, 0, pin=False)
    return Prepared(open_data("digits"), preset, 16, pictures, pictures, batches, 0)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


def _trainer(output: Path, **more: Any) -> Trainer:
    values = {"data": "digits", "epochs": 2, "batch_size": 8, "lr": 0.01, "opt": "rmsprop"}
    values |= {"model_ema": True, "output_dir": str(output), **more}
    options = training.option_values(**values)
    return Trainer(_Model(), _prepared(), options, Ranks(torch.device("cpu")), script="train.py")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of a finished run."""
    output = tmp_path_factory.mktemp("run")
    _trainer(output).fit()
    return torch.load(output / CHECKPOINT, weights_only=True)


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *places, last, value = path

    def change(state: dict[str, Any]) -> None:
        for place in places:
            state = state[place]
        state[last] = value

    return change


def _drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    *places, last = path

    def change(state: dict[str, Any]) -> None:
        for place in places:
            state = state[place]
        del state[last]

    return change


NAN = float("nan")
CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "settings are a number": _set("settings", 5),
    "settings are a tensor": _set("settings", torch.zeros(3)),
    "a setting is a tensor": _set("settings", "lr", torch.tensor([0.01, 0.02])),
    "a setting is a list": _set("settings", "seed", [0]),
    "classes are a number": _set("settings", "classes", 10),
    "a setting is missing": _drop("settings", "momentum"),
    "threads are text": _set("threads", "four"),
    "no threads": _set("threads", 0),
    "digest is a number": _set("data_sha256", 7),
    "epoch is far off": _set("epoch", 10**9),
    "epoch is just off": _set("epoch", 3),
    "epoch is not logged": _set("epoch", 1),
    "epoch is negative": _set("epoch", -1),
    "epoch is a float": _set("epoch", 2.0),
    "epoch is a bool": _set("epoch", True),
    "epoch is text": _set("epoch", "2"),
    "finished without a log": _set("log", []),
    "step is far off": _set("step", 10**8),
    "step is None": _set("step", None),
    "sums are two": _set("sums", [0.0, 0.0]),
    "sums are not finite": _set("sums", [NAN, 0.0, 0.0]),
    "seconds are text": _set("seconds", "1"),
    "seconds are negative": _set("seconds", -1.0),
    "no random states": _set("random", []),
    "random state of another size": _set("random", 0, "torch", torch.zeros(5, dtype=torch.uint8)),
    "random state of another type": _set("random", 0, "python", 3),
    "random state lacks a generator": _drop("random", 0, "numpy"),
    "log is text": _set("log", "epoch 1"),
    "log row is a number": _set("log", 0, 5),
    "log row lacks a column": _drop("log", 1, "loss"),
    "log holds a list": _set("log", 0, "loss", [1.0]),
    "model is a list": _set("model", [1]),
    "weight is missing": _drop("model", "fc.bias"),
    "weight is a number": _set("model", "fc.bias", 3.0),
    "weight has another shape": _set("model", "fc.bias", torch.zeros(3)),
    "weight is not finite": _set("model", "fc.bias", torch.full((10,), NAN)),
    "optimizer is None": _set("optimizer", None),
    "optimizer without groups": _set("optimizer", "param_groups", []),
    "learning rate is text": _set("optimizer", "param_groups", 0, "lr", "0.1"),
    "learning rate is not finite": _set("optimizer", "param_groups", 0, "lr", float("inf")),
    "learning rate is missing": _drop("optimizer", "param_groups", 0, "lr"),
    "moment of another shape": _set("optimizer", "state", 0, "square_avg", torch.zeros(2)),
    "moment is a number": _set("optimizer", "state", 0, "square_avg", 1.0),
    "moment is not finite": _set("optimizer", "state", 1, "square_avg", torch.full((10,), NAN)),
    "schedule is a list": _set("schedule", []),
    "schedule counts in text": _set("schedule", "last_epoch", "2"),
    "scaler is a number": _set("scaler", 1),
    "average is missing": _set("ema", None),
    "average lacks a weight": _drop("ema", "fc.bias"),
    "average of another shape": _set("ema", "fc.bias", torch.zeros(4)),
    "a field is missing": _drop("log"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_checkpoint_is_refused_in_a_sentence(
    what: str, state: dict[str, Any], tmp_path: Path
) -> None:
    changed = copy.deepcopy(state)
    CHANGES[what](changed)
    torch.save(changed, tmp_path / CHECKPOINT)
    with pytest.raises(ArtifactError) as error:
        _trainer(tmp_path, resume="auto")
    assert len(str(error.value)) < 400


def test_a_schedule_cannot_replace_parts_of_the_run(state: dict[str, Any], tmp_path: Path) -> None:
    changed = copy.deepcopy(state)
    changed["schedule"] |= {"optimizer": 5, "step": None, "get_lr": 1}
    torch.save(changed, tmp_path / CHECKPOINT)
    trainer = _trainer(tmp_path, resume="auto")
    assert trainer.learner.schedule.optimizer is trainer.learner.optimizer


def test_what_is_no_dictionary(tmp_path: Path) -> None:
    for value in (torch.zeros(2), [1], "text", 5):
        torch.save(value, tmp_path / CHECKPOINT)
        with pytest.raises(ArtifactError, match="names no settings"):
            _trainer(tmp_path, resume="auto")


def test_a_whole_checkpoint_goes_on(state: dict[str, Any], tmp_path: Path) -> None:
    torch.save(state, tmp_path / CHECKPOINT)
    trainer = _trainer(tmp_path, resume="auto")
    assert trainer.at.epoch == 2 and len(trainer.log) == 2
    assert trainer.fit().n == 32
