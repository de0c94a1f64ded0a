"""Which layers to look at first."""

from __future__ import annotations

from dataclasses import dataclass

from ..quantize.mixed.damage import Damage
from ..quantize.mixed.sensitivity import Sensitivity
from .compare import Comparison, LayerComparison
from .measures import Figures

#: Outputs rounded this much worse than on the best grid, in decibels, point to a wrong range:
#: calibration on other images costs less than 1, a grid twice as wide as needed costs 6.
WRONG_RANGE_DB = 4.0
#: The same of weights. Adaptive rounding, which rounds some values the farther way on purpose,
#: costs up to 6.
WRONG_WEIGHTS_DB = 8.0


@dataclass(frozen=True)
class Suspect(Figures):
    """A layer, and what speaks against it.

    Attributes:
        name: The layer.
        op: What it computes.
        damage: What the layer, alone in int8, does to the logits.
        wrong_range: Whether its outputs have a range that does not fit their values.
        wrong_weights: Whether its weights have scales that do not fit them.
        avoidable: The part of its noise at the logits, as a share of the signal's power, that
            fitting numbers would not make.
    """

    name: str
    op: str
    damage: Damage
    wrong_range: bool
    wrong_weights: bool
    avoidable: float

    @property
    def wrong(self) -> bool:
        """Whether its range or its scales do not fit."""
        return self.wrong_range or self.wrong_weights


def rank(comparison: Comparison, sensitivity: Sensitivity) -> tuple[Suspect, ...]:
    """Returns all layers, the first to look at first.

    Layers whose numbers do not fit come before all others, in the order of the noise that fitting
    numbers would save: repairing them costs no speed or size. The others follow by the damage that
    each does alone, which only more bits, or float, can reduce.

    Args:
        comparison: Where each layer's values lie in its range.
        sensitivity: What each layer does to the logits, alone in int8, by part.
    """
    layers = {layer.name: layer for layer in comparison.layers}
    unlike = not_its_weights(comparison)
    suspects = []
    for measured in sensitivity.layers:
        layer = layers[measured.name]
        excess = layer.range.excess_db or 0.0
        weights = 0.0 if layer.weight is None or unlike else layer.weight.excess_db
        avoidable = 0.0
        for part, surplus, limit in (
            ("outputs", excess, WRONG_RANGE_DB),
            ("weights", weights, WRONG_WEIGHTS_DB),
        ):
            if surplus > limit and part in measured.int8:
                avoidable += measured.int8[part].noise * (1 - 10 ** (-surplus / 10))
        suspects.append(
            Suspect(
                measured.name,
                measured.op,
                measured.int8["both"],
                excess > WRONG_RANGE_DB,
                weights > WRONG_WEIGHTS_DB,
                avoidable,
            )
        )
    return tuple(sorted(suspects, key=lambda s: (not s.wrong, -s.avoidable, -s.damage.noise)))


def not_its_weights(comparison: Comparison) -> bool:
    """Whether the int8 weights were not rounded from this float model's.

    They were not after quantization-aware training, or with another checkpoint's float model: then
    differences of the weights say nothing about their scales.
    """
    weighted: list[LayerComparison] = [la for la in comparison.layers if la.weight is not None]
    far = [la for la in weighted if la.weight and la.weight.excess_db > WRONG_WEIGHTS_DB]
    return len(far) > max(2, len(weighted) // 2)
