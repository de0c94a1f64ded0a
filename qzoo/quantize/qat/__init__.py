"""Quantization-aware training (QAT): train while computing as the int8 model will.

    model = qat.prepare(float_model, data=loader)
    schedule = qat.Schedule(observer_epochs=4, batch_norm_epochs=3)
    for epoch in range(epochs):
        schedule.apply(model, epoch)
        ...  # any training loop
    int8 = qat.convert(model)

Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, section 3, https://arxiv.org/abs/1712.05877.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...artifact.format import Artifact
from ...backends import default_backend, get_backend
from ...errors import ArgumentError, UnknownNameError, did_you_mean
from ...native.model import Int8Model, as_artifact, attach_info, to_native
from ...transforms import ImageClassification
from ..data import nothing, open_calibration
from ..ptq import own_transforms, with_transforms
from ..recipes import STEPS, get_recipe
from ..source.float_model import float_copy
from ..state import Quantization
from .frozen import keep_frozen
from .graph import GraphBuilder
from .model import InTraining, Plan, QatModel, unwrap
from .pt2e import prepare_pt2e
from .ranges import Ranges, range_index
from .start import Folded, Unfolded, carry_over

#: What `prepare` can do with batch norm.
BATCH_NORM = ("fold", "keep")
FLOWS = ("eager", "pt2e")


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


def prepare(
    model: nn.Module,
    backend: str | None = None,
    *,
    from_ptq: Int8Model | None = None,
    data: Any = None,
    batch_norm: str = "fold",
    learn_ranges: bool = False,
    keep_float: Sequence[str] = (),
    recipe: str = "fast",
    images: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    transforms: ImageClassification | Callable[[Any], Tensor] | None = None,
    flow: str = "eager",
    progress: bool = True,
) -> InTraining:
    """Returns a model to train, which computes as the int8 model of `model` will.

    The model itself is left as it was. Auxiliary classifiers are left out.

    What is frozen in the model (`requires_grad=False`) stays frozen: weights and biases, their
    steps and, between frozen layers, those of activations. A batch norm that is folded into a
    frozen layer is frozen with it. Observed ranges are no parameters: batches move them everywhere
    until `Schedule` freezes them.

    Args:
        model: A float model from one of the zoo's builders, trained.
        backend: Numeric configuration, see `ptq`; None takes that of the PTQ result, if there is
            one, or else the one that `ptq` takes.
        from_ptq: What `ptq` made of the model, in any form that `qzoo.as_artifact` takes: training
            starts with its ranges, weights and biases, and at its accuracy.
        data: Calibration images to choose the first ranges by, see `ptq`. With neither, the first
            training batch gives them.
        batch_norm: "fold" folds batch norm into the convolutions for good, which is fastest and
            what fine-tuning a trained model wants; "keep" trains on with batch statistics.
        learn_ranges: Whether the steps of activations and weights are parameters too (LSQ,
            https://arxiv.org/abs/1902.08153) instead of following what is observed. Leave them out
            of weight decay.
        keep_float: Layers whose weights stay float, as names or shell patterns ("layer4.*").
        recipe: The PTQ recipe whose observer chooses the first ranges.
        images: How many calibration images to take; None goes by the recipe.
        batch_size: Calibration images per forward pass.
        seed: Seed of the choice of calibration images.
        transforms: Evaluation transforms, for folders and data sets of pictures; None takes the
            model's own.
        flow: "eager"; "pt2e" trains by torchao's PT2E, whose own observers choose the ranges. It
            takes `data`, of which the first batch is exported.
        progress: Whether to show progress bars on stderr.

    Returns:
        The model in train mode, on the device of `model`.

    Raises:
        ArgumentError: The model is already int8 or cannot be fused, a PTQ result of another model,
            or arguments that do not fit together.
        UnknownNameError: An unknown backend, recipe, flow or batch norm mode.
    """
    for value, known, kind in (
        (batch_norm, BATCH_NORM, "batch_norm"),
        (flow, FLOWS, "flow"),
    ):
        if value not in known:
            raise UnknownNameError(
                f"Unknown {kind} {value!r}: choose one of {', '.join(known)}."
                + did_you_mean(str(value), known)
            )
    if from_ptq is not None and data is not None:
        raise ArgumentError("Give from_ptq= or data=, not both: either chooses the first ranges.")
    if flow == "pt2e" and (from_ptq is not None or learn_ranges or data is None):
        raise ArgumentError(
            'flow="pt2e" needs calibration images (data=), because it exports the model for them, '
            'and takes neither from_ptq= nor learn_ranges=: use flow="eager" for those.'
        )
    if flow == "pt2e" and batch_norm == "keep":
        raise ArgumentError(
            "torchao's PT2E flow trains every batch norm with an epsilon of 1e-5, which makes "
            "other models of MobileNetV3 and the Inceptions (pytorch/pytorch#114859), and mixes up "
            'layers when it converts: use batch_norm="fold" or flow="eager".'
        )
    artifact = None if from_ptq is None else as_artifact(from_ptq)
    row = get_backend(backend or (artifact.info.backend if artifact else None) or default_backend())
    source = copy.copy(model)
    source.training = False  # train mode is as it should be here, and needs no warning
    calibration = nothing()
    if data is not None:
        plan = get_recipe(recipe)
        calibration = open_calibration(
            data,
            images=images or plan.images,
            batch_size=batch_size,
            seed=seed,
            transform=transforms or own_transforms(model),
            stratify=plan.stratify,
        )
    state = Quantization(source, row, calibration, keep_float, row.reduce_range, progress)
    state.info = with_transforms(state.info, transforms, stacklevel=3)
    prepared: InTraining
    if flow == "pt2e":
        prepared = prepare_pt2e(state, source)
    else:
        if data is not None:
            for step in ("calibrate", "share_ranges"):
                STEPS[step](state, plan)
        prepared = _prepare(state, source, artifact, batch_norm, learn_ranges)
    state.fused.to("meta")  # the weights are in training now; only their shapes are needed again
    keep_frozen(prepared, state.recording, model)
    prepared.to(next(model.parameters()).device)
    return attach_info(prepared, state.info).train()  # type: ignore[return-value]


def _prepare(
    state: Quantization,
    source: nn.Module,
    artifact: Artifact | None,
    batch_norm: str,
    learn_ranges: bool,
) -> QatModel:
    """Builds the model in training of qzoo's own flow; `state` has the first ranges, if any."""
    clips = {} if artifact is None else carry_over(state, artifact)
    norms: dict[str, nn.BatchNorm2d] = {}
    weights: Folded | Unfolded = Folded(state)
    if batch_norm == "keep":
        weights = Unfolded(state, float_copy(source), artifact is not None)
        norms = weights.norms
    index = range_index(state)
    ranges = Ranges(len(set(index.values())), state.grid, learn_ranges)
    for name, (scale, zero_point) in state.ranges.items():
        ranges.set(index[name], scale, zero_point)
    notes = {"method": "QAT", "batch_norm": batch_norm, "learned_ranges": learn_ranges}
    plan = Plan(state, index, notes)
    qat = QatModel(plan, ranges)
    builder = GraphBuilder(state, ranges, index, norms, weights, qat)
    builder.build()
    qat.set_graph(builder.graph)
    plan.folds = builder.folds
    for name in state.weighted():
        layer: Any = qat.get_submodule(name)
        layer.clip = clips.get(name)
        if learn_ranges and layer.rounded:
            layer.learn_step()
    state.calibration = nothing()
    return qat


def to_artifact(model: nn.Module) -> Artifact:
    """Returns the int8 artifact of a model in training, which is left as it is.

    Args:
        model: What `prepare` returned, perhaps wrapped in `DistributedDataParallel`.

    Raises:
        ArgumentError: It is no such model, or has no ranges yet, or its training diverged.
    """
    return unwrap(model).to_artifact()


def convert(model: nn.Module) -> nn.Module:
    """Returns the native int8 model of a model in training, which is left as it is.

    It answers as `model` does in eval mode, up to ties in rounding.

    Args:
        model: What `prepare` returned, perhaps wrapped in `DistributedDataParallel`.

    Raises:
        ArgumentError: It is no such model, or has no ranges yet, or its training diverged.
    """
    return to_native(to_artifact(model))
