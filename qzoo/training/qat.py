"""Quantization-aware training as a run of the engine: its start, what freezes when, its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..artifact.format import Artifact, ModelInfo
from ..datasets.evaluate import Metrics
from ..native.engines import default_backend
from ..native.model import from_native, model_info, save, to_native
from ..quantize import ptq, qat
from ..quantize.qat.model import InTraining
from ..quantize.steps.ranks import spread_calibration
from .checkpoint import resume_path
from .distributed import Ranks
from .files import digest
from .loop import Parts
from .loss import make_loss
from .optim import make_optimizer
from .options import QatOptions, TrainOptions
from .position import Hooks, Position
from .prepare import Prepared, measure
from .runs import INT8, START
from .script import tell


@dataclass(frozen=True)
class Start:
    """What quantization-aware training starts from.

    Attributes:
        model: The model in training.
        ptq: The native int8 model of PTQ that it starts from, or None.
        parts: What `Trainer` takes with it.
    """

    model: InTraining
    ptq: nn.Module | None
    parts: Parts


def start_qat(
    model: nn.Module,
    data: Prepared,
    options: TrainOptions,
    how: QatOptions,
    ranks: Ranks,
    settings: Mapping[str, Any],
) -> Start:
    """Quantizes a float model by PTQ and makes it ready for training from there.

    The PTQ result is kept in the output folder, where a resumed run finds it again. Calibration
    images come from the training split, an equal share of every class, through the evaluation
    transforms; several processes share the work and get the same ranges.

    Args:
        model: The float model, on the CPU; left as it was.
        data: The data.
        options: The options of training.
        how: Those of quantization.
        ranks: The processes.
        settings: What else a resumed run must have the same.

    Raises:
        ArgumentError: Options that do not fit together, or a model that cannot be quantized.
        ArtifactError: The PTQ result in the output folder is damaged or of another model.
    """
    how = how.changed(backend=how.backend or default_backend())
    loss = make_loss(options.loss, data, model)
    common: dict[str, Any] = {
        "batch_norm": how.batch_norm,
        "learn_ranges": how.learn_ranges,
        "keep_float": how.keep_float,
        "flow": how.flow,
        "progress": ranks.first,
    }
    choice = {
        "images": data.batch_size * how.num_calibration_batches,
        "batch_size": data.batch_size,
        "seed": options.compute.seed,
    }
    settings = {**how.settings(), **settings}
    artifact = None
    if how.flow == "pt2e":
        common |= {"data": data.data.split("train", data.preset), **choice}
    elif how.recipe != "none":
        artifact = common["from_ptq"] = _start_by_ptq(model, data, options, how, ranks, choice)
        settings["ptq_sha256"] = digest(artifact.tensors)
    prepared = qat.prepare(model, how.backend, **common)
    parts = Parts(
        hooks=Freezing(how),
        loss=loss,
        optimizer=_optimizer(prepared, options),
        settings=settings,
    )
    return Start(prepared, to_native(artifact) if artifact else None, parts)


def _start_by_ptq(
    model: nn.Module,
    data: Prepared,
    options: TrainOptions,
    how: QatOptions,
    ranks: Ranks,
    choice: Mapping[str, Any],
) -> Artifact:
    """Returns the PTQ result in the output folder, made now where the run does not go on."""
    path = options.output.folder / START
    # Without a checkpoint to go on from, the file may be of a run with other options.
    if resume_path(options.output.resume, path.parent) is not None and path.exists():
        return Artifact.read(path)
    with spread_calibration():
        int8 = ptq(
            model,
            data.data.split("train", data.preset),
            backend=how.backend,
            recipe=how.recipe,
            keep_float=how.keep_float,
            progress=ranks.first,
            **choice,
        )
    if ranks.first:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(int8, path)
    return from_native(int8)


class Freezing(Hooks):
    """Freezes observers and batch norm's statistics when the options say."""

    def __init__(self, options: QatOptions) -> None:
        self.schedule = qat.Schedule(
            observer_epochs=options.num_observer_update_epochs,
            batch_norm_epochs=options.num_batch_norm_update_epochs,
        )

    def before_epoch(self, model: nn.Module, at: Position) -> None:
        """Freezes what is to be frozen by now."""
        self.schedule.apply(model, at.epoch, at.total)


def _optimizer(model: InTraining, options: TrainOptions) -> torch.optim.Optimizer:
    """Makes the optimizer that the options name; grids that are learned do not decay."""
    steps = [p for n, p in model.named_parameters() if n.endswith((".step", "ranges.scale"))]
    known = {id(p) for p in steps}
    weights = [p for p in model.parameters() if id(p) not in known]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if steps:
        groups.insert(0, {"params": steps, "weight_decay": 0.0})
    return make_optimizer(groups, options.optimizer, options.schedule.lr)


@dataclass(frozen=True)
class Finished:
    """What came out of quantization-aware training.

    Attributes:
        int8: The native int8 model.
        metrics: Its accuracy on the held-out split.
        file: The artifact.
    """

    int8: nn.Module
    metrics: Metrics
    file: Path


#: Points of top-1 by which int8 may differ from what was trained without a word.
LARGE_GAP = 0.1


def finish_qat(
    model: InTraining,
    trained: Metrics,
    data: Prepared,
    output: Path,
    *,
    recipe: Mapping[str, Any],
    info: ModelInfo,
) -> Finished:
    """Converts a trained model to int8, measures it, and writes the artifact.

    Args:
        model: The model in training, at its end.
        trained: Its accuracy while fake quantized.
        data: The data.
        output: The folder.
        recipe: What the artifact should say of its making.
        info: Of the float model.

    Raises:
        ArgumentError: Its training diverged.
        ArtifactError: The file cannot be written.
    """
    int8 = qat.convert(model.cpu())
    own = model_info(int8).recipe
    metrics = measure(int8, data)
    path = output / INT8
    save(
        int8,
        path,
        recipe={**info.recipe, **own, **recipe},
        classes=list(data.classes),
        transforms=data.preset.to_dict(),
        metrics={data.data.held_out: metrics.to_dict()},
    )
    gap = abs(metrics.top1 - trained.top1)
    if gap > LARGE_GAP:
        tell(
            f"int8 and its training differ by {gap:.2f} points of top-1 "
            f"({trained.top1:.2f} % fake quantized): PyTorch's kernels may break ties otherwise; "
            "qzoo.compile runs the same artifact on other runtimes."
        )
    return Finished(int8, metrics, path)
