"""The size of the pictures that a stored model takes."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ArgumentError
from ..metadata import read_metadata
from ..registry import model_name
from .format import Artifact, ModelInfo


def picture_size(artifact: Artifact, given: int | Sequence[int] | None = None) -> tuple[int, int]:
    """Returns height and width, in pixels, of the pictures that a model is to be ready for.

    Args:
        artifact: The model.
        given: What the user wants, height and width or one number for both. None takes what the
            model's transforms give or, where it carries none, those of torchvision's weights.

    Raises:
        ArgumentError: `given` is not one or two whole numbers above 0.
    """
    if given is not None:
        pair = [given, given] if isinstance(given, int) else list(given)
        if len(pair) != 2 or not all(type(v) is int and v > 0 for v in pair):
            raise ArgumentError(
                f"input_size must be a height and width in pixels or one number, not {given!r}."
            )
        return (pair[0], pair[1])
    if artifact.info.architecture is None and artifact.graph.size is not None:
        return artifact.graph.size
    side = usual_size(artifact.info)
    return (side, side)


def usual_size(info: ModelInfo) -> int:
    """Returns height and width, in pixels, that a model's own transforms crop pictures to.

    Args:
        info: The model; where it carries no transforms, those of torchvision's weights count.

    Raises:
        ArgumentError: It carries no transforms and comes from no builder.
    """
    if info.transforms is not None:
        return int(info.transforms["crop_size"])
    if info.architecture is None:
        raise ArgumentError(
            "This model records neither transforms nor its architecture: say for which images it "
            "is to be made with input_size=..., in pixels."
        )
    return int(read_metadata(model_name(info.architecture))["crop_size"])
