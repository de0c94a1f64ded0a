"""Top-1 and top-k accuracy of a float or int8 model, with its confidence interval."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .._torch.defaults import plain_defaults
from ..artifact.format import Artifact
from ..errors import ArgumentError, QzooError
from ..native.model import as_callable
from .pairs import batch_pair, image_and_label, not_a_tensor

#: Standard normal quantile of a two-sided 95 % interval.
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Metrics:
    """How often a model was right.

    Attributes:
        n: Number of images.
        correct: k to the number of images whose label was among the k largest logits.
    """

    n: int
    correct: Mapping[int, int]

    def accuracy(self, k: int) -> float:
        """Returns top-k accuracy in percent; `k` must have been asked for."""
        return 100 * self.correct[k] / self.n

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return self.accuracy(1)

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent."""
        return self.accuracy(5)

    def interval(self, k: int = 1) -> tuple[float, float]:
        """Returns Wilson's 95 % score interval of top-k accuracy, in percent.

        Unlike the normal approximation it stays inside [0, 100] and is sound near its ends.
        Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical
        Inference", JASA 22 (1927), https://doi.org/10.1080/01621459.1927.10502953.
        """
        share, z2 = self.correct[k] / self.n, _Z95**2 / self.n
        centre = share + z2 / 2
        half = _Z95 * math.sqrt(share * (1 - share) / self.n + z2 / (4 * self.n))
        low, high = (centre - half) / (1 + z2), (centre + half) / (1 + z2)
        return 100 * max(low, 0.0), 100 * min(high, 1.0)

    def to_dict(self) -> dict[str, float]:
        """Returns {"acc@1": percent, ...} rounded to three digits, as weights metadata holds it."""
        return {f"acc@{k}": round(self.accuracy(k), 3) for k in self.correct}

    def __str__(self) -> str:
        """Puts the figures into one line."""
        shares = ", ".join(f"top-{k} {self.accuracy(k):.2f} %" for k in self.correct)
        if 1 in self.correct:
            low, high = self.interval()
            shares += f" (95 % interval of top-1: {low:.2f} to {high:.2f} %)"
        return f"{shares} on {self.n} images"


def points(value: float, limit: float) -> str:
    """Returns points of accuracy with as many digits as show on which side of a limit they are.

    Args:
        value: The points.
        limit: What they are compared with.
    """
    side = _side(value, limit)
    enough = (d for d in range(2, 9) if _side(round(value, d), limit) == side)
    shown = round(value, next(enough, 9))
    digits = next(d for d in range(2, 10) if round(shown, d) == shown)
    return f"{shown + 0.0:.{digits}f}"  # a zero has no sign


def _side(value: float, limit: float) -> bool:
    return value > limit + 1e-9


def evaluate(
    model: nn.Module | Artifact | str | os.PathLike[str] | Callable[[Tensor], Tensor],
    data: Dataset[Any] | DataLoader[Any],
    *,
    batch_size: int = 256,
    topk: Sequence[int] = (1, 5),
    progress: bool = True,
) -> Metrics:
    """Measures the accuracy of a model.

    The model runs in eval mode, on the device of its parameters; every module's own train or eval
    mode is restored afterwards.

    Args:
        model: Float, native int8, what `qzoo.compile` returned, or any function; takes float32
            [N, 3, H, W] and gives logits [N, classes]. An artifact, or the path of one, runs as its
            native model.
        data: Pairs of a transformed image, float32 [3, H, W], and an integer label; or a loader
            of batches of them, with its own batch size.
        batch_size: Images per forward pass, where `data` is a data set.
        topk: Which top-k accuracies to count; where a model has fewer than k classes, top-k is
            100 %.
        progress: Whether to show a progress bar on stderr.

    Raises:
        ArtifactError: The path leads to no int8 model.
        ArgumentError: No images, images that are not tensors, labels that the model has no class
            for, logits that are not numbers, or impossible arguments.
    """
    if not topk or any(type(k) is not int or k < 1 for k in topk):
        raise ArgumentError(f"topk should be positive integers such as (1, 5), not {topk!r}.")
    loader = data if isinstance(data, DataLoader) else _loader(data, batch_size)
    run = as_callable(model)
    parameters = run.parameters() if isinstance(run, nn.Module) else ()
    device = next((p.device for p in parameters), torch.device("cpu"))
    correct, n = dict.fromkeys(topk, 0), 0
    batches = tqdm(loader, desc="evaluate", unit="batch", disable=not progress, leave=False)
    # Every pass over a loader draws a seed for its workers from the global random state.
    kept = torch.random.fork_rng(devices=[])
    with kept, eval_mode(run), torch.inference_mode(), plain_defaults():
        for item in _plain_errors(batches):
            images, labels = batch_pair(item)
            if labels is None:
                raise ArgumentError(
                    "The data gives images without labels, and accuracy needs both: give pairs."
                )
            logits = run(images.to(device)).cpu()
            ranks = _ranks(logits, labels)
            for k in topk:
                correct[k] += int((ranks < k).sum())
            n += len(labels)
    if n == 0:
        raise ArgumentError("There are no images to evaluate on: the data set is empty.")
    return Metrics(n, correct)


def _plain_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields batches; the error of a loader's worker is the sentence that it raised."""
    try:
        yield from batches
    except QzooError as error:
        _, traceback, original = str(error).rpartition("Original Traceback")
        if not traceback:
            raise
        raise type(error)(original.rpartition(f"{type(error).__name__}: ")[2].strip()) from None


def _loader(data: Dataset[Any], batch_size: int) -> DataLoader[Any]:
    if type(batch_size) is not int or batch_size < 1:
        raise ArgumentError(f"batch_size should be a positive integer, not {batch_size!r}.")
    # A PyTorch data set need not have a length or an order, but all that is measured here does.
    if len(data) == 0:  # type: ignore[arg-type]
        raise ArgumentError("There are no images to evaluate on: the data set is empty.")
    image, _ = image_and_label(data[0])
    if not isinstance(image, Tensor):
        raise ArgumentError(not_a_tensor(image))
    return DataLoader(data, batch_size)


def _ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns int64 [N]: how many classes come before the label, 0 where the model is right.

    Int8 logits are often equal; the class of the lower number then comes first, so that figures do
    not depend on how a sorting routine breaks ties.
    """
    classes = logits.shape[1]
    if classes == 1:
        raise ArgumentError(
            "The model gives a single logit, whose top-1 would always be right: compare its "
            "probability, the sigmoid, with a threshold of your own."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ArgumentError(
            f"The data set has labels from {int(labels.min())} to {int(labels.max())}, but the "
            f"model tells only {classes} classes apart: they do not belong together."
        )
    if not bool(torch.isfinite(logits).all()):
        raise ArgumentError("The model gives logits that are not finite numbers.")
    own, label = logits.gather(1, labels[:, None]), labels[:, None]
    earlier = (logits == own) & (torch.arange(classes, dtype=torch.int64, device="cpu") < label)
    return ((logits > own) | earlier).sum(dim=1)


@contextmanager
def eval_mode(model: object) -> Iterator[None]:
    """Puts a module into eval mode and every part of it back into its own; does nothing to others.

    Args:
        model: A module, or any function.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    # Module by module, because frozen parts of a model in training are in eval mode on purpose.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
