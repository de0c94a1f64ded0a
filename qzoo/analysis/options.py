"""The options of the comparison of float and int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor, nn

from .._core.keywords import check_count
from ..native.model import model_info
from ..quantize.data import LabelledImages, open_labelled
from ..quantize.options import own_transforms

Transforms = Callable[[Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """What can be chosen about `analyze`.

    Attributes:
        images: How many images the layers are compared on, at most; None takes all.
        sensitivity_images: How many the layers are tried alone on, which takes longest; None takes
            all.
        test_data: What top-1 is measured on; None takes the same images as the comparison.
        batch_size: Images per forward pass.
        seed: Seed of the choice of images.
        transforms: Evaluation transforms; None takes the model's own.
        progress: Whether to show progress bars on stderr.

    Raises:
        ArgumentError: A number of images is no whole number above 0.
    """

    images: int | None = 256
    sensitivity_images: int | None = 64
    test_data: Any = None
    batch_size: int = 32
    seed: int = 0
    transforms: Transforms | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("images", "sensitivity_images", "batch_size"):
            if getattr(self, name) is not None or name == "batch_size":
                check_count(name, getattr(self, name))

    def open(self, data: Any, model: nn.Module, images: int | None) -> LabelledImages:
        """Opens images for a float model.

        Args:
            data: Images, as `open_labelled` takes them.
            model: The float model.
            images: How many to take at most; None takes all.

        Raises:
            ArgumentError: `data` holds no images.
        """
        return open_labelled(
            data,
            images=images,
            batch_size=self.batch_size,
            seed=self.seed,
            transform=self.transforms or own_transforms(model),
            model=model_info(model),
        )


class AnalysisKeywords(TypedDict, total=False):
    """`AnalysisOptions` as keyword arguments, for type checkers and editors."""

    images: int | None
    sensitivity_images: int | None
    test_data: Any
    batch_size: int
    seed: int
    transforms: Transforms | None
    progress: bool
