"""Numbers that options take: click's ranges, bounded where the option says no bound itself.

Python's numbers have no largest one, and floats include NaN, which is below and above nothing: both
pass click's ranges and fail far from the option that they came from.
"""

from __future__ import annotations

import math
from typing import Any

import click

#: Of pictures, epochs, rounds: more than any machine counts to here.
MOST = 2**31 - 1
#: Of a seed, as PyTorch takes it.
MOST_SEED = 2**63 - 1
#: More than any machine has cores; the system may end a process that starts more.
MOST_THREADS = 1024
#: Height and width of pictures in pixels, as for the transforms of an artifact.
MOST_SIZE = 8192


class Whole(click.IntRange):
    """A whole number in a range that ends somewhere."""

    def __init__(self, min: int, max: int = MOST) -> None:
        super().__init__(min, max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Returns the number that the option's text says."""
        number: int = click.INT.convert(value, param, ctx)
        if number > MOST and self.max == MOST:
            self.fail(f"{str(number)[:40]} is far too large.", param, ctx)
        return super().convert(number, param, ctx)

    def _describe_range(self) -> str:
        """Says nothing in help of the common upper end, which nobody meets."""
        return f"x>={self.min}" if self.max == MOST else super()._describe_range()


class Number(click.FloatRange):
    """A number in a range; neither NaN nor an infinity."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the number that the option's text says."""
        try:
            number = super().convert(value, param, ctx)
        except OverflowError:  # a whole number beyond all floats
            self.fail(f"{str(value)[:40]} is far too large.", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number
