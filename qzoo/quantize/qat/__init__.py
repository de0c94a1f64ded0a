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
from dataclasses import dataclass
from typing import Any

from torch import nn
from typing_extensions import Unpack

from ..._core.keywords import takes
from ...artifact.format import Artifact
from ...artifact.given import Int8Model, as_artifact
from ...backends import get_backend
from ...errors import ArgumentError, check_known
from ...native.engines import default_backend
from ...native.model import attach_info, to_native
from ..data import nothing
from ..options import Keywords, Options
from ..recipes import STEPS, Recipe
from ..source.float_model import float_copy
from ..state import Quantization
from .frozen import keep_frozen
from .graph import GraphBuilder
from .model import InTraining, QatModel, QatPlan, unwrap
from .pt2e import prepare_pt2e
from .ranges import Ranges, range_index
from .schedule import Schedule as Schedule
from .start import Folded, Unfolded, carry_over

#: What `prepare` can do with batch norm.
BATCH_NORM = ("fold", "keep")
FLOWS = ("eager", "pt2e")
_PT2E_TAKES = (
    'flow="pt2e" needs calibration images (data=), because it exports the model for them, '
    'and takes neither from_ptq= nor learn_ranges=: use flow="eager" for those.'
)


@dataclass(frozen=True, kw_only=True)
class QATOptions(Options):
    """What can be chosen about `prepare`, besides what `Options` holds.

    `recipe` is the PTQ recipe whose observer chooses the first ranges from calibration images,
    which `images`, `batch_size`, `seed` and `transforms` are about.

    Attributes:
        batch_norm: "fold" folds batch norm into the convolutions for good, which is fastest and
            what fine-tuning a trained model wants; "keep" trains on with batch statistics.
        learn_ranges: Whether the steps of activations and weights are parameters too (LSQ,
            https://arxiv.org/abs/1902.08153) instead of following what is observed. Leave them out
            of weight decay.
        flow: "eager"; "pt2e" trains by torchao's PT2E, whose own observers choose the ranges. It
            takes `data`, of which the first batch is exported.
    """

    recipe: str | Recipe = "fast"
    batch_norm: str = "fold"
    learn_ranges: bool = False
    flow: str = "eager"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known(self.batch_norm, BATCH_NORM, "batch_norm")
        check_known(self.flow, FLOWS, "flow")
        if self.flow == "pt2e" and self.learn_ranges:
            raise ArgumentError(_PT2E_TAKES)
        if self.flow == "pt2e" and self.batch_norm == "keep":
            raise ArgumentError(
                "torchao's PT2E flow trains every batch norm with an epsilon of 1e-5, which makes "
                "other models of MobileNetV3 and the Inceptions (pytorch/pytorch#114859), and "
                'mixes up layers when it converts: use batch_norm="fold" or flow="eager".'
            )


class QATKeywords(Keywords, total=False):
    """`QATOptions` but for the backend as keyword arguments, for type checkers and editors."""

    batch_norm: str
    learn_ranges: bool
    flow: str


@takes(QATOptions)
def prepare(
    model: nn.Module,
    backend: str | None = None,
    *,
    from_ptq: Int8Model | None = None,
    data: Any = None,
    options: QATOptions | None = None,
    **changes: Unpack[QATKeywords],
) -> InTraining:
    """Returns a model to train, which computes as the int8 model of `model` will.

    The model itself is left as it was. Auxiliary classifiers are left out.

    What is frozen in the model (`requires_grad=False`) stays frozen: weights and biases, their
    steps and, between frozen layers, those of activations. A batch norm that is folded into a
    frozen layer is frozen with it. Observed ranges are no parameters: batches move them everywhere
    until `Schedule` freezes them.

    Args:
        model: A float model from one of the zoo's builders, trained.
        backend: Numeric configuration, see `ptq`; None takes that of `options` or of the PTQ
            result, or else the one that `ptq` takes.
        from_ptq: What `ptq` made of the model, in any form that `qzoo.as_artifact` takes: training
            starts with its ranges, weights and biases, and at its accuracy.
        data: Calibration images to choose the first ranges by, see `ptq`. With neither, the first
            training batch gives them.
        options: What to choose otherwise than by default; None takes the defaults.
        changes: Single options instead, or other than in `options`: see `QATOptions`.

    Returns:
        The model in train mode, on the device of `model`.

    Raises:
        ArgumentError: The model is already int8 or cannot be fused, a PTQ result of another model,
            or arguments that do not fit together.
        UnknownNameError: An unknown backend, recipe, flow or batch norm mode.
    """
    chosen = QATOptions.of(options, changes if backend is None else {**changes, "backend": backend})
    if from_ptq is not None and data is not None:
        raise ArgumentError("Give from_ptq= or data=, not both: either chooses the first ranges.")
    if chosen.flow == "pt2e" and data is None:
        raise ArgumentError(_PT2E_TAKES)
    artifact = None if from_ptq is None else as_artifact(from_ptq)
    own = None if artifact is None else artifact.info.backend
    source = copy.copy(model)
    source.training = False  # train mode is as it should be here, and needs no warning
    state = Quantization(
        source,
        get_backend(chosen.backend or own or default_backend()),
        nothing() if data is None else chosen.open(data, model),
        chosen.keep_float,
        progress=chosen.progress,
    )
    state.info = chosen.recorded(state.info)
    prepared = _prepare(state, source, artifact, chosen)
    state.fused.to("meta")  # the weights are in training now; only their shapes are needed again
    keep_frozen(prepared, state.recording, model)
    prepared.to(next(model.parameters()).device)
    return attach_info(prepared, state.info).train()  # type: ignore[return-value]


def _prepare(
    state: Quantization, source: nn.Module, artifact: Artifact | None, options: QATOptions
) -> InTraining:
    """Builds the model in training; its first ranges come from calibration or PTQ, if given."""
    if options.flow == "pt2e":
        return prepare_pt2e(state, source)
    if state.calibration.count:
        for step in ("calibrate", "share_ranges"):
            STEPS[step](state, options.plan)
    clips = {} if artifact is None else carry_over(state, artifact)
    norms: dict[str, nn.BatchNorm2d] = {}
    weights: Folded | Unfolded = Folded(state)
    if options.batch_norm == "keep":
        weights = Unfolded(state, float_copy(source), artifact is not None)
        norms = weights.norms
    index = range_index(state)
    ranges = Ranges(len(set(index.values())), state.grid, options.learn_ranges)
    for name, (scale, zero_point) in state.ranges.items():
        ranges.set(index[name], scale, zero_point)
    notes = {"batch_norm": options.batch_norm, "learned_ranges": options.learn_ranges}
    plan = QatPlan(state, index, {"method": "QAT", **notes})
    qat = QatModel(plan, ranges)
    builder = GraphBuilder(state, ranges, index, norms, weights, qat)
    builder.write()
    qat.set_graph(builder.graph)
    plan.folds = builder.folds
    for name in state.weighted():
        layer: Any = qat.get_submodule(name)
        layer.clip = clips.get(name)
        if options.learn_ranges and layer.rounded:
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
