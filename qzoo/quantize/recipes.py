"""Recipes: which steps turn a float model into an int8 one, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import ArgumentError, check_known
from .observers import OBSERVERS
from .state import Quantization
from .steps.adaround import round_adaptively
from .steps.bias_correction import correct_biases
from .steps.calibrate import calibrate, choose_weight_scales
from .steps.equalize import equalize
from .steps.shared_ranges import share_ranges


@dataclass(frozen=True)
class Recipe:
    """A set of post-training quantization steps.

    Attributes:
        name: What it is called in artifacts; nothing else goes by it.
        steps: Names of `STEPS`, in the order in which they run. Folding batch norm into
            convolutions always comes first: the zoo's `fuse_model` does it. None at all leaves
            everything to PyTorch's own observers of the backend, as torchvision's script does.
        observer: Observer of activations.
        weight_observer: Observer of weights.
        images: Calibration images, where the caller names no number.
        stratify: Whether calibration images are drawn evenly over classes; else the first ones.
    """

    name: str
    steps: tuple[str, ...]
    observer: str = "mse"
    weight_observer: str = "minmax"
    images: int = 512
    stratify: bool = True

    def check(self) -> None:
        """Checks that all steps and observers exist, and the steps' order.

        Raises:
            UnknownNameError: One does not exist; the message names the known ones.
            ArgumentError: A step is missing or comes too early, or there are none but an observer.
        """
        for step in self.steps:
            check_known(step, STEPS, f"step of the recipe {self.name!r}")
        for observer in (self.observer, self.weight_observer):
            check_known(observer, OBSERVERS, f"observer of the recipe {self.name!r}")
        if not self.steps:
            if (self.observer, self.weight_observer) != ("histogram", "minmax"):
                raise ArgumentError(
                    f"The recipe {self.name!r} has no steps, so that PyTorch's own observers "
                    "choose all ranges, and takes no others: name steps, or start from "
                    "RECIPES['torchvision']."
                )
            return
        for step in (*self.steps, ""):  # the end needs both, whatever comes before
            done = self.steps[: self.steps.index(step)] if step else self.steps
            if missing := [other for other in _BEFORE.get(step, ()) if other not in done]:
                where = f"before {step!r}" if step else "at all"
                raise ArgumentError(
                    f"The recipe {self.name!r} lacks the step {missing[0]!r} {where}."
                )
            if step in ("weights", "calibrate") and "equalize" in self.steps[len(done) :]:
                raise ArgumentError(
                    f"The recipe {self.name!r} equalizes channels after {step!r}, whose ranges "
                    "would no longer fit: put 'equalize' first."
                )


#: Which steps must come before a step; "" is the end.
_BEFORE = {
    "share_ranges": ("calibrate",),
    "adaround": ("weights", "calibrate"),
    "bias_correction": ("weights", "calibrate"),
    "": ("weights", "calibrate"),
}

#: What a step does to the model; each notes what it did in `state.notes`.
STEPS: MappingProxyType[str, Callable[[Quantization, Recipe], object]] = MappingProxyType(
    {
        "equalize": lambda state, recipe: equalize(state),
        "weights": lambda state, recipe: choose_weight_scales(state, recipe.weight_observer),
        "calibrate": lambda state, recipe: calibrate(state, recipe.observer),
        "share_ranges": lambda state, recipe: share_ranges(state),
        "adaround": lambda state, recipe: round_adaptively(state),
        "bias_correction": lambda state, recipe: correct_biases(state),
    }
)

RECIPES: MappingProxyType[str, Recipe] = MappingProxyType(
    {
        r.name: r
        for r in (
            Recipe("fast", ("weights", "calibrate", "share_ranges")),
            Recipe(
                "default", ("equalize", "weights", "calibrate", "share_ranges", "bias_correction")
            ),
            Recipe(
                "best",
                ("equalize", "weights", "calibrate", "share_ranges", "adaround", "bias_correction"),
                images=1024,
            ),
            # torchvision's script: PyTorch's own observers on the first files of a sorted folder.
            Recipe("torchvision", (), "histogram", images=1024, stratify=False),
        )
    }
)


def get_recipe(recipe: str | Recipe) -> Recipe:
    """Returns the recipe called so, or the one given, checked.

    Raises:
        UnknownNameError: There is no such recipe, or it names an unknown step or observer.
    """
    if isinstance(recipe, Recipe):
        recipe.check()
        return recipe
    check_known(recipe, RECIPES, "recipe")
    return RECIPES[recipe]
