"""What an int8 model may be given as, and the one way from there to its artifact; no PyTorch."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

from .._core.given import is_module
from ..errors import ArgumentError
from .folders import int8_file
from .format import Artifact

if TYPE_CHECKING:
    from torch import nn


class HasArtifact(Protocol):
    """What holds an artifact: a compiled or a reference model, a result of `tune`."""

    @property
    def artifact(self) -> Artifact:
        """The model's numbers."""
        ...


#: An int8 model in any form that `as_artifact` takes.
Int8Model: TypeAlias = Union["nn.Module", Artifact, HasArtifact, str, "os.PathLike[str]"]


def as_artifact(model: Int8Model, **info: Any) -> Artifact:
    """Returns the artifact of an int8 model, in whatever form the model is given.

    Everything in qzoo that takes an int8 model takes what this function takes.

    Args:
        model: A native int8 model (what a builder with `quantize=True`, `qzoo.load`, `ptq` or
            PyTorch's eager `convert` returned); what holds an artifact (a compiled or a reference
            model, a result of `tune`); a model in QAT, of which the int8 model is taken as it is by
            now; an `Artifact`, which is returned as it is; or a path: an artifact file, or a folder
            of `save_pretrained` or `qzoo finetune`.
        **info: Fields of `ModelInfo` that replace what the model carries, such as
            `classes=["cat", "dog"]`, `transforms=ImageClassification(crop_size=224)`.

    Raises:
        ArtifactError: The model is not an int8 model of the zoo, or the path leads to none.
        ArgumentError: Neither a model nor a path.
    """
    if isinstance(model, (str, os.PathLike)):
        if str(model).startswith("hf://"):
            raise ArgumentError(f"Load {model} from the Hub first: qzoo.from_pretrained.")
        return _with_info(Artifact.read(int8_file(model)), info)
    held = model if isinstance(model, Artifact) else getattr(model, "artifact", None)
    if isinstance(held, Artifact):
        return _with_info(held, info)
    if callable(made := getattr(model, "to_artifact", None)):  # what `qat.prepare` returned
        return _with_info(made(), info)
    if is_module(model):
        from ..native.model import from_native

        return from_native(model, **info)
    raise ArgumentError(
        f"Expected an int8 model, an artifact or the path of one, not {type(model).__name__}."
    )


def _with_info(artifact: Artifact, info: dict[str, Any]) -> Artifact:
    if not info:
        return artifact
    return dataclasses.replace(artifact, info=dataclasses.replace(artifact.info, **info))
