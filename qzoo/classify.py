"""From picture files to class names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from .artifact.format import Artifact
from .datasets.evaluate import eval_mode
from .errors import ArgumentError
from .native.model import as_callable, model_info
from .pictures.classes import class_names
from .pictures.images import transformed
from .transforms import ImageClassification


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
    model: Callable[[torch.Tensor], torch.Tensor] | Artifact | str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str] | Image.Image],
    topk: int = 5,
) -> list[list[Prediction]]:
    """Classifies pictures with a model of the zoo, through the transforms it was made with.

    Args:
        model: A float or int8 model of the zoo with known transforms, in any mode (it is put into
            eval mode and back), or what `qzoo.compile` returned. An artifact, or the path of one,
            runs as its native model.
        images: Picture files, or PIL images of any mode, which are treated alike.
        topk: How many guesses to return per picture, best first; at most the number of classes.

    Returns:
        For each picture its guesses.

    Raises:
        ArtifactError: The path leads to no int8 model, or the model is not of the zoo.
        ArgumentError: `topk` is below 1, `images` is no list of pictures, or nobody recorded the
            model's transforms.
        ImageError: A file that is missing or no picture; nothing is returned then.
    """
    if isinstance(images, (str, os.PathLike, Image.Image)):
        raise ArgumentError("images should be a list of pictures: write [image] for a single one.")
    if topk < 1:
        raise ArgumentError(f"topk must be at least 1, not {topk}.")
    run = as_callable(model)
    held = getattr(run, "artifact", None)  # of a compiled model
    info = held.info if isinstance(held, Artifact) else model_info(run)
    if info.transforms is None:
        raise ArgumentError(
            f"This {info.architecture} does not record which transforms its inputs need: load "
            "weights, or save it with transforms=..., before classifying pictures."
        )
    preset = ImageClassification.from_dict(info.transforms)
    names = class_names(info.classes)
    with eval_mode(run), torch.inference_mode():
        # One picture after the other, so that no more than one is held at a time.
        return [_top(run(transformed(i, preset)[None])[0], names, topk) for i in images]


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Returns the probabilities that logits stand for, float [classes].

    These are their softmax. A single logit tells one class from everything else, as trained with
    binary cross-entropy: its probability is its sigmoid, while its softmax would always be 1.

    Args:
        logits: Float [classes].
    """
    return logits.sigmoid() if len(logits) == 1 else logits.softmax(0)


def _top(logits: torch.Tensor, names: list[str] | None, topk: int) -> list[Prediction]:
    best = probabilities(logits).topk(min(topk, len(logits)))
    return [
        Prediction(i, names[i] if names else str(i), p)
        for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
