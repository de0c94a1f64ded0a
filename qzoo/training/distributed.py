"""Training in several processes, which `torchrun` starts: PyTorch's DistributedDataParallel."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from .._torch.threads import torch_threads
from ..datasets.evaluate import Metrics, evaluate
from ..errors import ArgumentError
from .script import Failure, environment_count


@dataclass(frozen=True)
class Ranks:
    """The processes of a run and which one of them this is.

    Attributes:
        device: Where this process computes.
        rank: This process's number; number 0 writes files and results.
        world: How many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and results."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum over all processes of a tensor on `device`."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Returns the value of every process, in the order of their numbers."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Gives a model's buffers in all processes the first one's values."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Lets the first process do something, such as filling a cache, before the others do."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()


@contextmanager
def joined(device: str | None, threads: int | None = None) -> Iterator[Ranks]:
    """Joins the processes that `torchrun` started; without it, this one is alone.

    Args:
        device: "cpu", "cuda", "cuda:1" and so on; None takes a GPU where there is one.
        threads: CPU threads that each process computes with meanwhile; None leaves PyTorch's.

    Raises:
        ArgumentError: There is no such device.
        Failure: Another process died, or this one is told to stop.
    """
    world, rank = environment_count("WORLD_SIZE", 1), environment_count("RANK", 0)
    found = _device(device, world)
    if world == 1:
        with torch_threads(threads):
            yield Ranks(found)
        return
    signal.signal(signal.SIGTERM, _stopped)
    dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
    try:
        with torch_threads(threads):
            yield Ranks(found, rank, world)
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise Failure(f"Another process of this run ended. {GO_ON}") from None
    # After an error the others no longer answer, and leaving the group would wait for them.
    dist.destroy_process_group()


#: What to do after a run of several processes broke off.
GO_ON = (
    "Start it again with --resume auto (qzoo finetune: --resume): it goes on from its last "
    "checkpoint."
)


def _device(name: str | None, world: int) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ArgumentError(f"--device {name!r} is no device: try cpu or cuda.") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ArgumentError("PyTorch finds no CUDA device: leave --device out, or say cpu.")
        if world > 1:
            device = torch.device("cuda", environment_count("LOCAL_RANK", 0))
            torch.cuda.set_device(device)
    return device


def _stopped(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Failure(
        f"Stopped (SIGTERM), most likely because another process of this run ended. {GO_ON}"
    )


def _is_lost_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    signs = ("connection closed by peer", "connection reset", "broken pipe", "connection was")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)


def data_parallel(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Returns the model such that its gradients are averaged over all processes."""
    if ranks.world == 1:
        return model
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(model, devices)


def evaluate_all(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: Any,
    ranks: Ranks,
    *,
    batch_size: int = 256,
    workers: int = 0,
) -> Metrics:
    """Measures accuracy, every process on its share of the images.

    Args:
        model: The model, or what `qzoo.compile` made of it; the same in all processes.
        data: The data set.
        ranks: The processes.
        batch_size: Images per forward pass.
        workers: Processes of each process that prepare images.

    Returns:
        The metrics on the whole data set, the same in all processes.
    """
    share: Any = data
    if ranks.world > 1:
        share = Subset(data, range(ranks.rank, len(data), ranks.world))
    counts = torch.zeros(3, dtype=torch.int64, device=ranks.device)
    if len(share):
        loader: Any = DataLoader(
            share, batch_size, num_workers=workers, pin_memory=ranks.device.type == "cuda"
        )
        metrics = evaluate(model, loader, progress=ranks.first)
        counts += torch.tensor(
            [metrics.n, metrics.correct[1], metrics.correct[5]], dtype=torch.int64, device="cpu"
        ).to(counts)
    n, top1, top5 = ranks.total(counts).tolist()
    return Metrics(n, {1: top1, 5: top5})


def synchronize_batch_norm(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Makes batch norm layers normalize with the statistics of the batches of all processes.

    Args:
        model: Changed in place; its state dict keeps its names.
        ranks: The processes; with one, nothing changes.

    Returns:
        The model.
    """
    if ranks.world == 1:
        return model
    if ranks.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, SyncBatchNorm2d.of(child))
    return model


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.SyncBatchNorm` for CPUs, whose tensors PyTorch's own refuses (as of torch 2.14).

    Every process has the same number of images.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> SyncBatchNorm2d:
        """Returns such a layer with the parameters and buffers of a batch norm layer."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine)
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        return made.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes float [N, C, H, W], as batch norm over all processes' batches does."""
        if not self.training:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        n = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _Total.apply(x.sum((0, 2, 3))) / n
        centred = x - mean[:, None, None]
        variance = _Total.apply(centred.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = self.momentum or 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (n / max(n - 1, 1)), share)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


class _Total(torch.autograd.Function):
    """Sums over processes, and so does its gradient: every sum enters every process's loss.

    PyTorch's own differentiable `all_reduce` is deprecated in favour of a private module.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient
