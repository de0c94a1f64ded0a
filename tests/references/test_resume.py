"""A run that is killed at any moment and resumed ends like one that never stopped, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import killing
from tests.helpers.calling import python
from tests.helpers.places import REFERENCES

#: Everything that draws random numbers or keeps a state: dropout, augmentation, mixing, momentum,
#: averaged weights, a schedule.
OPTIONS = [
    *("--model", "mobilenet_v3_small", "--epochs", "3", "--batch-size", "8", "--lr", "0.01"),
    *("--opt", "rmsprop", "--lr-scheduler", "cosine", "--lr-warmup-epochs", "1"),
    *("--train-crop-size", "32", "--augment", "crop", "--auto-augment", "ta_wide"),
    *("--random-erase", "0.3", "--mixup-alpha", "0.2", "--cutmix-alpha", "1.0", "--ra-reps", "2"),
    *("--label-smoothing", "0.1", "--model-ema", "--model-ema-steps", "2", "--seed", "3"),
    *("--clip-grad-norm", "5", "--amp", "--checkpoint-steps", "1", "--threads", "1"),
    *("--workers", "0"),
]


def run(script: str, *options: object, kills: int = 0, seed: int = 0) -> str:
    """Runs a script, killing it so many times; returns what it and the driver printed."""
    done = python(killing.__file__, REFERENCES, kills, seed, script, *options)
    return done.stdout + done.stderr


def assert_same_end(first: Path, second: Path) -> None:
    """Compares all that two runs left, figures that tell time apart."""
    states = [
        torch.load(folder / "checkpoint.pth", weights_only=True) for folder in (first, second)
    ]
    for state in states:
        for row in state["log"]:
            del row["seconds"]
    assert_equal(states[0], states[1], "checkpoint")


def assert_equal(a: Any, b: Any, where: str) -> None:
    """Compares nested containers of tensors and values, exactly."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{i}")
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def straight(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    output = tmp_path_factory.mktemp("straight") / "run"
    printed = run("train", "--data-path", pictures, *OPTIONS, "--output-dir", output)
    assert "killed 0 times" in printed
    return output


@pytest.mark.extended
def test_killed_at_ten_random_moments(pictures: Path, straight: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = ("--data-path", pictures, *OPTIONS, "--output-dir", output, "--resume", "auto")
    printed = run("train", *options, kills=10, seed=1)
    assert "killed 10 times" in printed
    assert "Going on from" in printed
    assert_same_end(straight, output)
    assert {p.name for p in output.iterdir()} == {
        "checkpoint.pth", "log.csv", "model.safetensors", "split.csv",
    }  # fmt: skip


@pytest.mark.extended
def test_workers_and_checkpoints_change_nothing(
    pictures: Path, straight: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    rare = [o if o != "1" or OPTIONS[i - 1] != "--checkpoint-steps" else "1000"
            for i, o in enumerate(OPTIONS)]  # fmt: skip
    run("train", "--data-path", pictures, *rare, "--output-dir", output, "--workers", 2)
    assert_same_end(straight, output)
