"""From picture files to class names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ._core.given import as_array, is_module
from .artifact.format import Artifact, ModelInfo
from .errors import ArgumentError, ArtifactError
from .pictures.classes import class_names
from .pictures.images import transformed
from .pictures.preset import Preset

if TYPE_CHECKING:
    from torch import nn

    from .runtimes.base import CompiledModel


@dataclass(frozen=True)
class Prediction:
    """One guess of a model.

    Attributes:
        index: Position of the class among the logits.
        name: Name of the class; its index as text where nobody named the classes.
        probability: In [0, 1]: softmax of the logits or, where a model has a single logit, its
            sigmoid.
    """

    index: int
    name: str
    probability: float


def classify(
    model: nn.Module | CompiledModel | Artifact | str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str] | Image.Image],
    topk: int = 5,
) -> list[list[Prediction]]:
    """Classifies pictures with a model of the zoo, through the transforms it was made with.

    Args:
        model: A float or int8 model of the zoo with known transforms, in any mode (it is put into
            eval mode and back), or what `qzoo.compile` returned. An artifact, or the path of one,
            runs on the fastest runtime that is installed, as `qzoo.compile` chooses it, and fewer
            than 100 pictures on libqzoo, where it has fast kernels, because it starts at once.
        images: Picture files, or PIL images of any mode, which are treated alike.
        topk: How many guesses to return per picture, best first; at most the number of classes.

    Returns:
        For each picture its guesses.

    Raises:
        ArtifactError: The path leads to no int8 model, or the model is not of the zoo.
        ArgumentError: `topk` is below 1, `images` is no list of pictures, or nobody recorded the
            model's transforms.
        ImageError: A file that is missing or no picture; nothing is returned then.
        MissingDependencyError: No runtime is installed that could run an artifact.
    """
    if isinstance(images, (str, os.PathLike, Image.Image)):
        raise ArgumentError("images should be a list of pictures: write [image] for a single one.")
    if topk < 1:
        raise ArgumentError(f"topk must be at least 1, not {topk}.")
    if isinstance(model, (Artifact, str, os.PathLike)):
        from .runtimes.api import compile, runtime_for

        model = compile(model, runtime_for(len(images)))
    info = _info(model)
    if info.transforms is None:
        raise ArgumentError(
            f"This {info.architecture} does not record which transforms its inputs need: load "
            "weights, or save it with transforms=..., before classifying pictures."
        )
    names = class_names(info.classes)
    with _prepared(model, info.transforms) as (preset, run):
        # One picture after the other, so that no more than one is held at a time.
        return [_top(run(transformed(i, preset)[None]), names, topk) for i in images]


def _info(model: Any) -> ModelInfo:
    held = getattr(model, "artifact", None)  # of a compiled or a reference model
    if isinstance(held, Artifact):
        return held.info
    if not is_module(model):
        raise ArtifactError(
            f"Expected a model of the zoo, what qzoo.compile returned, an artifact or the path of "
            f"one, not {type(model).__name__}."
        )
    from .native.model import model_info

    return model_info(model)


@contextmanager
def _prepared(
    model: Any, transforms: dict[str, Any]
) -> Iterator[tuple[Callable[[Image.Image], Any], Callable[[Any], Any]]]:
    """Gives what makes a model's input of a picture, and what runs the model, in a block.

    PyTorch's modules take tensors, as torchvision's preset makes them; the others take arrays.
    """
    if not is_module(model):
        yield Preset.from_dict(transforms), model
        return
    import torch

    from .datasets.evaluate import eval_mode
    from .transforms import ImageClassification

    with eval_mode(model), torch.inference_mode():
        yield ImageClassification.from_dict(transforms), model


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities that logits stand for, float [classes].

    These are their softmax. A single logit tells one class from everything else, as trained with
    binary cross-entropy: its probability is its sigmoid, while its softmax would always be 1.

    Args:
        logits: Float [classes].
    """
    if len(logits) == 1:
        return np.exp(-np.logaddexp(0, -logits))
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def _top(logits: Any, names: list[str] | None, topk: int) -> list[Prediction]:
    """Returns the best guesses of one picture, whose logits are float [1, classes]."""
    found = probabilities(as_array(logits)[0])
    best = np.argsort(-found, kind="stable")[:topk].tolist()
    return [Prediction(i, names[i] if names else str(i), float(found[i])) for i in best]
