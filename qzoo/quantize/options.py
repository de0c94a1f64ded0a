"""The options of everything that makes int8 models: defaults and checks in one place.

Functions take them either way: `ptq(model, data, recipe="best")`, or gathered in an object,
`ptq(model, data, options=PTQOptions(recipe="best"))`, of which keywords change single ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from torch import Tensor, nn

from .._core.keywords import check_count, chosen
from ..backends import get_backend
from ..errors import ArgumentError, QuantizationWarning, check_known, warn
from ..native.model import ModelInfo, model_info
from ..transforms import ImageClassification, describe
from .data import Calibration, open_calibration
from .recipes import Recipe, get_recipe

#: The ways of `ptq`: qzoo's own steps or, without any, PyTorch's eager observers; FX; PT2E.
FLOWS = ("eager", "fx", "pt2e")
Transforms = ImageClassification | Callable[[Any], Tensor]
T = TypeVar("T", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be chosen about every way to int8.

    Attributes:
        backend: Numeric configuration; None takes `onednn` (per-channel weights, 8-bit
            activations) or, on CPUs without VNNI, `x86` (7-bit activations).
        recipe: "fast", "default", "best", "torchvision", or a `Recipe` of one's own.
        images: How many calibration images to take; None goes by the recipe.
        batch_size: Images per forward pass.
        seed: Seed of the choice of images.
        keep_float: Layers whose weights stay float, as names or shell patterns ("layer4.*").
        transforms: Evaluation transforms, for folders and data sets of pictures; None takes the
            model's own. The int8 model records them, where a file can hold them.
        progress: Whether to show progress bars on stderr.

    Raises:
        ArgumentError: A value of another kind, or out of its range.
        UnknownNameError: An unknown backend, recipe, step or observer.
    """

    backend: str | None = None
    recipe: str | Recipe = "default"
    images: int | None = None
    batch_size: int = 32
    seed: int = 0
    keep_float: Sequence[str] = ()
    transforms: Transforms | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.backend is not None:
            get_backend(self.backend)
        get_recipe(self.recipe)
        check_count("batch_size", self.batch_size)
        if self.images is not None:
            check_count("images", self.images)
        if type(self.seed) is not int or not -(2**63) <= self.seed < 2**64:
            raise ArgumentError(f"seed should be a whole number of 64 bits, not {self.seed!r}.")
        patterns = [self.keep_float] if isinstance(self.keep_float, str) else self.keep_float
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise ArgumentError(
                f"keep_float should be names or patterns of layers, not {self.keep_float!r}."
            )
        if self.transforms is not None and not callable(self.transforms):
            raise ArgumentError(
                "transforms should be called with a picture and return a tensor; "
                f"{type(self.transforms).__name__} cannot be called."
            )

    @classmethod
    def of(cls: type[T], options: T | None, changes: Mapping[str, Any]) -> T:
        """Returns options with some of them changed; None starts from the defaults.

        Raises:
            ArgumentError: `options` is something else, or a changed value is out of range.
            TypeError: There is no such option.
        """
        return chosen(cls, options, changes)

    def shared(self, kind: type[T]) -> T:
        """Returns options of another way to int8 that are the same where both have them."""
        return kind(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Options)})

    @property
    def plan(self) -> Recipe:
        """The recipe, also where only its name was given."""
        return get_recipe(self.recipe)

    def transforms_of(self, model: nn.Module) -> Transforms | None:
        """Returns the transforms to read pictures through: those chosen, or the model's own."""
        return self.transforms or own_transforms(model)

    def open(self, data: Any, model: nn.Module) -> Calibration:
        """Opens calibration images for a model.

        Raises:
            ArgumentError: There are no images, or `data` is nothing that holds some.
        """
        return open_calibration(
            data,
            images=self.images or self.plan.images,
            batch_size=self.batch_size,
            seed=self.seed,
            transform=self.transforms_of(model),
            stratify=self.plan.stratify,
        )

    def recorded(self, info: ModelInfo) -> ModelInfo:
        """Returns what a model is, with the transforms that were chosen for its pictures, if any.

        A `QuantizationWarning` says where no file can hold them; then it keeps what it had.
        """
        if self.transforms is None:
            return info
        try:
            return dataclasses.replace(info, transforms=describe(self.transforms))
        except ArgumentError as error:
            warn(
                "The int8 model does not record its transforms, which qzoo classify needs. "
                f"{error}",
                QuantizationWarning,
            )
            return info


class Keywords(TypedDict, total=False):
    """`Options` but for the backend as keyword arguments, for type checkers and editors."""

    recipe: str | Recipe
    images: int | None
    batch_size: int
    seed: int
    keep_float: Sequence[str]
    transforms: Transforms | None
    progress: bool


@dataclass(frozen=True, kw_only=True)
class PTQOptions(Options):
    """What can be chosen about `ptq`, besides what `Options` holds.

    Attributes:
        flow: "eager"; "fx" or "pt2e" go through PyTorch's FX quantization or torchao's PT2E,
            whose own observers then choose the ranges, so that there is no recipe to choose.
        qconfig_mapping: A QConfigMapping for `flow="fx"`; None takes PyTorch's own of the backend.
        quantizer: One of torchao's quantizers for `flow="pt2e"`; None takes X86InductorQuantizer
            or, for `qnnpack`, ExecuTorch's XNNPACKQuantizer.
    """

    flow: str = "eager"
    qconfig_mapping: Any = None
    quantizer: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known(self.flow, FLOWS, "flow")
        for name, owner in (("qconfig_mapping", "fx"), ("quantizer", "pt2e")):
            if getattr(self, name) is not None and self.flow != owner:
                raise ArgumentError(
                    f'{name} goes with flow="{owner}", not with flow="{self.flow}".'
                )
        plan = self.plan
        if self.flow != "eager" and plan.steps and plan != get_recipe(PTQOptions.recipe):
            raise ArgumentError(
                f"The recipe {plan.name!r} consists of qzoo's own steps, which flow={self.flow!r} "
                "has no use for: PyTorch's observers choose its ranges. Leave one of them out."
            )


class PTQKeywords(Keywords, total=False):
    """`PTQOptions` as keyword arguments, for type checkers and editors."""

    backend: str | None
    flow: str
    qconfig_mapping: Any
    quantizer: Any


def own_transforms(model: nn.Module) -> ImageClassification | None:
    """Returns the evaluation transforms that a model of the zoo carries, or None."""
    stored = model_info(model).transforms
    return None if stored is None else ImageClassification.from_dict(stored)
