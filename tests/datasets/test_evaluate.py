"""Accuracy: right counts, a sound interval, no side effects, clear errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import qzoo
from qzoo.datasets import Digits
from qzoo.datasets.evaluate import Metrics, evaluate
from qzoo.errors import ArgumentError
from qzoo.quantize.mixed.damage import DamageMeter


class Echo(nn.Module):
    """Gives its input back as logits, so that the data decides what is right."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.BatchNorm1d(3)
        self.frozen = nn.BatchNorm1d(3).eval()

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not self.trained.training
        return x


def pairs(logits: list[list[float]], labels: list[int]) -> TensorDataset:
    return TensorDataset(torch.tensor(logits), torch.tensor(labels))


def test_counts_topk_and_breaks_ties_by_class_number() -> None:
    data = pairs([[3, 2, 1], [3, 2, 1], [3, 2, 1], [1, 1, 0], [1, 1, 0]], [0, 1, 2, 0, 1])
    metrics = evaluate(Echo(), data, topk=(1, 2, 5), batch_size=2, progress=False)
    assert metrics == Metrics(5, {1: 2, 2: 4, 5: 5})
    assert (metrics.top1, metrics.top5) == (40, 100)
    assert metrics.to_dict() == {"acc@1": 40.0, "acc@2": 80.0, "acc@5": 100.0}
    assert "top-1 40.00 %" in str(metrics)


def test_loader_and_dataset_agree() -> None:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(50, 7, generator=generator), torch.randint(7, (50,), generator=generator)
    )
    loader = DataLoader(data, 16, shuffle=True)
    assert evaluate(Echo(), data, progress=False) == evaluate(Echo(), loader, progress=False)


def test_wilson_interval_is_the_root_of_its_definition() -> None:
    # The bounds are the shares p at which the observed share lies 1.96 standard errors away.
    for n, right in ((445, 441), (10, 0), (10, 10), (100, 37)):
        metrics = Metrics(n, {1: right})
        for bound in metrics.interval():
            p = bound / 100
            assert 0 <= p <= 1
            distance = abs(right / n - p)
            assert math.isclose(distance, 1.959964 * math.sqrt(p * (1 - p) / n), abs_tol=1e-6)


def test_modes_and_random_state_are_restored() -> None:
    model = Echo().train()
    model.frozen.eval()
    before = torch.get_rng_state()
    evaluate(model, DataLoader(pairs([[1, 0, 0]], [0]), 1), progress=False)
    assert [m.training for m in (model, model.trained, model.frozen)] == [True, True, False]
    assert torch.equal(before, torch.get_rng_state())


def test_int8_model() -> None:
    model = qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True)
    data = TensorDataset(torch.zeros(3, 3, 64, 64), torch.tensor([0, 1, 2]))
    assert evaluate(model, data, progress=False).n == 3


def test_modes_are_restored_after_an_error() -> None:
    model = Echo().train()
    with pytest.raises(ArgumentError):
        evaluate(model, pairs([[1, 0]], [5]), progress=False)
    assert model.training
    assert model.trained.training


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (TensorDataset(torch.zeros(0, 3), torch.zeros(0)), {}, "empty"),
        (DataLoader(TensorDataset(torch.zeros(0, 3), torch.zeros(0))), {}, "empty"),
        (pairs([[1, 0]], [2]), {}, "labels from 2 to 2.*only 2 classes"),
        (pairs([[1, 0]], [-1]), {}, "labels from -1"),
        (pairs([[float("nan"), 0]], [0]), {}, "not finite"),
        (pairs([[1], [-1]], [0, 0]), {}, "a single logit"),
        (pairs([[1, 0]], [0]), {"topk": ()}, "topk"),
        (pairs([[1, 0]], [0]), {"topk": (0,)}, "topk"),
        (pairs([[1, 0]], [0]), {"batch_size": 0}, "batch_size"),
        (Digits("test"), {}, "transforms"),
    ],
)
def test_bad_input_is_one_sentence(data: object, options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        evaluate(Echo(), data, progress=False, **options)  # type: ignore[arg-type]


def test_a_single_logit_is_yes_or_no() -> None:
    truth, given = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([[1.0], [-3.0], [-0.1]])
    meter = DamageMeter()
    meter.update(truth, given, torch.tensor([0, 0, 0]))
    found = meter.result()
    assert found.agreement == pytest.approx(200 / 3) and found.top1 is None
    divergence = 0.0
    for z, other in zip(truth.flatten().tolist(), given.flatten().tolist(), strict=True):
        p, q = 1 / (1 + math.exp(-z)), 1 / (1 + math.exp(-other))
        divergence += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert found.kl == pytest.approx(divergence / 3)
    noise = float((truth - given).square().sum() / truth.square().sum())
    assert found.sqnr_db == pytest.approx(-10 * math.log10(noise), abs=1e-5)
