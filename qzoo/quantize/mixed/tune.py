"""Mixed precision: as few layers in float as bring the accuracy back.

A model is quantized and measured. Where it loses more than it may, the layers whose int8 weights do
most harm to the logits are put back into float: 1, 2, 4, 8 of them and so on until the target is
met, then as few as bisection finds; at last each of them is tried in int8 again.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from typing_extensions import Unpack

from ..._core.keywords import check_count, takes
from ...artifact.format import Artifact
from ...artifact.layers import float_weight_tensors, weighted_layers
from ...datasets.evaluate import eval_mode
from ...datasets.holdout import HELD_OUT, divide
from ...datasets.sources import Relabelled, open_folder
from ...errors import ArgumentError, QuantizationWarning, warn
from ...native.model import from_native, model_info, to_native
from ..data import LabelledImages, open_labelled, stratified, targets_of
from ..options import Keywords, Options, PTQOptions
from ..ptq import ptq
from ..simulate import Simulation
from .damage import first_answers
from .replay import simulate
from .sensitivity import measure_sensitivity

#: Why a search ends before it has come to its end.
OUT_OF_TIME = "the time budget is spent"
#: Steps that treat every layer by itself or none in particular: what they do to one layer does not
#: depend on which others are kept in float.
INDEPENDENT_STEPS = frozenset({"weights", "calibrate", "share_ranges"})
#: Share of the time left that ranking the layers may take.
RANKING_SHARE = 0.5
#: Shares of a time budget after which calibration, and all of quantizing, take no further images
#: and layers.
CALIBRATION_SHARE, QUANTIZING_SHARE = 0.15, 0.45
#: Share of what is left then after which the float model answers no further images.
ANSWERING_SHARE = 0.5
#: What trying a layer alone takes of a forward pass, on average: what comes before it is kept.
TRIAL_SHARE = 0.6
#: Share of a time budget that a batch may take.
BATCH_SHARE = 0.1
#: Fewer images than this are not looked at: not in a batch, and not to rank the layers.
LEAST = 4


@dataclass(frozen=True)
class TuneStep:
    """One set of layers in float that was tried.

    Attributes:
        action: "quantize", "keep" (more layers in float), "give back" (one layer less), or
            "requantize" (all steps of the recipe again with the layers found).
        float_layers: The layers in float.
        top1: Top-1 accuracy in percent; None without labels.
        drop: Points of top-1 lost against the float model; without labels, the share of images
            whose first answer changed, in percent, which is the most that can have been lost.
        met: Whether that is at most what was allowed.
        seconds: Time since the start when the step ended.
    """

    action: str
    float_layers: tuple[str, ...]
    top1: float | None
    drop: float
    met: bool
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    Attributes:
        model: The native int8 model.
        artifact: The same as plain numbers.
        met: Whether its drop is at most `max_drop`.
        drop: As in `TuneStep`.
        max_drop: What was allowed.
        top1: Top-1 accuracy in percent; None without labels.
        float_top1: That of the float model.
        images: Number of images that accuracy was measured on.
        float_layers: The layers in float.
        trace: All that was tried, in order.
        stopped: Why the search ended, in words.
        calibration_images: Number of images that ranges were calibrated on.
        judged_on: Which images accuracy was measured on, in words.
    """

    model: nn.Module
    artifact: Artifact
    met: bool
    drop: float
    max_drop: float
    top1: float | None
    float_top1: float | None
    images: int
    float_layers: tuple[str, ...]
    trace: tuple[TuneStep, ...]
    stopped: str
    calibration_images: int
    judged_on: str

    def to_dict(self) -> dict[str, Any]:
        """Returns all but the model as JSON values."""
        plain = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("model", "artifact", "trace")
        }
        plain["float_layers"] = list(self.float_layers)
        plain["layers_with_weights"] = len(weighted_layers(self.artifact.layers))
        plain["trace"] = [
            {**dataclasses.asdict(step), "float_layers": list(step.float_layers)}
            for step in self.trace
        ]
        return plain


@dataclass(frozen=True, kw_only=True)
class TuneOptions(Options):
    """What can be chosen about `tune`, besides what `Options` holds.

    `keep_float` names layers to keep in float in any case.

    Attributes:
        sensitivity_images: Images that the layers' harm is measured on.
        time_budget: Seconds after which the best so far is returned. Calibration, the steps that
            improve layers, and the measurements keep to it as well: they take fewer images where
            all of them would take too long, at least a batch each. 0 quantizes and measures once,
            on all images, and searches nothing; None takes the time that it takes.
    """

    sensitivity_images: int = 64
    time_budget: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sensitivity_images", self.sensitivity_images)
        budget = self.time_budget
        if budget is not None and (type(budget) not in (int, float) or not budget >= 0):
            raise ArgumentError(f"time_budget should be seconds, 0 or more, not {budget!r}.")


class TuneKeywords(Keywords, total=False):
    """`TuneOptions` as keyword arguments, for type checkers and editors."""

    backend: str | None
    sensitivity_images: int
    time_budget: float | None


@takes(TuneOptions)
def tune(
    model: nn.Module,
    data: Any,
    max_drop: float = 0.3,
    *,
    test_data: Any = None,
    options: TuneOptions | None = None,
    **changes: Unpack[TuneKeywords],
) -> Tuned:
    """Quantizes a model and keeps as few layers in float as meet a target.

    What is kept in float is a convolution's or linear layer's arithmetic; outputs are rounded to
    8 bits everywhere, so that what the ranges of the outputs cost cannot be tuned away.

    Args:
        model: A float model from one of the zoo's builders; left as it was.
        data: Calibration images, as `ptq` takes them.
        max_drop: Points of top-1 that int8 may lose, in percent of the images.
        test_data: What to measure top-1 on, as `open_labelled` takes it. None divides a data set
            or folder: what the model was not trained on, where it notes that, else a fifth of each
            class is measured on and the rest calibrates; a folder's val/ is measured on. Tensors
            and loaders serve for both, with a `QuantizationWarning`. Without labels, the share of
            changed first answers counts, which is the most that top-1 can have lost.
        options: What to choose otherwise than by default; None takes the defaults.
        changes: Single options instead, or other than in `options`: see `TuneOptions`.

    Raises:
        ArgumentError: As `ptq`; or an impossible target, budget or number of images.
        UnknownNameError: An unknown backend, recipe, step or observer.
    """
    start = time.monotonic()
    if type(max_drop) not in (int, float) or not 0 <= max_drop <= 100:
        raise ArgumentError(f"max_drop should be points of top-1 from 0 to 100, not {max_drop!r}.")
    chosen = TuneOptions.of(options, changes)
    parts = _parts(data, test_data, model, chosen)
    reading, budget = _Reading(model, chosen), chosen.time_budget
    if budget:
        reading.fit_batches(model, parts.judged, BATCH_SHARE * budget)
    chosen = dataclasses.replace(chosen, batch_size=reading.batch_size)
    calibration = chosen.open(parts.calibration, model)
    if budget:
        calibration.stop_after(CALIBRATION_SHARE * budget, QUANTIZING_SHARE * budget)
    quantizing = chosen.shared(PTQOptions)
    base = from_native(ptq(model, calibration, options=quantizing))
    taken = time.monotonic() - start
    deadline = math.inf if budget is None else start + budget
    test = reading.open(parts.judged, mixed=bool(budget))
    if budget:
        test.stop_after(ANSWERING_SHARE * (deadline - time.monotonic()))
    search = _Search(model, test, max_drop, start, deadline, chosen.progress)
    search.measure("quantize", base)
    if not search.best.met and search.time_left():
        search.simulation = simulate(model, base, next(iter(test))[0])
        search.run(_ranking(search, parts.calibration, chosen.sensitivity_images, reading))
        kept = search.best.float_layers
        if kept and set(chosen.plan.steps) - INDEPENDENT_STEPS and search.time_left(taken):
            calibration.stop_after(math.inf, math.inf)
            again = ptq(model, calibration, options=quantizing, keep_float=kept)
            search.measure("requantize", from_native(again))
    return search.result(calibration.count, parts.how)


class _Reading:
    """How images to measure on are read."""

    def __init__(self, model: nn.Module, options: TuneOptions) -> None:
        self.info, self.transform = model_info(model), options.transforms_of(model)
        self.batch_size, self.seed = options.batch_size, options.seed

    def fit_batches(self, model: nn.Module, data: Any, seconds: float) -> None:
        """Makes batches so small that the float model takes no longer for one."""
        begun = time.monotonic()
        with torch.inference_mode(), eval_mode(model):
            images, _ = next(iter(self.open(data, images=1, batch_size=1)))
            _on_cpu(model)(images)
        most = seconds / max(time.monotonic() - begun, 1e-6)
        self.batch_size = max(LEAST, min(self.batch_size, int(most)))

    def open(self, data: Any, **settings: Any) -> LabelledImages:
        """Opens images as `open_labelled` does, with what is not named in `settings` as chosen."""
        own = {"batch_size": self.batch_size, "seed": self.seed}
        return open_labelled(data, transform=self.transform, model=self.info, **{**own, **settings})


def _ranking(search: _Search, data: Any, images: int, reading: _Reading) -> list[str]:
    """Returns the layers whose weights may be kept in float, the most harmful first.

    Where the time that is left allows for too few images, there are none.
    """
    simulation, now = search.simulation, time.monotonic()
    layers = [n for n in simulation.weighted if n in simulation.int8.weights]
    limit = None
    if not math.isinf(search.deadline):
        left = RANKING_SHARE * (search.deadline - now)
        limit = now + left
        images = min(images, int(left / (TRIAL_SHARE * len(layers) * search.per_image)))
        if images < LEAST:
            search.stopped = OUT_OF_TIME
            return []
    batches = reading.open(data, images=images, batch_size=min(images, reading.batch_size))
    sensitivity = measure_sensitivity(
        simulation, batches, modes=("int8",), parts=("weights",), layers=layers, deadline=limit,
        progress=search.progress,
    )  # fmt: skip
    return [layer.name for layer in sensitivity.ranking("weights")]


def _on_cpu(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Returns a function that takes and gives tensors on the CPU, wherever the model is."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return lambda images: model(images.to(device)).cpu()


class _Parts(NamedTuple):
    """What to calibrate on and what to judge by.

    Attributes:
        calibration: Images to calibrate on, as `ptq` takes them.
        judged: Images to measure on, as `open_labelled` takes them.
        how: Which ones these are, in words.
    """

    calibration: Any
    judged: Any
    how: str


def _parts(data: Any, test_data: Any, model: nn.Module, options: TuneOptions) -> _Parts:
    """Returns two parts of the data, where none is named to judge by."""
    if test_data is not None:
        return _Parts(data, test_data, "the images named for it")
    info, transform = model_info(model), options.transforms_of(model)
    if isinstance(data, (str, os.PathLike)) and transform is not None:
        found = divide(open_folder(Path(data)), info.seen, progress=options.progress)
        judged = found.split("test", transform)
        if found.classes:
            judged = Relabelled(judged, found.labels_for(info))
        return _Parts(found.split("train", transform), judged, found.held_out)
    batches = isinstance(data, (Tensor, DataLoader)) or (
        isinstance(data, (tuple, list)) and all(isinstance(x, Tensor) for x in data)
    )
    if not batches and hasattr(data, "__getitem__") and hasattr(data, "__len__") and len(data) > 1:
        targets = targets_of(data)
        count = max(1, round(HELD_OUT * len(data)))
        alike = [0] * len(data) if targets is None else targets
        order = stratified(alike, len(data), options.seed)
        held, rest = sorted(order[:count]), sorted(order[count:])
        how = f"held-out {round(100 * HELD_OUT)} %"
        return _Parts(Subset(data, rest), Subset(data, held), how)
    if not isinstance(data, (str, os.PathLike)):
        warn(
            "tune calibrates and judges on the same images, so that its figures flatter: pass "
            "test_data=, or a data set or folder, which it divides.",
            QuantizationWarning,
        )
    return _Parts(data, data, "the images that it was calibrated on")


class _Search:
    """Tries sets of layers in float and remembers the best."""

    def __init__(
        self,
        model: nn.Module,
        test: LabelledImages,
        max_drop: float,
        start: float,
        deadline: float,
        progress: bool,
    ) -> None:
        self.test, self.max_drop = test, max_drop
        self.start, self.deadline, self.progress = start, deadline, progress
        begun = time.monotonic()
        with torch.inference_mode(), eval_mode(model):
            self.expected = self._answers(_on_cpu(model), "float")
        #: Seconds that the float model takes for an image.
        self.per_image = max(time.monotonic() - begun, 1e-6) / len(self.expected)
        # A single logit has no place among classes that a label could name.
        several = model_info(model).builder_kwargs.get("num_classes") != 1
        labelled = test.labelled and several
        self.labels = torch.cat([y for _, y in test if y is not None]) if labelled else None
        self.trace: list[TuneStep] = []
        self.simulation: Simulation
        self.best: TuneStep
        self.best_artifact: Artifact
        self.last_trial = 0.0
        self.stopped = "the target is met"

    def time_left(self, before: float = 0.0) -> bool:
        """Whether another trial, as long as the last one, ends in time.

        Args:
            before: Seconds that pass before the trial begins.
        """
        if time.monotonic() + before + self.last_trial <= self.deadline:
            return True
        self.stopped = OUT_OF_TIME
        return False

    def measure(self, action: str, artifact: Artifact) -> bool:
        """Measures a model; returns whether it meets the target."""
        begun = time.monotonic()
        native = to_native(artifact)
        with torch.inference_mode():
            given = self._answers(native, action)
        # In whole images, of which differences of percentages would leave rounding errors.
        lost, top1 = int((given != self.expected).sum()), None
        if self.labels is not None:
            top1 = _percent(given == self.labels)
            lost = int((self.expected == self.labels).sum() - (given == self.labels).sum())
        drop = 100 * lost / len(given)
        met = drop <= self.max_drop + 1e-9
        now = time.monotonic()
        self.last_trial = now - begun
        step = TuneStep(
            action, tuple(artifact.float_layers), top1, drop, met, round(now - self.start, 3)
        )
        self.trace.append(step)
        if len(self.trace) == 1 or _order(step) < _order(self.best):
            self.best, self.best_artifact = step, artifact
        return met

    def run(self, ranking: list[str]) -> None:
        """Searches along a ranking of layers, the most harmful first."""
        found = self._least_prefix(ranking) if ranking else None
        if found is None:
            return
        kept = found
        # Without the last one of all these the target was missed, but perhaps not without others.
        for name in [*reversed(found[:-1]), found[-1]]:
            if name == found[-1] and kept == found:
                return
            if not self.time_left():
                return
            fewer = [n for n in kept if n != name]
            if self.measure("give back", with_float(self.simulation, fewer)):
                kept = fewer

    def _least_prefix(self, ranking: list[str]) -> list[str] | None:
        """Returns the shortest beginning of the ranking that meets the target, if any does."""
        failed, count = 0, 1
        while True:
            count = min(count, len(ranking))
            if not self.time_left():
                return None
            if self.measure("keep", with_float(self.simulation, ranking[:count])):
                break
            if count == len(ranking):
                self.stopped = (
                    "the target is missed even with all weights in float: what is left comes from "
                    "rounding the layers' outputs"
                )
                return None
            failed, count = count, 2 * count
        while count - failed > 1:
            if not self.time_left():
                return None
            middle = (failed + count) // 2
            if self.measure("keep", with_float(self.simulation, ranking[:middle])):
                count = middle
            else:
                failed = middle
        return ranking[:count]

    def result(self, calibration_images: int, judged_on: str) -> Tuned:
        """Returns the best that was found."""
        best = self.best
        note = {
            "max_drop": self.max_drop,
            "drop": round(best.drop, 3),
            "met": best.met,
            "images": len(self.expected),
            "judged_on": judged_on,
            "labelled": self.labels is not None,
            "float_layers": len(best.float_layers),
        }
        info = self.best_artifact.info
        info = dataclasses.replace(info, recipe={**info.recipe, "tuned": note})
        artifact = dataclasses.replace(self.best_artifact, info=info)
        float_top1 = None if self.labels is None else _percent(self.expected == self.labels)
        return Tuned(
            to_native(artifact), artifact, best.met, best.drop, self.max_drop, best.top1,
            float_top1, len(self.expected), best.float_layers, tuple(self.trace), self.stopped,
            calibration_images, judged_on,
        )  # fmt: skip

    def _answers(self, model: Any, title: str) -> Tensor:
        """Returns the first answer to every image, int64 [N]."""
        bar = tqdm(self.test, desc=f"measure ({title})", leave=False, disable=not self.progress)
        return torch.cat([first_answers(model(images)) for images, _ in bar])


def with_float(simulation: Simulation, names: Sequence[str]) -> Artifact:
    """Returns the int8 model with the weights of more layers in float.

    Args:
        simulation: The float model and its int8 model.
        names: Layers with weights.
    """
    base = simulation.artifact
    layers, tensors = dict(base.layers), dict(base.tensors)
    for name in names:
        layers[name] = dataclasses.replace(layers[name], float=True)
        for what in ("weight", "weight_scale", "weight_zero_point", "bias"):
            tensors.pop(f"{name}.{what}", None)
        tensors |= float_weight_tensors(
            name, simulation.float_weight(name), simulation.float_bias(name)
        )
    return dataclasses.replace(base, layers=layers, tensors=tensors)


def _order(step: TuneStep) -> tuple[bool, float, float]:
    """Returns what sorts the best step first."""
    count = len(step.float_layers)
    return (not step.met, count if step.met else step.drop, step.drop if step.met else count)


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())
