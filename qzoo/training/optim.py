"""Optimizers, learning-rate schedules and averaged weights, called as in torchvision's scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR

from .options import AverageOptions, OptimizerOptions, ScheduleOptions


def parameter_groups(model: nn.Module, options: OptimizerOptions) -> list[dict[str, Any]]:
    """Returns a model's parameters with their weight decay."""
    decay, norm_decay = options.weight_decay, options.norm_weight_decay
    if norm_decay is None:
        return [{"params": list(model.parameters()), "weight_decay": decay}]
    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    norms = [p for m in model.modules() if isinstance(m, kinds) for p in m.parameters()]
    known = {id(p) for p in norms}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [(norms, norm_decay), (others, decay)]
    return [{"params": ps, "weight_decay": wd} for ps, wd in groups if ps]


def make_optimizer(
    groups: Iterable[dict[str, Any]], options: OptimizerOptions, lr: float
) -> Optimizer:
    """Makes the optimizer that the options name.

    Args:
        groups: Parameter groups, such as those of `parameter_groups`.
        options: The options.
        lr: Learning rate of the groups without a "lr" of their own.
    """
    groups = [dict(group) for group in groups]
    name, decay, momentum = options.opt, options.weight_decay, options.momentum
    if name == "adamw":
        return AdamW(groups, lr, weight_decay=decay)
    if name == "rmsprop":
        # TensorFlow's settings, with which MobileNetV3 was trained, in torchvision's form.
        return RMSprop(groups, lr, 0.9, 0.0316, weight_decay=decay, momentum=momentum)
    nesterov = name == "sgd_nesterov"
    return SGD(groups, lr, momentum=momentum, weight_decay=decay, nesterov=nesterov)


def lr_factor(epoch: int, options: ScheduleOptions) -> float:
    """Returns the learning rate of an epoch, counted from 0, as a multiple of --lr."""
    warmup, decay = options.lr_warmup_epochs, options.lr_warmup_decay
    if epoch < warmup:
        decay = 1 / (warmup + 1) if decay is None else decay
        rise = 0.0 if options.lr_warmup_method == "constant" else epoch / warmup
        return decay + (1 - decay) * rise
    epoch -= warmup
    if options.lr_scheduler == "step":
        return options.lr_gamma ** (epoch // options.lr_step_size)
    if options.lr_scheduler == "exponential":
        return options.lr_gamma**epoch
    least = options.lr_min / options.lr
    return least + (1 - least) * (1 + math.cos(math.pi * epoch / (options.epochs - warmup))) / 2


def make_schedule(optimizer: Optimizer, options: ScheduleOptions) -> LambdaLR:
    """Makes the schedule that the options say, to be stepped once an epoch."""
    return LambdaLR(optimizer, lambda epoch: lr_factor(epoch, options))


def ema_decay(options: AverageOptions, images_per_step: int, epochs: int) -> float:
    """Returns how much of the average stays at an update, so that batch sizes do not matter.

    The formula is torchvision's, from https://github.com/facebookresearch/pycls.

    Args:
        options: The options.
        images_per_step: Images of a training step, of all processes together.
        epochs: Length of the training.
    """
    adjust = images_per_step * options.model_ema_steps / epochs
    return 1 - min(1.0, (1 - options.model_ema_decay) * adjust)


class Ema:
    """An exponential moving average of a model's weights.

    Parameters and batch norm's running statistics are averaged; other buffers, such as counters
    and the ranges of observers, are those of the model.

    Args:
        model: The model.
        decay: How much of the average stays at an update, from 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        averaged = {name for name, _ in model.named_parameters()}
        averaged |= {n for n in self.state if n.endswith(("running_mean", "running_var"))}
        self._averaged = averaged

    @torch.no_grad()
    def update(self, model: nn.Module, follow: bool = False) -> None:
        """Moves the average towards the model's weights; with `follow`, sets it to them."""
        share = 1.0 if follow else 1 - self.decay
        for name, value in model.state_dict().items():
            if name in self._averaged and value.is_floating_point():
                self.state[name].lerp_(value, share)
            elif self.state[name].shape == value.shape:
                self.state[name].copy_(value)
            else:
                self.state[name] = value.detach().clone()

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Gives the model the averaged weights, and its own ones back afterwards."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def load(self, state: Mapping[str, Tensor], model: nn.Module) -> None:
        """Goes on from the `state` of a checkpoint.

        Raises:
            ValueError: It is not of this model.
        """
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        if shapes != {name: value.shape for name, value in state.items()}:
            raise ValueError("the averaged weights are those of another model")
        for name, value in state.items():
            self.state[name] = value.to(self.state[name].device).clone()
