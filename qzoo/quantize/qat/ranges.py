"""The ranges of all activations of a model in training, in a few small tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..observers import IntegerRange, MovingAverage
from ..state import Quantization
from ..steps.shared_ranges import joined_layers


class Steps(NamedTuple):
    """A grid as rounding takes it, see `round_output`; of numbers, or of 0-d tensors.

    Attributes:
        scale: Step, above 0.
        low: Lowest integer less the zero point, at most 0.
        high: Highest integer less the zero point, at least 0.
    """

    scale: Any
    low: Any
    high: Any


class Ranges(nn.Module):
    """Ranges and the observers that move them.

    Batches are observed by their exact minima and maxima, which are averaged: all of the first
    batches alike, later ones by a moving average. A batch is rounded with the ranges that earlier
    ones left; what it adds is entered for all layers at once when it has passed.

    Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018, section 3.1, https://arxiv.org/abs/1712.05877.

    Attributes:
        grid: The integers that ranges are spread over. Values beyond a range still get integers up
            to 255, as int8 kernels have it, where the grid ends at 127.
        minimum: Float32 [L], the averaged lower ends, at most 0.
        maximum: Float32 [L], the averaged upper ends, at least 0.
        scale: Float32 [L], the steps that are rounded to; 0 where nothing was observed yet. A
            parameter where ranges are learned.
        zero_point: Int64 [L], the integers that stand for 0.0.
        batches: Int64, 0-d: how many batches were averaged.
        observing: Whether training batches move the ranges, unless those are learned.
        readers: Index of a range to the layers with weights that read what is rounded to it.
    """

    minimum: Tensor
    maximum: Tensor
    scale: Tensor
    zero_point: Tensor
    batches: Tensor
    #: How much of a new batch enters an average at the least.
    momentum = MovingAverage.momentum

    def __init__(self, count: int, grid: IntegerRange, learned: bool) -> None:
        super().__init__()
        self.grid, self.learned = grid, learned
        self.register_buffer("minimum", torch.zeros(count, dtype=torch.float32, device="cpu"))
        self.register_buffer("maximum", torch.zeros(count, dtype=torch.float32, device="cpu"))
        scale = torch.zeros(count, dtype=torch.float32, device="cpu")
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(count, dtype=torch.int64, device="cpu"))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.observing = True
        #: Whether nothing is rounded, which is how the first batch is observed.
        self.bypass = False
        self.readers: dict[int, list[nn.Module]] = {}
        self._steps: list[Steps] = []
        self._read: tuple[Any, ...] = ()
        self._seen: list[tuple[int, Tensor, Tensor]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what was read from the tensors, which in a copy count their changes anew."""
        return {**self.__dict__, "_steps": [], "_read": (), "_seen": []}

    def set(self, index: int, scale: float, zero_point: int) -> None:
        """Gives one layer a range, as PTQ chose it."""
        with torch.no_grad():
            self.scale[index], self.zero_point[index] = scale, zero_point
            self.minimum[index] = -zero_point * scale
            self.maximum[index] = (self.grid.high - zero_point) * scale
            # It weighs as much as all that a moving average remembers.
            self.batches.fill_(round(1 / self.momentum))

    # What happens in a forward pass.

    @property
    def moving(self) -> bool:
        """Whether a training batch is to be observed."""
        return self.bypass or (self.observing and not self.learned)

    def begin(self) -> bool:
        """Gets ready for a batch; returns whether all layers have a range."""
        self._seen.clear()
        if torch.compiler.is_compiling():
            return True
        key = (self.scale, self.scale._version, self.zero_point, self.zero_point._version)
        # Reading tensors on a GPU waits for it, so they are read again only where they changed.
        if len(self._read) != len(key) or any(
            a is not b and not (isinstance(a, int) and a == b)
            for a, b in zip(key, self._read, strict=True)
        ):
            pairs = zip(self.scale.tolist(), self.zero_point.tolist(), strict=True)
            self._steps = [Steps(s, float(-z), float(255 - z)) for s, z in pairs]
            self._read = key
        return all(step.scale for step in self._steps)

    def steps(self, index: int) -> Steps:
        """Returns the grid of one layer, of numbers; of tensors for `torch.compile`."""
        if torch.compiler.is_compiling():
            low = -self.zero_point[index].to(torch.float32)
            return Steps(self.scale[index], low, low + 255)
        return self._steps[index]

    def learns(self, index: int, x: Tensor) -> bool:
        """Returns whether the step of a range is trained on the values `x` that it rounds.

        Steps between frozen layers are as fixed as those layers: a step is learned where something
        in front of it is trained, or the weights of a layer that reads it.
        """
        if not (self.learned and torch.is_grad_enabled()):
            return False
        readers = self.readers.get(index, ())
        return x.requires_grad or any(layer.weight.requires_grad for layer in readers)

    def note(self, index: int, x: Tensor, relu: bool) -> None:
        """Takes note of a layer's output before it is rounded; `commit` enters it."""
        x = x.detach()
        # Each twenty times faster than torch.aminmax on CPUs.
        low = x.new_zeros(()) if relu else x.amin()
        self._seen.append((index, low.float(), x.amax().float()))

    def commit(self) -> None:
        """Averages what was noted into the ranges and chooses steps and zero points anew."""
        if not self._seen:
            return
        index = torch.tensor(
            [i for i, _, _ in self._seen], dtype=torch.int64, device=self.minimum.device
        )
        low = torch.stack([low for _, low, _ in self._seen])
        high = torch.stack([high for _, _, high in self._seen])
        self._seen.clear()
        # Where layers share a range it holds them all; and every range holds 0.
        ends = self.minimum.new_zeros(2, len(self.minimum))
        ends[0].scatter_reduce_(0, index, -low, "amax")
        ends[1].scatter_reduce_(0, index, high, "amax")
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(ends, dist.ReduceOp.MAX)  # the processes observe one common batch
        with torch.no_grad():
            share = (1.0 / (self.batches + 1).float()).clamp(min=self.momentum)
            self.minimum.lerp_(-ends[0], share)
            self.maximum.lerp_(ends[1], share)
            self.batches += 1
            scale, zero_point = self.grid.qparams(self.minimum, self.maximum)
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)


def range_index(state: Quantization) -> dict[str, int]:
    """Returns which range each layer has: concatenations and all that they join share one.

    Where the state has ranges that differ within such a group, as other people's PTQ leaves them,
    each layer of it keeps its own.
    """
    names = state.ranged()
    leader = {name: name for name in names}
    for members, _ in joined_layers(state.recording, names):
        if len({state.ranges.get(name) for name in members}) == 1:
            leader |= dict.fromkeys(members, members[0])
    order = {name: i for i, name in enumerate(dict.fromkeys(leader[n] for n in names))}
    return {name: order[leader[name]] for name in names}
