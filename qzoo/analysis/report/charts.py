"""The charts of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...quantize.mixed.sensitivity import Sensitivity
from ..compare import Comparison, LayerComparison
from ..experiments import Experiment
from ..measures import Histogram
from ..suspects import Suspect
from ..words import ENDLESS_DB, db
from .svg import Canvas, number, ticks

WIDTH = 960.0


def profile(comparison: Comparison, marked: Sequence[str]) -> str:
    """Draws every layer's signal-to-noise ratio in the order of the forward pass.

    Args:
        comparison: The layers.
        marked: Names of those to point out.
    """
    # Pools and gates round to grids that are not their own to choose.
    layers = [la for la in comparison.layers if la.range.excess_db is not None]
    left, top, bottom, height = 46.0, 26.0, 30.0, 300.0
    canvas = Canvas(WIDTH, height, "Signal-to-noise ratio of every layer, in decibels")
    highest = max(30.0, *(_capped(la.alone.sqnr_db) for la in layers))
    inner = height - top - bottom
    pitch = (WIDTH - left - 8) / len(layers)

    def y(value: float) -> float:
        return top + inner * (1 - max(0.0, min(value, highest)) / highest)

    _rows(canvas, left, [(y(v), f"{v:g} dB") for v in ticks(0, highest)])
    points = []
    for i, layer in enumerate(layers):
        x = left + i * pitch
        alone, own = _capped(layer.alone.sqnr_db), _capped(layer.accumulated.sqnr_db)
        tip = f"{layer.name} ({layer.op}): alone {db(layer.alone.sqnr_db)}, accumulated {db(own)}"
        css = "bad" if layer.name in marked else "one"
        gap = min(1.0, pitch / 5)
        canvas.rect(x + gap, y(alone), pitch - 2 * gap, top + inner - y(alone), css, tip)
        points.append((x + pitch / 2, y(own)))
    canvas.path(points, "two-line")
    _marks(canvas, layers, marked, left, pitch, y)
    canvas.text(left, height - 8, "first layer", "soft")
    canvas.text(WIDTH - 8, height - 8, "last layer", "soft", "end")
    return canvas.to_svg()


def _marks(
    canvas: Canvas, layers: Sequence[LayerComparison], marked: Sequence[str], left: float,
    pitch: float, y: object,
) -> None:  # fmt: skip
    """Writes the names of layers above their bars, as far as there is room."""
    ends: list[float] = []
    for i, layer in enumerate(layers):
        if layer.name not in marked:
            continue
        width = 6.2 * len(layer.name)
        x = left + (i + 0.5) * pitch
        start = min(max(x - width / 2, left), WIDTH - width)
        if ends and start < ends[-1] + 8:
            continue
        ends.append(start + width)
        canvas.text(start, 14, layer.name, "name bad-text")


def damage_bars(ranking: Sequence[Suspect], sensitivity: Sensitivity, count: int = 15) -> str:
    """Draws the layers that do most harm to the logits, one bar each: weights and outputs.

    Args:
        ranking: The layers, in the order to show them.
        sensitivity: Their figures.
        count: How many to show at most.
    """
    by_name = {layer.name: layer for layer in sensitivity.layers}
    shown = [by_name[s.name] for s in ranking[:count]]
    row, left, right = 24.0, 270.0, 210.0
    canvas = Canvas(WIDTH, row * len(shown) + 8, "Noise that each layer alone adds to the logits")
    parts = [
        (la.int8["weights"].noise if "weights" in la.int8 else 0.0, la.int8["outputs"].noise)
        for la in shown
    ]
    largest = max((sum(p) for p in parts), default=0.0) or 1.0
    room = WIDTH - left - right
    for i, (layer, (weights, outputs)) in enumerate(zip(shown, parts, strict=True)):
        y = 4 + i * row
        canvas.text(left - 8, y + 15, _shortened(layer.name), "name", "end")
        first, second = room * weights / largest, room * outputs / largest
        canvas.rect(left, y + 3, first, row - 7, "one", f"weights: {_share(weights)}")
        canvas.rect(left + first, y + 3, second, row - 7, "two", f"outputs: {_share(outputs)}")
        both = layer.int8["both"]
        note = f"{db(both.sqnr_db)}, same answer {both.agreement:.1f} %"
        canvas.text(left + max(first + second, 1) + 8, y + 15, note, "soft")
    return canvas.to_svg()


def keep_float_curve(experiments: Sequence[Experiment]) -> str:
    """Draws how the logits get better, the more layers are kept in float."""
    kinds = {e.kind: e for e in experiments}
    start, bound = kinds["as it is"], kinds["weights in float"]
    kept = [(0, start), *((len(e.layers), e) for e in experiments if e.kind == "keep_float")]
    values = [_capped(e.damage.sqnr_db) for _, e in kept] + [_capped(bound.damage.sqnr_db)]
    low, high = min(0.0, *values), max(values) + 3
    left, top, bottom, height, width = 46.0, 12.0, 40.0, 240.0, 560.0
    canvas = Canvas(width, height, "Logits against the number of layers in float")
    inner = height - top - bottom

    def y(value: float) -> float:
        return top + inner * (1 - (_capped(value) - low) / (high - low))

    _rows(canvas, left, [(y(v), f"{v:g} dB") for v in ticks(low, high, 5)], width)
    pitch = (width - left - 40) / max(len(kept) - 1, 1)
    limit = y(bound.damage.sqnr_db)
    canvas.line(left, limit, width - 8, limit, "bound")
    canvas.text(left + 4, limit - 5, "all weights in float", "soft")
    points = [(left + 20 + i * pitch, y(e.damage.sqnr_db)) for i, (_, e) in enumerate(kept)]
    canvas.path(points, "one-line")
    for (count, experiment), (x, height_) in zip(kept, points, strict=True):
        damage = experiment.damage
        tip = f"{count} in float: {db(damage.sqnr_db)}, same answer {damage.agreement:.1f} %"
        canvas.dot(x, height_, 4.5, "one", tip)
        canvas.text(x, height - 22, str(count), "", "middle")
    canvas.text((left + width) / 2, height - 4, "layers kept in float", "soft", "middle")
    return canvas.to_svg()


def output_histogram(layer: LayerComparison) -> str:
    """Draws a layer's float outputs beside the range that its grid can hold."""
    seen, h = layer.range, layer.histogram
    low, high = min(h.low, seen.low, 0.0), max(h.high, seen.high, 0.0)
    return _histogram(
        h,
        low,
        high,
        (seen.low, seen.high),
        f"Outputs of {layer.name}: {100 * seen.clipped:.3g} % are cut off",
        "range that int8 can hold",
    )


def weight_histogram(layer: LayerComparison) -> str:
    """Draws a layer's float weights in steps of their scale."""
    assert layer.weight is not None
    h = layer.weight.histogram
    low, high = min(h.low, -128.0), max(h.high, 128.0)
    title = f"Weights of {layer.name} in steps of the int8 grid"
    return _histogram(h, low, high, (-127.0, 127.0), title, "integers from -127 to 127")


def _histogram(
    h: Histogram, low: float, high: float, held: tuple[float, float], title: str, note: str
) -> str:
    width, height, bottom, top = 460.0, 190.0, 34.0, 20.0
    canvas = Canvas(width, height, title)
    inner, span = height - top - bottom, (high - low) or 1.0

    def x(value: float) -> float:
        return 8 + (width - 16) * (value - low) / span

    canvas.rect(x(held[0]), top, x(held[1]) - x(held[0]), inner, "held")
    canvas.text((x(held[0]) + x(held[1])) / 2, 13, note, "soft", "middle")
    # Shares span orders of magnitude, so the height is their logarithm.
    filled = [s for s in h.shares if s > 0]
    floor = math.log10(min(filled)) - 0.5
    top_log = math.log10(max(filled))
    step = (h.high - h.low) / len(h.shares)
    for i, share in enumerate(h.shares):
        if not share:
            continue
        start, end = h.low + i * step, h.low + (i + 1) * step
        size = inner * (math.log10(share) - floor) / ((top_log - floor) or 1.0)
        middle = (start + end) / 2
        outside = not held[0] <= middle <= held[1]
        tip = f"{number(start)} to {number(end)}: {100 * share:.3g} %"
        tip += ", cut off" if outside else ""
        bar = max(x(end) - x(start) - 0.6, 1.0)
        canvas.rect(x(start), top + inner - size, bar, size, "bad" if outside else "one", tip)
    canvas.line(8, top + inner, width - 8, top + inner, "axis")
    for value in ticks(low, high, 6):
        canvas.text(x(value), height - 14, number(value), "", "middle")
    return canvas.to_svg()


def _rows(
    canvas: Canvas, left: float, rows: Sequence[tuple[float, str]], width: float = WIDTH
) -> None:
    for y, label in rows:
        canvas.line(left, y, width - 8, y, "grid")
        canvas.text(left - 6, y + 4, label, "", "end")


def _capped(value: float) -> float:
    return min(value, ENDLESS_DB)


def _share(noise: float) -> str:
    return f"{100 * noise:.3g} % of the logits' power"


def _shortened(name: str, most: int = 38) -> str:
    return name if len(name) <= most else f"…{name[-most + 1 :]}"
