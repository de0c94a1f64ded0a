"""Quantization-aware training as a run of the engine: its start, what freezes when, its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from torch import nn

from ..artifact.format import Artifact, ModelInfo
from ..backends import BACKENDS, default_backend
from ..datasets.evaluate import Metrics
from ..native.model import from_native, model_info, save, to_native
from ..quantize import RECIPES, ptq, qat
from ..quantize.qat.model import InTraining
from ..quantize.steps.ranks import spread_calibration
from .checkpoint import resume_path
from .distributed import Ranks
from .files import digest
from .optim import make_optimizer
from .options import COUNT, POSITIVE
from .position import Hooks, Position
from .prepare import Prepared, measure
from .runs import INT8, START
from .script import tell

F = TypeVar("F", bound=Callable[..., Any])

#: Recipes that training can start from; the last one is no PTQ at all.
STARTS = (*RECIPES, "none")

_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--backend",), {"type": click.Choice(list(BACKENDS)), "help": "onednn; without VNNI, x86."}),
    (
        ("--recipe",),
        {
            "type": click.Choice(STARTS),
            "default": "default",
            "help": "The PTQ whose result training starts from.",
        },
    ),
    (
        ("--num-calibration-batches",),
        {"type": POSITIVE, "default": 32, "help": "For that PTQ, of --batch-size images."},
    ),
    (
        ("--num-observer-update-epochs",),
        {"type": COUNT, "default": 4, "help": "Epochs in which batches move the ranges."},
    ),
    (
        ("--num-batch-norm-update-epochs",),
        {"type": COUNT, "default": 3, "help": "Epochs with batch statistics; --batch-norm keep."},
    ),
    (("--batch-norm",), {"type": click.Choice(qat.BATCH_NORM), "default": "fold"}),
    (("--learn-ranges",), {"is_flag": True, "help": "Train the steps of the grids, too (LSQ)."}),
    (("--keep-float",), {"multiple": True, "metavar": "PATTERN", "help": "Layers left in float."}),
    (("--flow",), {"type": click.Choice(qat.FLOWS), "default": "eager"}),
)

#: Options that change the weights, so that a resumed run must have the same.
QAT_DECISIVE = (
    "backend", "recipe", "num_calibration_batches", "num_observer_update_epochs",
    "num_batch_norm_update_epochs", "batch_norm", "learn_ranges", "keep_float", "flow",
)  # fmt: skip

#: The options' default values.
QAT_DEFAULTS: dict[str, Any] = {
    names[-1].lstrip("-").replace("-", "_"): settings.get(
        "default", () if "multiple" in settings else False if "is_flag" in settings else None
    )
    for names, settings in _OPTIONS
}


def qat_options(**defaults: Any) -> Callable[[F], F]:
    """Returns a decorator that gives a command the options of quantization-aware training.

    Args:
        defaults: Other default values, by name.
    """

    def decorate(function: F) -> F:
        for names, settings in reversed(_OPTIONS):
            key = names[-1].lstrip("-").replace("-", "_")
            own = {"default": defaults[key]} if key in defaults else {}
            function = click.option(*names, **{**settings, **own})(function)
        return function

    return decorate


@dataclass(frozen=True)
class Start:
    """What quantization-aware training starts from.

    Attributes:
        model: The model in training.
        ptq: The native int8 model of PTQ that it starts from, or None.
        settings: What a resumed run must have the same, besides the engine's options.
    """

    model: InTraining
    ptq: nn.Module | None
    settings: dict[str, Any]


def start_qat(model: nn.Module, data: Prepared, options: Mapping[str, Any], ranks: Ranks) -> Start:
    """Quantizes a float model by PTQ and makes it ready for training from there.

    The PTQ result is kept in the output folder, where a resumed run finds it again. Calibration
    images come from the training split, an equal share of every class, through the evaluation
    transforms; several processes share the work and get the same ranges.

    Args:
        model: The float model, on the CPU; left as it was.
        data: The data.
        options: Those of `training_options` and `qat_options`.
        ranks: The processes.

    Raises:
        ArgumentError: Options that do not fit together, or a model that cannot be quantized.
        ArtifactError: The PTQ result in the output folder is damaged or of another model.
    """
    backend = options["backend"] or default_backend()
    settings = {name: options[name] for name in QAT_DECISIVE}
    settings |= {"backend": backend, "keep_float": list(options["keep_float"])}
    common: dict[str, Any] = {
        "batch_norm": options["batch_norm"],
        "learn_ranges": options["learn_ranges"],
        "keep_float": options["keep_float"],
        "flow": options["flow"],
        "progress": ranks.first,
    }
    wanted = options["batch_size"] * options["num_calibration_batches"]
    choice = {"images": wanted, "batch_size": options["batch_size"], "seed": options["seed"]}
    if options["flow"] == "pt2e":
        pictures = data.data.split("train", data.preset)
        prepared = qat.prepare(model, backend, data=pictures, **choice, **common)
        return Start(prepared, None, settings)
    if options["recipe"] == "none":
        return Start(qat.prepare(model, backend, **common), None, settings)
    path = Path(options["output_dir"]) / START
    # Without a checkpoint to go on from, the file may be of a run with other options.
    if resume_path(options["resume"], path.parent) is not None and path.exists():
        artifact = Artifact.read(path)
    else:
        with spread_calibration():
            int8 = ptq(
                model,
                data.data.split("train", data.preset),
                backend=backend,
                recipe=options["recipe"],
                keep_float=options["keep_float"],
                progress=ranks.first,
                **choice,
            )
        artifact = from_native(int8)
        if ranks.first:
            path.parent.mkdir(parents=True, exist_ok=True)
            save(int8, path)
    settings["ptq_sha256"] = digest(artifact.tensors)
    prepared = qat.prepare(model, backend, from_ptq=artifact, **common)
    return Start(prepared, to_native(artifact), settings)


class Freezing(Hooks):
    """Freezes observers and batch norm's statistics as the options say."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.schedule = qat.Schedule(
            observer_epochs=options["num_observer_update_epochs"],
            batch_norm_epochs=options["num_batch_norm_update_epochs"],
        )

    def before_epoch(self, model: nn.Module, at: Position) -> None:
        """Freezes what is to be frozen by now."""
        self.schedule.apply(model, at.epoch, at.total)


def qat_optimizer(model: InTraining, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Makes the optimizer that the options name; grids that are learned do not decay."""
    steps = [p for n, p in model.named_parameters() if n.endswith((".step", "ranges.scale"))]
    known = {id(p) for p in steps}
    weights = [p for p in model.parameters() if id(p) not in known]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if steps:
        groups.insert(0, {"params": steps, "weight_decay": 0.0})
    return make_optimizer(groups, options)


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
