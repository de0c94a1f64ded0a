"""Post-training quantization (PTQ) in one call."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from ..artifact.format import Artifact, ModelInfo
from ..artifact.seen import CALIBRATION, hashes, noted
from ..backends import default_backend, get_backend
from ..errors import ArgumentError, QuantizationWarning, UnknownNameError, did_you_mean
from ..native.model import model_info, to_native
from ..transforms import ImageClassification, describe
from .data import Calibration, open_calibration
from .flows import FLOWS, torch_artifact
from .qat.model import InTraining
from .recipes import RECIPES, STEPS, Recipe, get_recipe
from .state import Quantization

#: The name that this had here before there was one rule for all new models.
default_ptq_backend = default_backend


def ptq(
    model: nn.Module,
    data: Any,
    *,
    backend: str | None = None,
    recipe: str | Recipe = "default",
    images: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    keep_float: Sequence[str] = (),
    transforms: ImageClassification | Callable[[Any], Tensor] | None = None,
    flow: str = "eager",
    qconfig_mapping: Any = None,
    quantizer: Any = None,
    progress: bool = True,
) -> nn.Module:
    """Quantizes a float model of the zoo to int8.

    The model itself is left as it was. The same seed, data and number of threads give the same
    numbers, bit for bit.

    Args:
        model: A float model from one of the zoo's builders, perhaps fine-tuned.
        data: Calibration images: a data set, a DataLoader, a tensor [N, 3, H, W] or a list of
            such, or a folder of pictures. No labels are needed; where a data set or folder has
            some, every class gets an equal share.
        backend: Numeric configuration; None takes `onednn` (per-channel weights, 8-bit
            activations) or, on CPUs without VNNI, `x86` (7-bit activations).
        recipe: "fast", "default", "best", "torchvision", or a `Recipe` of one's own.
        images: How many calibration images to take; None goes by the recipe.
        batch_size: Images per forward pass.
        seed: Seed of the choice of images.
        keep_float: Layers whose weights stay float, as names or shell patterns ("layer4.*").
        transforms: Evaluation transforms, for folders and data sets of pictures; None takes the
            model's own. The int8 model records them, where a file can hold them.
        flow: "eager"; "fx" or "pt2e" go through PyTorch's FX quantization or torchao's PT2E,
            whose own observers then choose the ranges, so that there is no recipe to choose.
        qconfig_mapping: A QConfigMapping for `flow="fx"`; None takes PyTorch's own of the backend.
        quantizer: One of torchao's quantizers for `flow="pt2e"`; None takes X86InductorQuantizer
            or, for `qnnpack`, ExecuTorch's XNNPACKQuantizer.
        progress: Whether to show progress bars on stderr.

    Returns:
        The native int8 model in eval mode, which `qzoo.save` stores. What a flow's graph rounds
        differently from PyTorch's int8 modules stands in its recipe under "changed".

    Raises:
        ArgumentError: No images, images of a wrong shape or range, a pattern that matches nothing,
            an already quantized model, one that cannot be fused or leaves layers out, arguments of
            another flow.
        ArtifactError: A model not from one of qzoo's builders; a mapping or quantizer whose result
            an artifact cannot hold.
        MissingDependencyError: The flow needs a package that is not installed.
        UnknownNameError: An unknown backend, recipe, step, observer or flow.
    """
    if isinstance(model, InTraining):
        raise ArgumentError(
            "This model is in quantization-aware training: qat.convert makes it int8, while ptq "
            "takes the float model."
        )
    row = get_backend(backend or default_backend())
    plan = get_recipe(recipe)
    check_counts(images=images, batch_size=batch_size)
    _check_flow(flow, plan, qconfig_mapping, quantizer)
    calibration = open_calibration(
        data,
        images=images or plan.images,
        batch_size=batch_size,
        seed=seed,
        transform=transforms or own_transforms(model),
        stratify=plan.stratify,
    )
    if flow != "eager" or not plan.steps:
        settings = quantizer if qconfig_mapping is None else qconfig_mapping
        artifact = torch_artifact(
            model, calibration, row, flow, progress, keep_float=keep_float, settings=settings
        )
    else:
        state = Quantization(
            model, row, calibration, keep_float, row.reduce_range, progress=progress
        )
        artifact = run_recipe(state, plan)
    return to_native(with_recipe(artifact, plan, calibration, flow, transforms))


def check_counts(**counts: Any) -> None:
    """Checks numbers of images, which may be None.

    Raises:
        ArgumentError: One is no whole number above 0.
    """
    for name, value in counts.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ArgumentError(f"{name} should be a whole number above 0, not {value!r}.")


def _check_flow(flow: str, recipe: Recipe, qconfig_mapping: Any, quantizer: Any) -> None:
    if flow not in FLOWS:
        raise UnknownNameError(
            f"Unknown flow {flow!r}: choose one of {', '.join(FLOWS)}."
            + did_you_mean(str(flow), FLOWS)
        )
    for name, value, owner in (
        ("qconfig_mapping", qconfig_mapping, "fx"),
        ("quantizer", quantizer, "pt2e"),
    ):
        if value is not None and flow != owner:
            raise ArgumentError(f'{name} goes with flow="{owner}", not with flow="{flow}".')
    if flow != "eager" and recipe.steps and recipe != RECIPES["default"]:
        raise ArgumentError(
            f"The recipe {recipe.name!r} consists of qzoo's own steps, which flow={flow!r} has no "
            "use for: PyTorch's observers choose its ranges. Leave one of them out."
        )


def run_recipe(state: Quantization, recipe: Recipe) -> Artifact:
    """Runs a recipe's steps in turn and returns the int8 artifact."""
    bar = tqdm(recipe.steps, unit="step", leave=False, disable=not state.progress)
    for step in bar:
        bar.set_description(step)
        STEPS[step](state, recipe)
    info = dataclasses.replace(state.info, recipe={**state.info.recipe, **state.notes})
    return dataclasses.replace(state.artifact(), info=info)


def with_recipe(
    artifact: Artifact,
    recipe: Recipe,
    calibration: Calibration,
    flow: str,
    transforms: Callable[[Any], Tensor] | None = None,
) -> Artifact:
    """Returns an artifact that says how it was calibrated, and through which transforms."""
    note = {
        "method": f"PTQ ({flow})",
        # PyTorch's graph flows know no recipes.
        **({"ptq_recipe": recipe.name, "ptq_steps": list(recipe.steps)} if flow == "eager" else {}),
        "calibration_images": calibration.count,
        "calibration_seed": calibration.seed,
        "calibration_sha256": calibration.sha256,
    }
    known = artifact.info
    info = dataclasses.replace(
        known,
        recipe={**known.recipe, **note},
        seen=noted(known.seen, CALIBRATION, hashes(calibration.files)),
    )
    return dataclasses.replace(artifact, info=with_transforms(info, transforms))


def with_transforms(
    info: ModelInfo, transforms: Callable[[Any], Tensor] | None, stacklevel: int = 4
) -> ModelInfo:
    """Returns what a model is, with the transforms that were given for its pictures, if any.

    A `QuantizationWarning` says where no file can hold them; then it keeps what it had.
    """
    if transforms is None:
        return info
    try:
        return dataclasses.replace(info, transforms=describe(transforms))
    except ArgumentError as error:
        warnings.warn(
            f"The int8 model does not record its transforms, which qzoo classify needs. {error}",
            QuantizationWarning,
            stacklevel=stacklevel,
        )
        return info


def own_transforms(model: nn.Module) -> ImageClassification | None:
    """Returns the evaluation transforms that a model of the zoo carries, or None."""
    stored = model_info(model).transforms
    return None if stored is None else ImageClassification.from_dict(stored)
