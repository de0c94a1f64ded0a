"""What a model says of its inputs and outputs: its transforms and the names of its classes."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, cast

from .artifact.format import ModelInfo
from .pictures.classes import class_names
from .pictures.preset import Preset

if TYPE_CHECKING:
    from .transforms import ImageClassification


class Labelled:
    """Gives models of every kind the public attributes `classes` and `transforms`."""

    def _model_info(self) -> ModelInfo | None:
        raise NotImplementedError

    @property
    def classes(self) -> list[str] | None:
        """Class names in the order of the logits; None where nobody named them."""
        info = self._model_info()
        return None if info is None else class_names(info.classes)

    @property
    def transforms(self) -> ImageClassification | None:
        """What makes the model's input, float32 [3, H, W], of a picture; None if not recorded.

        Where PyTorch is installed, that is torchvision's preset, which gives a tensor (see
        `qzoo.transforms.ImageClassification`), else a `Preset`, which gives a NumPy array.
        """
        info = self._model_info()
        stored = None if info is None else info.transforms
        if stored is None:
            return None
        if importlib.util.find_spec("torchvision") is None:
            # Typed as the other, which whoever uses PyTorch has: it is called in the same way.
            return cast("ImageClassification", Preset.from_dict(stored))
        from .transforms import ImageClassification

        return ImageClassification.from_dict(stored)
