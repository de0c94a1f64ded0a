"""The model in quantization-aware training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...artifact.format import Artifact
from ...errors import ArgumentError
from ..data import nothing
from ..source import record_forward
from ..state import Quantization
from .convert import build_artifact
from .graph import build_graph, compile_graph
from .ranges import Ranges


@dataclass
class QatPlan:
    """How a model in training becomes int8; copies of the model share it.

    Attributes:
        state: The model on its way to int8, without numbers: its `fused` is on the meta device.
            For PT2E, calibration images in it measure what torchao leaves in float.
        index: Layer name to its range in `Ranges`.
        notes: What the artifact's recipe says of the training.
        folds: Layer name to the name of the batch norm behind it, where batch norm was kept.
    """

    state: Quantization
    index: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    folds: dict[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: Any) -> QatPlan:
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the recording, whose functions cannot be pickled, and the images."""
        state = copy.copy(self.state)
        del state.recording, state.calibration
        return {**self.__dict__, "state": state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Records the forward pass again."""
        self.__dict__.update(state)
        own = self.state
        own.recording, own.calibration = record_forward(own.info, own.layers), nothing()

    def fresh_state(self) -> Quantization:
        """Returns a state of its own, whose weights and biases are yet to be written."""
        state = copy.copy(self.state)
        state.fused = copy.deepcopy(state.fused).to_empty(device="cpu")
        state.ranges, state.weight_scales, state.rounded = {}, {}, {}
        return state


class InTraining(nn.Module):
    """What models in quantization-aware training have in common, whatever the flow."""

    def freeze_observers(self, frozen: bool = True) -> None:
        """Stops batches from moving the ranges, or lets them move on."""
        raise NotImplementedError

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Has batch norms use their running statistics, and keep them, in train mode too.

        Their weights and biases train on. Without effect where batch norm was folded.
        """
        raise NotImplementedError

    def to_artifact(self) -> Artifact:
        """Returns the int8 artifact; see `qat.to_artifact`."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> InTraining:
        """Copies all but the forward pass and the plan, which do not change."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


class QatModel(InTraining):
    """A model that trains as usual and computes as its int8 model will.

    Parameters and batch norms have the user's names ("layer1.0.conv1.weight"). In train mode,
    batches move the ranges until observers are frozen; in eval mode nothing moves, and the answers
    are those of the model that `convert` gives. The state dict holds all there is, the ranges and
    what is frozen included.

    Attributes:
        ranges: The ranges of all activations.
        plan: How it becomes int8.
    """

    def __init__(self, plan: QatPlan, ranges: Ranges) -> None:
        super().__init__()
        self.plan, self.ranges = plan, ranges
        self._run: Callable[[nn.Module, Tensor], Tensor]
        self._norms_frozen = False

    def set_graph(self, graph: fx.Graph) -> None:
        """Takes a forward pass over this module's own modules."""
        self._run = compile_graph(graph)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the forward pass, a function made at run time, which cannot be pickled."""
        return {key: value for key, value in self.__dict__.items() if key != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes the forward pass again."""
        super().__setstate__(state)
        norms = {name: self.get_submodule(name) for name in self.plan.folds.values()}
        self.set_graph(build_graph(self.plan.state, self.plan.index, norms))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits, float32 [N, classes], of images, float32 [N, 3, H, W].

        Raises:
            ArgumentError: There are no ranges yet, and this is no training batch to observe.
        """
        ready = self.ranges.begin()
        if not ready:
            self._observe_first(x)
        logits = self._run(self, x)
        if ready and self.training:
            self.ranges.commit()
        return logits

    def train(self, mode: bool = True) -> QatModel:
        """Switches between training and evaluation; frozen batch norms stay as they are."""
        super().train(mode)
        if self._norms_frozen:
            for norm in self._norms():
                norm.eval()
        return self

    def freeze_observers(self, frozen: bool = True) -> None:
        """Stops batches from moving the ranges, or lets them move on; learned ones learn on."""
        self.ranges.observing = not frozen

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Has batch norms use their running statistics, and keep them, in train mode too."""
        self._norms_frozen = frozen
        for norm in self._norms():
            norm.train(self.training and not frozen)

    def to_artifact(self) -> Artifact:
        """Returns the int8 artifact; see `qat.to_artifact`."""
        return build_artifact(self)

    def get_extra_state(self) -> Tensor:
        """Returns what is frozen, bool [2], for the state dict."""
        return torch.tensor(
            [not self.ranges.observing, self._norms_frozen], dtype=torch.bool, device="cpu"
        )

    def set_extra_state(self, state: Tensor) -> None:
        """Freezes what a state dict says."""
        observers, norms = state.tolist()
        self.freeze_observers(observers)
        self.freeze_batch_norm(norms)

    def _norms(self) -> list[nn.Module]:
        return [self.get_submodule(name) for name in self.plan.folds.values()]

    def _observe_first(self, x: Tensor) -> None:
        """Takes the first ranges from a batch that runs through the model without rounding."""
        if not self.training:
            raise ArgumentError(
                "This model has no ranges yet: run a training batch through it first, or give "
                "prepare calibration images (data=) or a PTQ result (from_ptq=)."
            )
        ranges = self.ranges
        dropouts = [m for m in self.modules() if isinstance(m, nn.Dropout)]
        norms: list[Any] = self._norms()
        ranges.bypass = True
        try:
            for dropout in dropouts:
                dropout.eval()
            # Batch statistics, as in training, but the running ones are not to count it twice.
            for norm in norms:
                norm.track_running_stats = False
            with torch.no_grad():
                self._run(self, x)
        finally:
            ranges.bypass = False
            for norm in norms:
                norm.track_running_stats = True
            for dropout in dropouts:
                dropout.train()
        ranges.commit()
        ranges.begin()


def unwrap(model: nn.Module) -> InTraining:
    """Returns the model in training inside of what may be wrapped around it.

    Raises:
        ArgumentError: There is none.
    """
    inner: Any = model
    while not isinstance(inner, InTraining):
        # DistributedDataParallel and torch.compile each keep it under a name of their own.
        inner = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if inner is None:
            raise ArgumentError(
                f"This {type(model).__name__} is not in quantization-aware training: give what "
                "qat.prepare returned."
            )
    return inner
