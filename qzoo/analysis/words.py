"""Figures as the findings and the report write them."""

from __future__ import annotations

import html

from ..safe_text import printable

#: Ratios above this, in decibels, are as good as no error at all.
ENDLESS_DB = 80.0


def db(value: float) -> str:
    """Returns a ratio, such as "31.2 dB"."""
    return "no error" if value >= ENDLESS_DB else f"{value:.1f} dB"


def percent(share: float) -> str:
    """Returns a share of 1 in percent, with two digits."""
    return f"{100 * share:.2g} %"


def span(low: float, high: float) -> str:
    """Returns both ends of a range, with three digits."""
    return f"{low:.3g} to {high:.3g}"


def escape(text: object) -> str:
    """Returns text as HTML, in one line, that shows it literally, in attributes too."""
    return html.escape(printable(text))
