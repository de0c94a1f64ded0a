"""How commands find models and what goes with them: float or int8, by name or file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..artifact.format import Artifact, ModelInfo
from ..artifact.native import load, model_info
from ..checkpoint import is_float_checkpoint, load_float
from ..datasets.sources import Data
from ..errors import ArgumentError, ArtifactError
from ..registry import get_entry, get_model
from ..transforms import ImageClassification
from ..weights import class_names


def is_file(model: str) -> bool:
    """Says whether an argument means a file instead of the name of a model."""
    path = Path(model)
    return path.suffix == ".safetensors" or path.is_file() or "/" in model


def load_model(model: str, weights: str | None, backend: str | None = None) -> nn.Module:
    """Loads what `--model` names: an artifact file, or a model of the zoo with int8 weights.

    Raises:
        QzooError: An unknown model, weights or file, or weights given for a file.
    """
    if is_file(model):
        _check_file(model, weights)
        if is_float_checkpoint(model):
            raise ArtifactError(f"{model} holds float weights: quantize it first (qzoo quantize).")
        return load(model, backend)
    return get_model(model, weights=weights or "DEFAULT", quantize=True, backend=backend)


def load_float_model(model: str, weights: str | None) -> nn.Module:
    """Loads a float model to quantize: a checkpoint, or a model of the zoo with float weights.

    Raises:
        QzooError: An unknown model, weights or file, weights given for a file, or an int8 file.
    """
    if is_file(model):
        _check_file(model, weights)
        if Path(model).is_file() and not is_float_checkpoint(model) and _is_artifact(model):
            raise ArgumentError(f"{model} is already int8: name the float weights it was made of.")
        return load_float(model)
    extra: dict[str, Any] = {"aux_logits": False} if get_entry(model).aux else {}
    return get_model(model, weights=weights or "DEFAULT", **extra).eval()


def preset_of(model: nn.Module) -> ImageClassification:
    """Returns a model's own evaluation transforms.

    Raises:
        ArgumentError: It carries none.
    """
    stored = model_info(model).transforms
    if stored is None:
        raise ArgumentError(
            "This model carries no evaluation transforms, so pictures cannot be prepared for it: "
            "save it with transforms=qzoo.transforms.ImageClassification(...).to_dict()."
        )
    return ImageClassification.from_dict(stored)


def labels_for(data: Data, info: ModelInfo) -> list[int]:
    """Returns which of a model's classes each label of the data stands for.

    Raises:
        ArgumentError: They do not belong together.
    """
    return data.labels_of(class_names(info.classes), info.builder_kwargs.get("num_classes", 1000))


def _check_file(model: str, weights: str | None) -> None:
    if weights is not None:
        raise ArgumentError(f"{model} is a file, which has its own weights: drop --weights.")
    if Path(model).is_dir():
        raise ArtifactError(f"{model} is a folder: name the file in it.")


def _is_artifact(model: str) -> bool:
    try:
        Artifact.read(model)
    except ArtifactError:
        return False
    return True
