"""Top-1 of the float and the int8 model on the same images, and how sure their difference is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..datasets.evaluate import Metrics
from ..quantize.data import LabelledImages
from ..quantize.mixed.damage import first_answers
from .measures import Figures

#: Standard normal quantile of a two-sided 95 % interval.
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Accuracy(Figures):
    """How often both models are right, all in percent; intervals are of 95 %.

    Attributes:
        images: Number of images.
        float_top1: Top-1 of the float model; None without labels.
        float_interval: Wilson's interval of it.
        int8_top1: Top-1 of the int8 model; None without labels.
        int8_interval: Wilson's interval of it.
        drop: Points that int8 lost (negative: won); None without labels.
        drop_interval: Its interval, of paired answers: where both models are right or both wrong,
            they cannot differ, so that it is much narrower than the intervals of top-1.
        agreement: Share of the images with the same first answer of both models.
        agreement_interval: Wilson's interval of it.
    """

    images: int
    float_top1: float | None
    float_interval: tuple[float, float] | None
    int8_top1: float | None
    int8_interval: tuple[float, float] | None
    drop: float | None
    drop_interval: tuple[float, float] | None
    agreement: float
    agreement_interval: tuple[float, float]


def measure_accuracy(
    float_model: Callable[[Tensor], Tensor],
    int8: Callable[[Tensor], Tensor],
    data: LabelledImages,
    progress: bool = True,
) -> Accuracy:
    """Runs both models over images.

    Args:
        float_model: Float32 [N, 3, H, W] to logits [N, classes].
        int8: The same of the int8 model.
        data: Images, with labels or without.
        progress: Whether to show a progress bar on stderr.
    """
    first: list[Tensor] = []
    second: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.inference_mode():
        for x, y in tqdm(data, desc="accuracy", unit="batch", leave=False, disable=not progress):
            logits = float_model(x)
            first.append(first_answers(logits))
            second.append(first_answers(int8(x)))
            if y is not None and logits.shape[1] > 1:
                labels.append(y)
    a, b = torch.cat(first), torch.cat(second)
    n = len(a)
    same = Metrics(n, {1: int((a == b).sum())})
    if sum(map(len, labels)) != n:
        return Accuracy(n, None, None, None, None, None, None, same.top1, same.interval())
    truth = torch.cat(labels)
    right, kept = a == truth, b == truth
    before, after = Metrics(n, {1: int(right.sum())}), Metrics(n, {1: int(kept.sum())})
    lost, won = int((right & ~kept).sum()), int((kept & ~right).sum())
    return Accuracy(
        n, before.top1, before.interval(), after.top1, after.interval(), before.top1 - after.top1,
        paired_interval(lost, won, n), same.top1, same.interval(),
    )  # fmt: skip


def paired_interval(lost: int, won: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a difference of two accuracies on the same images, in points.

    Source: A. Agresti and Y. Min, "Simple improved confidence intervals for comparing matched
    proportions", Statistics in Medicine 24 (2005), https://doi.org/10.1002/sim.1781: Wald's
    interval after half an image is added to each of the four kinds.

    Args:
        lost: Images that only the first model got right.
        won: Images that only the second one got right.
        n: Number of all images.
    """
    b, c, total = lost + 0.5, won + 0.5, n + 2
    centre = (b - c) / total
    half = _Z95 * math.sqrt(b + c - (b - c) ** 2 / total) / total
    return 100 * max(centre - half, -1.0), 100 * min(centre + half, 1.0)
