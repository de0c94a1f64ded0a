"""Mixup and CutMix: batches whose images and labels are blended.

H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018,
https://arxiv.org/abs/1710.09412; S. Yun et al., "CutMix: Regularization Strategy to Train Strong
Classifiers with Localizable Features", 2019, https://arxiv.org/abs/1905.04899. As in torchvision's
reference scripts, an image is blended with its neighbour in the (shuffled) batch.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .order import stream


class Mixing:
    """Blends batches.

    Args:
        mixup: Both parameters of the beta distribution that mixup draws its shares from; 0 for no
            mixup.
        cutmix: The same for CutMix. With both, either is taken with the same probability.
        classes: Number of classes.
        seed: Of the whole run.
    """

    def __init__(self, mixup: float, cutmix: float, classes: int, seed: int) -> None:
        self.alphas = {"mixup": mixup, "cutmix": cutmix}
        self.classes, self.seed = classes, seed

    def __call__(self, images: Tensor, labels: Tensor, *where: int) -> tuple[Tensor, Tensor]:
        """Blends a batch.

        Args:
            images: Float32 [N, 3, H, W].
            labels: Int64 [N].
            where: Numbers that say which batch of the run this is.

        Returns:
            Images, and the probability of every class, float32 [N, classes].
        """
        rng = np.random.default_rng(stream(self.seed, "mixing", *where))
        ways = [name for name, alpha in self.alphas.items() if alpha > 0]
        way = ways[int(rng.integers(len(ways)))]
        share = float(rng.beta(self.alphas[way], self.alphas[way]))
        target = one_hot(labels, self.classes).to(images.dtype)
        other = images.roll(1, 0)
        if way == "mixup":
            images = torch.lerp(other, images, share)
        else:
            height, width = images.shape[-2:]
            side = math.sqrt(1 - share) / 2
            row, column = int(rng.integers(height)), int(rng.integers(width))
            top, bottom = _span(row, int(side * height), height)
            left, right = _span(column, int(side * width), width)
            images = images.clone()
            images[..., top:bottom, left:right] = other[..., top:bottom, left:right]
            # What was really cut, because the rectangle may reach beyond the edge.
            share = 1 - (bottom - top) * (right - left) / (height * width)
        return images, torch.lerp(target.roll(1, 0), target, share)


def _span(middle: int, half: int, size: int) -> tuple[int, int]:
    return max(middle - half, 0), min(middle + half, size)
