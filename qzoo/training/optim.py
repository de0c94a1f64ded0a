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

from ..errors import ArgumentError

OPTIMIZERS = ("sgd", "sgd_nesterov", "rmsprop", "adamw")
#: Names of schedules, torchvision's beside shorter ones.
SCHEDULES = {
    "step": "step",
    "cosine": "cosine",
    "exponential": "exponential",
    "steplr": "step",
    "cosineannealinglr": "cosine",
    "exponentiallr": "exponential",
}


def parameter_groups(model: nn.Module, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a model's parameters with their weight decay.

    Args:
        model: The model.
        options: `weight_decay`, and `norm_weight_decay` for normalization layers or None for the
            same.
    """
    decay, norm_decay = options["weight_decay"], options["norm_weight_decay"]
    if norm_decay is None:
        return [{"params": list(model.parameters()), "weight_decay": decay}]
    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    norms = [p for m in model.modules() if isinstance(m, kinds) for p in m.parameters()]
    known = {id(p) for p in norms}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [(norms, norm_decay), (others, decay)]
    return [{"params": ps, "weight_decay": wd} for ps, wd in groups if ps]


def make_optimizer(groups: Iterable[dict[str, Any]], options: Mapping[str, Any]) -> Optimizer:
    """Makes the optimizer that --opt names.

    Args:
        groups: Parameter groups, such as those of `parameter_groups`; with a "lr" of their own
            where it should not be that of the options.
        options: `opt`, `lr`, `momentum` and `weight_decay`.
    """
    groups = [dict(group) for group in groups]
    name, lr = options["opt"], options["lr"]
    decay, momentum = options["weight_decay"], options["momentum"]
    if name == "adamw":
        return AdamW(groups, lr, weight_decay=decay)
    if name == "rmsprop":
        # TensorFlow's settings, with which MobileNetV3 was trained, in torchvision's form.
        return RMSprop(groups, lr, 0.9, 0.0316, weight_decay=decay, momentum=momentum)
    nesterov = name == "sgd_nesterov"
    return SGD(groups, lr, momentum=momentum, weight_decay=decay, nesterov=nesterov)


def lr_factor(epoch: int, options: Mapping[str, Any]) -> float:
    """Returns what an epoch's learning rate is of --lr.

    Args:
        epoch: Counted from 0.
        options: `epochs`, `lr`, `lr_scheduler`, `lr_step_size`, `lr_gamma`, `lr_min`,
            `lr_warmup_epochs`, `lr_warmup_method` and `lr_warmup_decay`.
    """
    warmup, decay = options["lr_warmup_epochs"], options["lr_warmup_decay"]
    if epoch < warmup:
        decay = 1 / (warmup + 1) if decay is None else decay
        return (
            decay
            if options["lr_warmup_method"] == "constant"
            else (decay + (1 - decay) * epoch / warmup)
        )
    epoch, kind = epoch - warmup, SCHEDULES[options["lr_scheduler"]]
    if kind == "step":
        return options["lr_gamma"] ** (epoch // options["lr_step_size"])
    if kind == "exponential":
        return options["lr_gamma"] ** epoch
    least = options["lr_min"] / options["lr"]
    return least + (1 - least) * (1 + math.cos(math.pi * epoch / (options["epochs"] - warmup))) / 2


def make_schedule(optimizer: Optimizer, options: Mapping[str, Any]) -> LambdaLR:
    """Makes the schedule that the options of `lr_factor` say, stepped once an epoch.

    Raises:
        ArgumentError: The warmup is as long as the training.
    """
    if options["lr_warmup_epochs"] >= options["epochs"]:
        raise ArgumentError(
            f"--lr-warmup-epochs {options['lr_warmup_epochs']} should be less than --epochs "
            f"{options['epochs']}."
        )
    return LambdaLR(optimizer, lambda epoch: lr_factor(epoch, options))


def ema_decay(options: Mapping[str, Any], world: int) -> float:
    """Returns what of the average stays at an update, so that it does not depend on the batches.

    The formula is torchvision's, from https://github.com/facebookresearch/pycls.

    Args:
        options: `model_ema_decay`, `model_ema_steps`, `batch_size` and `epochs`.
        world: Number of processes.
    """
    adjust = world * options["batch_size"] * options["model_ema_steps"] / options["epochs"]
    return 1 - min(1.0, (1 - options["model_ema_decay"]) * adjust)


class Ema:
    """An exponential moving average of a model's weights.

    Parameters and batch norm's running statistics are averaged; other buffers, such as counters
    and the ranges of observers, are those of the model.

    Args:
        model: The model.
        decay: What of the average stays at an update, from 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        averaged = {name for name, _ in model.named_parameters()}
        averaged |= {n for n in self.state if n.endswith(("running_mean", "running_var"))}
        self._averaged = averaged

    @torch.no_grad()
    def update(self, model: nn.Module, follow: bool = False) -> None:
        """Takes a step towards the model's weights, or the whole way if it is to follow them."""
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
        """Goes on from a `state` that was kept.

        Raises:
            ValueError: It is not of this model.
        """
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        if shapes != {name: value.shape for name, value in state.items()}:
            raise ValueError("the averaged weights are those of another model")
        for name, value in state.items():
            self.state[name] = value.to(self.state[name].device).clone()
