"""The few pieces of SVG that charts are drawn with, as text for a page that has its own styles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..words import escape


class Canvas:
    """A drawing of fixed inner size that scales with the page.

    Colours come from the page's style sheet, through classes, so that they follow its light or dark
    theme.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        """Begins a drawing.

        Args:
            width: Inner width in pixels.
            height: Inner height in pixels.
            title: What screen readers say of it.
        """
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, css: str, tip: str = ""
    ) -> None:
        """Adds a rectangle, with a tip to show under the pointer."""
        shape = (
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" '
            f'height="{_n(max(height, 0))}" class="{escape(css)}"'
        )
        self._parts.append(f"{shape}><title>{escape(tip)}</title></rect>" if tip else f"{shape}/>")

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """Adds a straight line."""
        self._parts.append(
            f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{escape(css)}"/>'
        )

    def path(self, points: Iterable[tuple[float, float]], css: str) -> None:
        """Adds a line through points."""
        text = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._parts.append(f'<polyline points="{text}" class="{escape(css)}"/>')

    def dot(self, x: float, y: float, radius: float, css: str, tip: str = "") -> None:
        """Adds a filled circle, with a tip to show under the pointer."""
        self._parts.append(
            f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" class="{escape(css)}">'
            f"<title>{escape(tip)}</title></circle>"
        )

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        """Adds a line of text whose start, middle or end is at a point."""
        self._parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" class="{escape(css)}">'
            f"{escape(text)}</text>"
        )

    def to_svg(self) -> str:
        """Returns the drawing."""
        return (
            f'<svg viewBox="0 0 {_n(self.width)} {_n(self.height)}" role="img" '
            f'aria-label="{escape(self.title)}" style="max-width:{_n(self.width)}px">'
            + "".join(self._parts)
            + "</svg>"
        )


def ticks(low: float, high: float, most: int = 6) -> Sequence[float]:
    """Returns round numbers from `low` to `high`, at most so many."""
    if not high > low:
        return [low]
    base = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(base * m for m in (1, 2, 5, 10) if (high - low) / (base * m) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Returns a number as an axis shows it."""
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.1e}"


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
