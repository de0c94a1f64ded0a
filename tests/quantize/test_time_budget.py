"""tune's time budget bounds all that takes time, and what it shows tells met from missed."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from qzoo.cli.tune import missed
from qzoo.datasets.evaluate import points
from qzoo.native.model import model_info
from qzoo.quantize import ptq, tune
from qzoo.quantize.data import open_calibration, open_labelled
from tests.helpers.zoo import float_model, small_images

IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 4


class Pictures(TensorDataset):
    """Images with labels that are known beforehand, in the order of the classes."""

    def __init__(self) -> None:
        order = LABELS.argsort(stable=True)
        super().__init__(IMAGES[order], LABELS[order])
        self.targets = LABELS[order].tolist()


@pytest.mark.parametrize("data", [IMAGES, Pictures(), list(IMAGES.split(5))])
def test_calibration_takes_fewer_images_and_says_which(data: object) -> None:
    options = {"batch_size": 4, "seed": 0, "transform": None}
    whole = open_calibration(data, images=20, **options)
    calibration = open_calibration(data, images=20, **options)
    calibration.stop_after(-1, -1)
    assert calibration.work_is_over()
    first, second = list(calibration), list(calibration)
    assert len(first) == len(second) == 1 and torch.equal(first[0], next(iter(whole)))
    assert torch.equal(first[0], second[0])
    assert calibration.count == 4
    few = open_calibration(data, images=4, **options)
    calibration.stop_after(math.inf, math.inf)
    assert torch.equal(torch.cat(list(calibration)), first[0]), "the same ones, for good"
    assert calibration.sha256 == few.sha256 != whole.sha256
    # With time enough it is as ever.
    calibration = open_calibration(data, images=20, **options)
    calibration.stop_after(1e6, 1e6)
    for _ in range(2):
        assert torch.equal(torch.cat(list(calibration)), torch.cat(list(whole)))
    assert (calibration.count, calibration.sha256) == (20, whole.sha256)
    assert not calibration.work_is_over()


def test_measuring_takes_fewer_images_of_every_class() -> None:
    test = open_labelled(Pictures(), batch_size=4, mixed=True)
    test.stop_after(-1)
    for _ in range(2):
        batches = list(test)
        assert [sorted(y.tolist()) for _, y in batches if y is not None] == [[0, 1, 2, 3]]
    assert sum(len(x) for x, _ in open_labelled(Pictures(), batch_size=4, mixed=True)) == 20


def test_steps_that_are_out_of_time_leave_the_layers_as_they_are() -> None:
    model, images = float_model("resnet18", num_classes=10), small_images("resnet18", 4)
    calibration = open_calibration(images, images=4, batch_size=2, seed=0, transform=None)
    calibration.stop_after(1e6, -1)
    cut = model_info(ptq(model, calibration, progress=False)).recipe
    assert cut["stopped_early"] and cut["calibration_images"] == 4


def test_a_tiny_budget_looks_at_few_images() -> None:
    model = float_model("resnet18", num_classes=10)
    images = small_images("resnet18", 16)
    data = TensorDataset(images, torch.arange(16) % 2)
    tuned = tune(model, data, 0, recipe="fast", time_budget=1e-3, progress=False)
    assert (tuned.calibration_images, tuned.images) == (4, 3)  # a fifth of 16 judges
    assert [step.action for step in tuned.trace] == ["quantize"]
    assert tuned.artifact.info.recipe["calibration_images"] == 4
    digest = hashlib.sha256
    assert tuned.artifact.info.recipe["calibration_sha256"] != digest(b"").hexdigest()


@pytest.mark.parametrize(
    ("value", "limit", "said"),
    [
        (0.3, 0.3, "0.30"),
        (100 / 333, 0.3, "0.3003"),
        (0.304, 0.3, "0.304"),
        (0.2999, 0.3, "0.30"),
        (0.30000001, 0.3, "0.30000001"),
        (1.0, 0.3, "1.00"),
        (-0.2, 0.0, "-0.20"),
        (0.001, 0.0, "0.001"),
        (0.0, 0.0, "0.00"),
        (-0.001, 0.0, "0.00"),
        (0.995, 1.0, "0.99"),
        (1.004, 1.0, "1.004"),
    ],
)
def test_points_show_on_which_side_of_the_limit_they_are(
    value: float, limit: float, said: str
) -> None:
    assert points(value, limit) == said
    assert (float(said) > limit) == (value > limit)


def test_a_target_missed_by_little_is_not_missed_by_nothing(tmp_path: Path) -> None:
    for drop in (100 / 333, 0.3000004, 0.31, 12.0):
        said = missed(drop, 0.3)
        assert float(said.partition("by ")[2].split()[0]) > 0, said
        assert f"{drop:.2f}" in said or points(drop, 0.3) in said
