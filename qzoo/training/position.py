"""Where training is, and what scripts do there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn


class Position(NamedTuple):
    """Where training is.

    Attributes:
        epoch: Counted from 0.
        step: Batch within the epoch, counted from 0.
        steps: Batches in an epoch.
    """

    epoch: int
    step: int
    steps: int

    @property
    def total(self) -> int:
        """Batches since the start of the training."""
        return self.epoch * self.steps + self.step

    def __str__(self) -> str:
        """Returns it in words, with epochs counted from 1."""
        return f"epoch {self.epoch + 1}, step {self.step} of {self.steps}"


class Hooks:
    """What a script does between steps; this one does nothing.

    A resumed run calls `before_epoch` again in the middle of an epoch, after the model's state was
    loaded. So what a hook does to the model must follow from where training is ("from epoch 3 on",
    not "in epoch 3"), and do no harm when done twice.
    """

    def before_epoch(self, model: nn.Module, at: Position) -> None:
        """Is called with the model in train mode, before an epoch or what is left of one.

        It may put parts of the model into eval mode, and choose which parameters are trained.
        """

    def before_step(self, model: nn.Module, at: Position) -> None:
        """Is called before every step."""

    def after_epoch(self, model: nn.Module, at: Position) -> Mapping[str, float | str]:
        """Is called after an epoch and its measurement, in all processes.

        Returns:
            More columns of log.csv, the same ones after every epoch.
        """
        return {}
