"""Post-training quantization (PTQ) in one call."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn
from tqdm import tqdm
from typing_extensions import Unpack

from .._core.keywords import takes
from ..artifact.format import Artifact
from ..artifact.seen import CALIBRATION, hashes, noted
from ..backends import get_backend
from ..errors import ArgumentError
from ..native.engines import default_backend
from ..native.model import to_native
from .data import Calibration
from .flows import torch_artifact
from .options import PTQKeywords, PTQOptions
from .qat.model import InTraining
from .recipes import STEPS, Recipe
from .state import Quantization


@takes(PTQOptions)
def ptq(
    model: nn.Module,
    data: Any,
    *,
    options: PTQOptions | None = None,
    **changes: Unpack[PTQKeywords],
) -> nn.Module:
    """Quantizes a float model of the zoo to int8.

    The model itself is left as it was. The same seed, data and number of threads give the same
    numbers, bit for bit.

    Args:
        model: A float model from one of the zoo's builders, perhaps fine-tuned.
        data: Calibration images: a data set, a DataLoader, a tensor [N, 3, H, W] or a list of
            such, or a folder of pictures. No labels are needed; where a data set or folder has
            some, every class gets an equal share.
        options: What to choose otherwise than by default; None takes the defaults.
        changes: Single options instead, or other than in `options`: see `PTQOptions`.

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
    chosen = PTQOptions.of(options, changes)
    backend = get_backend(chosen.backend or default_backend())
    calibration = chosen.open(data, model)
    if chosen.flow != "eager" or not chosen.plan.steps:
        artifact = torch_artifact(model, calibration, backend, chosen)
    else:
        state = Quantization(
            model, backend, calibration, chosen.keep_float, progress=chosen.progress
        )
        artifact = _run(state, chosen.plan)
    return to_native(_noted(artifact, calibration, chosen))


def _run(state: Quantization, recipe: Recipe) -> Artifact:
    """Runs a recipe's steps in turn and returns the int8 artifact."""
    bar = tqdm(recipe.steps, unit="step", leave=False, disable=not state.progress)
    for step in bar:
        bar.set_description(step)
        STEPS[step](state, recipe)
    info = dataclasses.replace(state.info, recipe={**state.info.recipe, **state.notes})
    return dataclasses.replace(state.artifact(), info=info)


def _noted(artifact: Artifact, calibration: Calibration, options: PTQOptions) -> Artifact:
    """Returns an artifact that says how it was calibrated, and through which transforms."""
    plan = options.plan
    eager = options.flow == "eager"  # PyTorch's graph flows know no recipes
    note = {
        "method": f"PTQ ({options.flow})",
        **({"ptq_recipe": plan.name, "ptq_steps": list(plan.steps)} if eager else {}),
        "calibration_images": calibration.count,
        "calibration_seed": calibration.seed,
        "calibration_sha256": calibration.sha256,
    }
    info = dataclasses.replace(
        artifact.info,
        recipe={**artifact.info.recipe, **note},
        seen=noted(artifact.info.seen, CALIBRATION, hashes(calibration.files)),
    )
    return dataclasses.replace(artifact, info=options.recorded(info))
