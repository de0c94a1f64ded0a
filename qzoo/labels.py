"""What a model says of its inputs and outputs: its transforms and the names of its classes."""

from __future__ import annotations

from .artifact.format import ModelInfo
from .pictures.classes import class_names
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
        """What makes the model's input, float32 [3, H, W], of a picture; None if not recorded."""
        info = self._model_info()
        stored = None if info is None else info.transforms
        return None if stored is None else ImageClassification.from_dict(stored)
