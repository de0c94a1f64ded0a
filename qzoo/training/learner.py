"""A model with all that changes it: one training step, and the state that a checkpoint keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._core.compiler import check_compiler
from ..errors import ArtifactError
from . import optim
from .distributed import Ranks, data_parallel, synchronize_batch_norm
from .mixing import Mixing
from .options import TrainOptions
from .position import Position
from .prepare import Prepared


class Learner:
    """Takes training steps.

    Attributes:
        model: The model itself; compilation and other processes aside.
        optimizer: Makes the steps.
        ema: The averaged weights, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Prepared,
        options: TrainOptions,
        ranks: Ranks,
        loss: nn.Module,
        optimizer: Optimizer | None,
    ) -> None:
        """Moves the model to its device.

        Args:
            model: The model, changed in place.
            data: The data.
            options: The options.
            ranks: The processes.
            loss: Gives the mean loss of logits, targets and images.
            optimizer: Made of the model's parameters; None for that of the options.
        """
        self.options, self.ranks = options, ranks
        self.model = model.to(ranks.device)
        compute = options.compute
        if compute.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compute.sync_bn:
            self.model = synchronize_batch_norm(self.model, ranks)
        self.loss = loss.to(ranks.device)
        groups = optim.parameter_groups(self.model, options.optimizer)
        self.optimizer = optimizer or optim.make_optimizer(
            groups, options.optimizer, options.schedule.lr
        )
        self.schedule = optim.make_schedule(self.optimizer, options.schedule)
        half = compute.amp and compute.amp_dtype == "float16"
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=half)
        self.ema: optim.Ema | None = None
        if options.average.model_ema:
            images, epochs = data.batch_size * ranks.world, options.schedule.epochs
            self.ema = optim.Ema(self.model, optim.ema_decay(options.average, images, epochs))
        self._mixing: Mixing | None = None
        if options.data.mixup_alpha or options.data.cutmix_alpha:
            alphas = options.data.mixup_alpha, options.data.cutmix_alpha
            self._mixing = Mixing(*alphas, len(data.classes), compute.seed)
        self._network: nn.Module = self.model
        self._wrapped: list[bool] | None = None

    @property
    def lr(self) -> float:
        """The learning rate of the last group of parameters."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def wrap(self) -> None:
        """Makes the model ready for steps; to be called again when other parameters train."""
        trained = [p.requires_grad for p in self.model.parameters()]
        if trained == self._wrapped:
            return
        self._wrapped = trained
        self._network = data_parallel(self.model, self.ranks)
        if self.options.compute.compile:
            if self.ranks.device.type == "cpu":
                check_compiler()
            self._network = torch.compile(self._network)  # type: ignore[assignment]

    def step(self, images: Tensor, labels: Tensor, at: Position) -> Tensor:
        """Takes a step.

        Args:
            images: Float32 [N, 3, H, W] of this process.
            labels: Int64 [N].
            at: Where training is.

        Returns:
            Float64 [3], on the device: the sum of the losses, the number of right answers, N.
        """
        options, compute, device = self.options, self.options.compute, self.ranks.device
        images = images.to(device, non_blocking=True)
        targets = labels = labels.to(device, non_blocking=True)
        if self._mixing:
            images, targets = self._mixing(images, labels, at.epoch, at.step, self.ranks.rank)
        if compute.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        dtype = getattr(torch, compute.amp_dtype)
        with torch.autocast(device.type, dtype, enabled=compute.amp):
            logits = self._network(images).float()
            loss = self.loss(logits, targets, images)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if options.optimizer.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), options.optimizer.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema and at.step % options.average.model_ema_steps == 0:
            # As long as the learning rate rises, the average follows the weights.
            self.ema.update(self.model, at.epoch < options.schedule.lr_warmup_epochs)
        right = (logits.detach().argmax(1) == labels).sum().double()
        total = loss.detach().double() * len(labels)
        return torch.stack([total, right, torch.full_like(total, len(labels))])

    def finite(self) -> bool:
        """Returns whether all weights are finite numbers."""
        return all(bool(torch.isfinite(p).all()) for p in self.model.parameters())

    def kept_weights(self) -> AbstractContextManager[None]:
        """Gives the model the weights to keep while a block runs: the averaged ones, if any."""
        return self.ema.applied(self.model) if self.ema else nullcontext()

    def finish(self) -> None:
        """Gives the model the weights to keep for good, and puts it into eval mode."""
        if self.ema:
            self.model.load_state_dict(self.ema.state)
        self.model.eval()

    def state(self) -> dict[str, Any]:
        """Returns all that steps change: tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state if self.ema else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned.

        Raises:
            ArtifactError: It is of another model or optimizer.
        """
        own = {
            "optimizer": self.optimizer.state_dict()["param_groups"],
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            # A schedule takes every key for an attribute of its own.
            known = {k: state["schedule"][k] for k in own["schedule"] if k in state["schedule"]}
            self.schedule.load_state_dict({**known, "lr_lambdas": own["schedule"]["lr_lambdas"]})
            self.scaler.load_state_dict(state["scaler"])
            if self.ema:
                self.ema.load(state["ema"], self.model)
        except Exception as error:  # PyTorch refuses in many ways what is not its own
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(f"The checkpoint does not fit this model ({reason}).") from None
        # The rest PyTorch takes as it comes, and would fail on it later or compute with it.
        now = {
            "optimizer": self.optimizer.state_dict()["param_groups"],
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        for what, before in own.items():
            if not _alike(before, now[what]):
                raise ArtifactError(f"The checkpoint's {what} is not that of such a run.")
        if not self._good_moments():
            raise ArtifactError("The checkpoint's optimizer does not fit this model's weights.")
        if not self.finite():
            raise ArtifactError("The checkpoint has weights that are not finite numbers.")

    def _good_moments(self) -> bool:
        """Whether what the optimizer remembers of each parameter has its shape and is finite."""
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for parameter, moments in self.optimizer.state.items():
            if id(parameter) not in known or not isinstance(moments, dict):
                return False
            for name, value in moments.items():
                if name == "momentum_buffer" and value is None:
                    continue
                if not isinstance(value, Tensor) or not bool(torch.isfinite(value).all()):
                    return False
                if value.shape != (() if name == "step" else parameter.shape):
                    return False
        return True


def _alike(before: Any, after: Any) -> bool:
    """Whether two states have the same structure, and numbers that are finite where numbers belong.

    Versions of PyTorch differ in their flags, so that one that is off or unset may be missing.
    """
    if isinstance(before, dict):
        return isinstance(after, dict) and all(
            _alike(value, after[key]) if key in after else not value
            for key, value in before.items()
        )
    if isinstance(before, (list, tuple)):
        return (
            isinstance(after, (list, tuple))
            and len(before) == len(after)
            and all(map(_alike, before, after))
        )
    if type(before) in (int, float):
        return type(after) in (int, float) and math.isfinite(after)
    return type(before) is type(after)
