"""The plot of benchmarks/latency.py: how qzoo's fastest runtime compares to the fastest peer."""

from __future__ import annotations

import csv
from pathlib import Path


def plot_ratios(table: Path, picture: Path) -> None:
    """Draws one panel per batch and number of threads.

    Args:
        table: The CSV file that latency.py wrote.
        picture: The PNG file to write.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps state for the process

    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["candidate"] == "qzoo auto"]
    panels = sorted({(int(row["batch"]), int(row["threads"])) for row in rows})
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(3.2 * len(panels) + 2, 0.35 * len(models) + 1.5))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (batch, threads) in zip(axes, panels, strict=True):
        ratios = {
            row["model"]: float(row["ratio"])
            for row in rows
            if (int(row["batch"]), int(row["threads"])) == (batch, threads)
        }
        values = [ratios.get(model, 0.0) for model in models]
        colours = ["#2a7f62" if value <= 1 else "#c0562f" for value in values]
        axis.barh(models, values, color=colours)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_title(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
        axis.set_xlabel("time / fastest peer's")
    axes[0].invert_yaxis()
    figure.suptitle("qzoo's runtime of choice beside the fastest peer (shorter is faster)")
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
