"""How far logits are from those of the float model, gathered batch by batch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Damage:
    """What a change does to a model's logits.

    Attributes:
        sqnr_db: Signal-to-noise ratio of the logits in decibels, after the mean of every image's
            logits, where there are several, is taken out of them, because it changes no answer:
            infinite where nothing changed, 0 where the noise is as large as the signal.
        kl: Mean Kullback-Leibler divergence of the class probabilities from the float model's, in
            nats.
        agreement: Share of the images whose first answer is still the float model's, in percent.
        top1: Share of right first answers in percent; None without labels, and for models with a
            single logit.
    """

    sqnr_db: float
    kl: float
    agreement: float
    top1: float | None = None

    @property
    def noise(self) -> float:
        """Power of the noise as a share of the signal's power; 0 where nothing changed."""
        return 10 ** (-self.sqnr_db / 10)

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON values; an infinite ratio becomes None."""
        return {k: json_number(v) for k, v in asdict(self).items()}


class DamageMeter:
    """Gathers `Damage` over batches."""

    def __init__(self) -> None:
        self._signal = self._noise = self._kl = 0.0
        self._same = self._right = self._count = self._labelled = 0

    def update(self, truth: Tensor, logits: Tensor, labels: Tensor | None = None) -> None:
        """Takes note of a batch.

        Args:
            truth: The float model's logits [N, classes].
            logits: The changed model's.
            labels: int64 [N], or None.
        """
        truth, logits = truth.double(), logits.double()
        signal, noise = truth, logits - truth
        if truth.shape[1] > 1:
            signal = truth - truth.mean(dim=1, keepdim=True)
            noise = logits - logits.mean(dim=1, keepdim=True) - signal
        self._signal += float(signal.square().sum())
        self._noise += float(noise.square().sum())
        expected, given = _log_probabilities(truth), _log_probabilities(logits)
        self._kl += float((expected.exp() * (expected - given)).sum().clamp(min=0))
        answers = first_answers(logits)
        self._same += int((answers == first_answers(truth)).sum())
        self._count += len(truth)
        if labels is not None and logits.shape[1] > 1:
            self._right += int((answers == labels).sum())
            self._labelled += len(labels)

    def result(self) -> Damage:
        """Returns the figures over all batches so far, of which there must be one."""
        labelled = self._labelled == self._count
        return Damage(
            decibels(self._signal, self._noise),
            self._kl / self._count,
            100 * self._same / self._count,
            100 * self._right / self._count if labelled else None,
        )


def first_answers(logits: Tensor) -> Tensor:
    """Returns the first answer to every image, int64 [N].

    That is the class of the largest logit. A single logit says yes (1) where it is above 0, which
    is a probability above a half, and else no (0).

    Args:
        logits: Float [N, classes].
    """
    return logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


def _log_probabilities(logits: Tensor) -> Tensor:
    """Returns the logarithms of what logits say of every class; of one, of yes and of no."""
    if logits.shape[1] == 1:
        return torch.cat([logsigmoid(logits), logsigmoid(-logits)], dim=1)
    return logits.log_softmax(dim=1)


def decibels(signal: float, noise: float) -> float:
    """Returns the ratio of two powers in decibels: infinite without noise, else finite."""
    if noise <= 0:
        return math.inf
    return 10 * math.log10(max(signal, 1e-30) / noise)


def sqnr(expected: Tensor, given: Tensor) -> float:
    """Returns the signal-to-quantization-noise ratio of a tensor in decibels.

    Args:
        expected: The exact values.
        given: The same after rounding.
    """
    expected = expected.double()
    noise = (given.double() - expected).square().sum()
    return decibels(float(expected.square().sum()), float(noise))


def json_number(value: Any) -> Any:
    """Returns a number for JSON: None for an infinite one, else with six digits."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
