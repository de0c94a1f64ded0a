"""When quantization-aware training stops moving ranges and batch norm's statistics."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...errors import ArgumentError
from .model import unwrap


@dataclass(frozen=True)
class Schedule:
    """When to freeze what batches teach: observers, and batch norm's statistics.

    Each number is how long something moves, counted from the start of training: torchvision's
    `--num-observer-update-epochs` and `--num-batch-norm-update-epochs` are the first two. None
    means to the end.

    Attributes:
        observer_epochs: Epochs in which batches move the ranges.
        batch_norm_epochs: Epochs in which batch norm uses and averages batch statistics.
        observer_steps: The same in steps; whichever ends first counts.
        batch_norm_steps: The same in steps.
    """

    observer_epochs: int | None = None
    batch_norm_epochs: int | None = None
    observer_steps: int | None = None
    batch_norm_steps: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (type(value) is not int or value < 0):
                raise ArgumentError(f"{name} should be a whole number or None, not {value!r}.")

    def apply(self, model: nn.Module, epoch: int = 0, step: int = 0) -> None:
        """Freezes what is to be frozen by now, and nothing else; call it as often as you like.

        Args:
            model: What `prepare` returned, perhaps wrapped in `DistributedDataParallel`.
            epoch: How many epochs are done.
            step: How many steps are done, in all epochs together.

        Raises:
            ArgumentError: `model` is not in training.
        """
        qat = unwrap(model)
        qat.freeze_observers(_over(epoch, self.observer_epochs) or _over(step, self.observer_steps))
        qat.freeze_batch_norm(
            _over(epoch, self.batch_norm_epochs) or _over(step, self.batch_norm_steps)
        )


def _over(done: int, most: int | None) -> bool:
    return most is not None and done >= most
