"""The charts of benchmarks/latency.py: qzoo beside the fastest peer, and shares of the peak."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

#: What is drawn beside the fastest peer.
OWN = {"qzoo auto": "#2a7f62", "qzoo libqzoo": "#a8cdbd"}


def plot_ratios(table: Path, picture: Path) -> None:
    """Draws the times of `auto` and of libqzoo, divided by the fastest peer's.

    Args:
        table: The CSV file that latency.py wrote.
        picture: The PNG file to write.
    """
    series = dict.fromkeys(OWN, "ratio")
    title = "qzoo beside the fastest peer (shorter is faster)"
    _draw(table, picture, series, title, "time / fastest peer's")


def plot_shares(table: Path, picture: Path) -> None:
    """Draws how much of the machine's int8 products `auto`, libqzoo and the fastest peer reach."""
    series = dict.fromkeys((*OWN, "fastest peer"), "share_of_peak")
    title = "Share of the machine's int8 matrix product (longer is faster)"
    _draw(table, picture, series, title, "products / peak")


def _draw(table: Path, picture: Path, series: Mapping[str, str], title: str, label: str) -> None:
    """Draws one panel per batch and number of threads, and a bar per model and candidate."""
    from matplotlib.figure import Figure  # not pyplot, which keeps state for the process

    found = _read(table)
    panels = sorted({(batch, threads) for _, batch, threads in found})
    models = list(dict.fromkeys(model for model, _, _ in found))
    thick = 0.8 / len(series)
    size = (3.2 * len(panels) + 2, (0.2 + 0.15 * len(series)) * len(models) + 1.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (batch, threads) in zip(axes, panels, strict=True):
        for number, (candidate, column) in enumerate(series.items()):
            rows = [found.get((model, batch, threads), {}).get(candidate) for model in models]
            values = [float(row[column]) if row else 0.0 for row in rows]
            places = [
                place + (number - (len(series) - 1) / 2) * thick for place in range(len(models))
            ]
            colour = OWN.get(candidate, "#c0562f")
            axis.barh(places, values, thick, color=colour, label=candidate)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_title(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
        axis.set_xlabel(label)
    axes[0].set_yticks(range(len(models)), models)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(title)
    figure.savefig(picture, dpi=120)


def _read(table: Path) -> dict[tuple[str, int, int], dict[str, dict[str, str]]]:
    """Returns the rows by configuration and candidate; the fastest peer under that name too."""
    found: dict[tuple[str, int, int], dict[str, dict[str, str]]] = {}
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            here = found.setdefault((row["model"], int(row["batch"]), int(row["threads"])), {})
            here[row["candidate"]] = row
            if row["candidate"] == row["best_peer"]:
                here["fastest peer"] = row
    return found
