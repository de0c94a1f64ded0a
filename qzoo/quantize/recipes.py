"""Recipes: which steps turn a float model into an int8 one, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import ArgumentError, UnknownNameError, did_you_mean
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
        for kind, names, known in (
            ("step", self.steps, STEPS),
            ("observer", (self.observer, self.weight_observer), OBSERVERS),
        ):
            for name in names:
                if name not in known:
                    raise UnknownNameError(
                        f"Unknown {kind} {name!r} in the recipe {self.name!r}: choose from "
                        f"{', '.join(known)}." + did_you_mean(str(name), known)
                    )
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
STEPS: MappingProxyType[str, Callable[[Quantization, Recipe], None]] = MappingProxyType(
    {
        "equalize": lambda state, recipe: equalize(state),
        "weights": lambda state, recipe: choose_weight_scales(state, recipe.weight_observer),
        "calibrate": lambda state, recipe: _calibrate(state, recipe),
        "share_ranges": lambda state, recipe: _share_ranges(state),
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
    if recipe not in RECIPES:
        raise UnknownNameError(
            f"Unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}."
            + did_you_mean(str(recipe), RECIPES)
        )
    return RECIPES[recipe]


def _calibrate(state: Quantization, recipe: Recipe) -> None:
    calibrate(state, recipe.observer)
    state.notes["observer"] = recipe.observer


def _share_ranges(state: Quantization) -> None:
    state.notes["layers_with_shared_range"] = share_ranges(state)
