"""The whole diagnosis of an int8 model: what dropped, where, and what to try next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..native.model import (
    Int8Model,
    as_artifact,
    model_info,
    package_versions,
    to_native,
)
from ..quantize.data import open_labelled
from ..quantize.mixed.replay import simulate
from ..quantize.mixed.sensitivity import Sensitivity, measure_sensitivity
from ..quantize.options import own_transforms
from .accuracy import Accuracy, measure_accuracy
from .compare import Comparison, compare_layers
from .experiments import Experiment, run_experiments
from .findings import Finding, find
from .measures import Figures
from .suspects import Suspect, rank


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


def analyze(
    model: nn.Module,
    int8: Int8Model,
    data: Any,
    *,
    images: int = 256,
    sensitivity_images: int = 64,
    test_data: Any = None,
    batch_size: int = 32,
    seed: int = 0,
    transforms: Callable[[Any], Tensor] | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Finds out where an int8 model loses accuracy.

    Args:
        model: The float model that was quantized; left as it was.
        int8: The native int8 model or its artifact.
        data: Images, as `open_labelled` takes them; labels are used where there are some.
        images: How many of them the layers are compared on.
        sensitivity_images: How many the layers are tried alone on, which takes longest.
        test_data: What top-1 is measured on; None takes the same images as the comparison.
        batch_size: Images per forward pass.
        seed: Seed of the choice of images.
        transforms: Evaluation transforms; None takes the model's own.
        progress: Whether to show progress bars on stderr.

    Raises:
        ArgumentError: The models do not belong together, or the images are not what they take.
    """
    artifact = as_artifact(int8)
    transform = transforms or own_transforms(model)

    def some(count: int | None, source: Any = data) -> Any:
        return open_labelled(
            source, images=count, batch_size=batch_size, seed=seed, transform=transform,
            model=model_info(model),
        )  # fmt: skip

    seen = some(images)
    simulation = simulate(model, artifact, next(iter(seen))[0])
    native = to_native(artifact)
    comparison = compare_layers(simulation, native, seen, progress)
    few = some(sensitivity_images)
    sensitivity = measure_sensitivity(simulation, few, modes=("int8",), progress=progress)
    weights = [s.name for s in sensitivity.layers if "weights" in s.int8]
    order = [s.name for s in sensitivity.ranking("weights")] if weights else []
    experiments = run_experiments(simulation, comparison, order, few, progress)
    test = seen if test_data is None else some(None, test_data)
    accuracy = measure_accuracy(simulation.run, native, test, progress)
    ranking = rank(comparison, sensitivity)
    measured = {
        "images": comparison.images,
        "sensitivity_images": sensitivity.images,
        "accuracy_images": accuracy.images,
        "seed": seed,
        "versions": package_versions(),
    }
    found = Diagnosis(
        architecture=artifact.info.architecture,
        backend=str(artifact.info.backend),
        recipe=artifact.info.recipe,
        float_layers=tuple(artifact.float_layers),
        float_bytes=sum(p.numel() * p.element_size() for p in model.state_dict().values()),
        int8_bytes=len(artifact.to_bytes()),
        accuracy=accuracy,
        comparison=comparison,
        sensitivity=sensitivity,
        ranking=ranking,
        experiments=experiments,
        findings=(),
        measured=measured,
    )
    return dataclasses.replace(found, findings=find(found))
