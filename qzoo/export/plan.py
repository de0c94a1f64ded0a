"""What all exports share: their options, checked, and what files say about themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from .._core.versions import package_versions
from ..artifact.format import Artifact
from ..artifact.given import Int8Model, as_artifact
from ..artifact.picture_size import picture_size
from ..errors import ArgumentError
from ..metadata import read_metadata
from ..pictures.classes import class_names
from ..pictures.preset import Preset


class ExportKeywords(TypedDict, total=False):
    """The options that every export takes, by name.

    Attributes:
        batch_size: The only number of images per call; None takes any (ExecuTorch: one).
        input_size: Height and width of the images in pixels, or one number for both; None takes
            what the model was made for.
        preprocess: Whether the model takes uint8 [N, H, W, 3] images and normalizes them itself,
            instead of normalized float32 [N, 3, H, W].
    """

    batch_size: int | None
    input_size: int | Sequence[int] | None
    preprocess: bool


@dataclass(frozen=True)
class ExportPlan:
    """What to export; `make_plan` makes one of the model and `ExportKeywords`.

    Attributes:
        artifact: The model's numbers.
        size: Height and width of the images, in pixels.
        batch_size: The only batch size that the file takes, or None for any.
        preprocess: Whether the graph takes uint8 [N, H, W, 3] images and normalizes them itself,
            instead of normalized float32 [N, 3, H, W].
    """

    artifact: Artifact
    size: tuple[int, int]
    batch_size: int | None
    preprocess: bool

    def normalization(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns gain and offset per channel, float64 [3], from a pixel in 0..255 to the input."""
        assert self.artifact.info.transforms is not None
        preset = Preset.from_dict(self.artifact.info.transforms)
        mean, std = (np.array(values, np.float64) for values in (preset.mean, preset.std))
        return 1 / (255 * std), -mean / std

    def metadata(self, **more: Any) -> dict[str, Any]:
        """Returns what the file should say about itself, JSON values."""
        info = self.artifact.info
        return {
            "producer": "qzoo",
            "architecture": info.architecture,
            "builder_kwargs": info.builder_kwargs,
            "backend": info.backend,
            "classes": class_names(info.classes),
            "transforms": info.transforms,
            "recipe": info.recipe,
            "metrics": info.metrics,
            "kept_in_float": self.artifact.float_layers,
            "input": {
                "dtype": "uint8" if self.preprocess else "float32",
                "layout": "NHWC" if self.preprocess else "NCHW",
                "batch_size": self.batch_size,
                "height": self.size[0],
                "width": self.size[1],
                "preprocessing_inside": self.preprocess,
            },
            "made_with": self.artifact.versions,
            "exported_with": package_versions(),
            **more,
        }

    def metadata_json(self, **more: Any) -> str:
        """Returns `metadata` as JSON text."""
        return json.dumps(self.metadata(**more), ensure_ascii=False)


def make_plan(
    model: Int8Model,
    batch_size: int | None = None,
    input_size: int | Sequence[int] | None = None,
    preprocess: bool = False,
) -> ExportPlan:
    """Checks the model and the options that all exports share; see `ExportKeywords`.

    Raises:
        ArgumentError: Sizes below what the model takes, or preprocessing of a model that carries
            no transforms.
        ArtifactError: The model is not an int8 model of the zoo.
    """
    artifact = as_artifact(model)
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise ArgumentError(
            f"batch_size must be a whole number above 0 or None, not {batch_size!r}."
        )
    if preprocess and artifact.info.transforms is None:
        raise ArgumentError(
            "This model carries no transforms, so its preprocessing cannot go into the file: save "
            "it with transforms=..., or export with preprocess=False."
        )
    return ExportPlan(artifact, _size(artifact, input_size), batch_size, preprocess)


def open_export(
    model: Int8Model, path: str | os.PathLike[str], suffix: str, options: ExportKeywords
) -> tuple[ExportPlan, Path]:
    """Checks what an export was asked for, before the work that it takes.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        path: The file to write.
        suffix: What its name must end in.
        options: What the user said.

    Raises:
        ArgumentError: As for `make_plan`; or the folder does not exist, or the name has another
            ending.
        ArtifactError: The model is not an int8 model of the zoo.
    """
    target = Path(path)
    if target.suffix != suffix:
        raise ArgumentError(f"The file must end in {suffix}, which {target.name!r} does not.")
    if not target.parent.is_dir():
        raise ArgumentError(f"Cannot write {target}: the folder {target.parent} does not exist.")
    return make_plan(model, **options), target


def _size(artifact: Artifact, given: int | Sequence[int] | None) -> tuple[int, int]:
    height, width = picture_size(artifact, given)
    if artifact.info.architecture is not None:
        least = read_metadata(artifact.info.architecture)["min_size"]
        if height < least[0] or width < least[1]:
            raise ArgumentError(
                f"{artifact.info.architecture} takes images of at least {least[0]}x{least[1]} "
                f"pixels, not {height}x{width}."
            )
    artifact.graph.sized(height, width)
    return (height, width)
