"""The whole diagnosis of an int8 model: what dropped, where, and what to try next."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from .._core.keywords import chosen, takes
from .._core.versions import package_versions
from ..artifact.given import Int8Model
from ..quantize.mixed.sensitivity import Sensitivity, measure_sensitivity
from .accuracy import Accuracy, measure_accuracy
from .compare import Comparison, compare_layers, open_pair
from .experiments import Experiment, run_experiments
from .findings import Finding, find
from .measures import Figures
from .options import AnalysisKeywords, AnalysisOptions
from .suspects import Suspect, rank

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Diagnosis(Figures):
    """All that `analyze` measured.

    Attributes:
        architecture: The model's name.
        backend: What it was quantized for.
        recipe: How it was quantized, as the artifact says.
        float_layers: Layers whose weights are float in the int8 model.
        float_bytes: Size of the float model's weights.
        int8_bytes: Size of the artifact.
        accuracy: Top-1 of both models.
        comparison: Layer by layer.
        sensitivity: Each layer alone.
        ranking: The layers, the first to look at first.
        experiments: What changes would do.
        findings: What all this means, the most important first.
        measured: Numbers of images, seed and versions behind the figures.
    """

    architecture: str
    backend: str
    recipe: dict[str, Any]
    float_layers: tuple[str, ...]
    float_bytes: int
    int8_bytes: int
    accuracy: Accuracy
    comparison: Comparison
    sensitivity: Sensitivity
    ranking: tuple[Suspect, ...]
    experiments: tuple[Experiment, ...]
    findings: tuple[Finding, ...]
    measured: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Returns all figures as JSON values."""
        plain = super().to_dict()
        plain["sensitivity"] = self.sensitivity.to_dict()
        for key in ("ranking", "experiments"):
            for row, item in zip(plain[key], getattr(self, key), strict=True):
                row["damage"] = item.damage.to_dict()
        return plain

    def to_html(self) -> str:
        """Returns the report, one page that needs nothing else."""
        from .report import render

        return render(self)


@takes(AnalysisOptions)
def analyze(
    model: nn.Module,
    int8: Int8Model,
    data: Any,
    *,
    options: AnalysisOptions | None = None,
    **changes: Unpack[AnalysisKeywords],
) -> Diagnosis:
    """Finds out where an int8 model loses accuracy.

    Args:
        model: The float model that was quantized; left as it was.
        int8: The int8 model, in any form that `qzoo.as_artifact` takes.
        data: Images, as `open_labelled` takes them; labels are used where there are some.
        options: What to choose otherwise than by default; None takes the defaults.
        changes: Single options instead, or other than in `options`: see `AnalysisOptions`.

    Raises:
        ArgumentError: The models do not belong together, or the images are not what they take.
    """
    own = chosen(AnalysisOptions, options, changes)
    seen = own.open(data, model, own.images)
    few = own.open(data, model, own.sensitivity_images)
    test = seen if own.test_data is None else own.open(own.test_data, model, None)
    simulation, native = open_pair(model, int8, seen)
    comparison = compare_layers(simulation, native, seen, own.progress)
    sensitivity = measure_sensitivity(simulation, few, modes=("int8",), progress=own.progress)
    weights = [s.name for s in sensitivity.layers if "weights" in s.int8]
    order = [s.name for s in sensitivity.ranking("weights")] if weights else []
    experiments = run_experiments(simulation, comparison, order, few, own.progress)
    accuracy = measure_accuracy(simulation.run, native, test, own.progress)
    artifact = simulation.artifact
    found = Diagnosis(
        architecture=artifact.info.name,
        backend=str(artifact.info.backend),
        recipe=artifact.info.recipe,
        float_layers=tuple(artifact.float_layers),
        float_bytes=sum(p.numel() * p.element_size() for p in model.state_dict().values()),
        int8_bytes=len(artifact.to_bytes()),
        accuracy=accuracy,
        comparison=comparison,
        sensitivity=sensitivity,
        ranking=rank(comparison, sensitivity),
        experiments=experiments,
        findings=(),
        measured={
            "images": comparison.images,
            "sensitivity_images": sensitivity.images,
            "accuracy_images": accuracy.images,
            "seed": own.seed,
            "versions": package_versions(),
        },
    )
    return dataclasses.replace(found, findings=find(found))
