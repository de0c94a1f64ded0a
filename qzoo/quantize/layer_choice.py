"""Which layers of any model get quantized, and which stay float and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from ..errors import ArgumentError, QuantizationWarning, warn
from .state import match_layers


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What became of a model's layers.

    Attributes:
        layers: The quantized layers, in the model's order.
        skipped: Layers that could be meant but stay float, and why.
    """

    layers: tuple[Any, ...]
    skipped: MappingProxyType[str, str]

    @property
    def bytes_before(self) -> int:
        """Size of the quantized weights before."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Size of the quantized weights."""
        return sum(layer.bytes_after for layer in self.layers)

    def stays_float(self) -> list[str]:
        """Returns the lines of a report on the layers that were skipped."""
        return [f"{name}: float, {why}" for name, why in self.skipped.items()]


def choose_layers(
    model: nn.Module,
    found: Mapping[str, Any],
    layers: str | Sequence[str] | None,
    obstacle: Callable[[Any], str | None],
    kind: str,
    lacks: str = "",
) -> tuple[list[str], MappingProxyType[str, str]]:
    """Chooses the layers to quantize; a `QuantizationWarning` says which others stay float.

    Args:
        model: The model.
        found: Its layers of the kinds that can be quantized, by name.
        layers: Names or shell patterns of the layers that are asked for; None takes all.
        obstacle: Says why a layer cannot be quantized, or None.
        kind: What they are called.
        lacks: What a layer with an obstacle does not have, in words that follow its name.

    Returns:
        The names of the layers to quantize, and why which others are not.

    Raises:
        ArgumentError: There are none, a pattern matches none, or one that was asked for cannot be
            quantized.
    """
    if not found:
        raise ArgumentError(
            f"This {type(model).__name__} has no float {kind} layers, so there is nothing to "
            "quantize."
        )
    chosen = set(found) if layers is None else match_layers(layers, list(found))
    if not chosen:
        raise ArgumentError("There are no layers to quantize: `layers` is empty.")
    skipped = {n: why for n, m in found.items() if n in chosen and (why := obstacle(m))}
    names = [name for name in found if name in chosen and name not in skipped]
    shown = "; ".join(f"{name!r}{lacks}, because {why}" for name, why in [*skipped.items()][:3])
    if skipped and (layers is not None or not names):
        none = "" if names else "None of the layers fits: "
        raise ArgumentError(f"{none}{len(skipped)} {kind} layers cannot be quantized so: {shown}.")
    if skipped:
        warn(f"{len(skipped)} layers stay float: {shown}.", QuantizationWarning)
    return names, MappingProxyType(skipped)
