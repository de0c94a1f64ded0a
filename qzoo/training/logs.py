"""What a run leaves to look at: log.csv, TensorBoard's event files, the plot of its curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..errors import MissingDependencyError

Row = Mapping[str, Any]


class TensorBoard(AbstractContextManager["TensorBoard"]):
    """Event files for TensorBoard, or nothing.

    Args:
        folder: Where they go; None writes none.
        step: The training step that the run goes on from; figures of later steps, which an
            interrupted run has written, are not shown.

    Raises:
        MissingDependencyError: The package tensorboard is not installed.
    """

    def __init__(self, folder: Path | None, step: int = 0) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingDependencyError(
                '--tensorboard needs the package tensorboard: pip install "qzoo[train]".'
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=step or None)

    def add(self, step: int, **values: float | str) -> None:
        """Writes figures; underscores in their names become slashes, which group the plots."""
        if self._writer is None:
            return
        for name, value in values.items():
            if value != "":
                self._writer.add_scalar(name.replace("_", "/", 1), float(value), step)
        self._writer.flush()

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


def check_plotting() -> None:
    """Checks that `plot_curve` can be called.

    Raises:
        MissingDependencyError: The package matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            '--plot needs the package matplotlib: pip install "qzoo[plot]".'
        ) from None


def plot_curve(path: Path, log: Sequence[Row], title: str) -> None:
    """Draws loss and accuracy over the epochs.

    Args:
        path: A .png file.
        log: Rows of log.csv: `epoch`, `lr`, `loss`, `train_top1` and `test_top1`, the last "" for
            epochs without a measurement.
        title: Stands above the plot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [int(row["epoch"]) for row in log]
    marker = "." if len(log) < 40 else ""
    left.plot(epochs, [float(row["loss"]) for row in log], marker=marker, color="tab:blue")
    left.set(xlabel="epoch", ylabel="training loss")
    left.set_ylim(bottom=0)
    left.yaxis.label.set_color("tab:blue")
    rates = left.twinx()
    rates.step(epochs, [float(row["lr"]) for row in log], where="mid", color="tab:gray", lw=1)
    rates.set_ylabel("learning rate", color="tab:gray")
    rates.set_ylim(bottom=0)
    for name, label, color in (
        ("train_top1", "training", "tab:blue"),
        ("test_top1", "held out", "tab:orange"),
    ):
        seen = [(int(row["epoch"]), float(row[name])) for row in log if row[name] != ""]
        if seen:
            label = f"{label}, {seen[-1][1]:.2f} % at the end"
            right.plot(*zip(*seen, strict=True), marker=marker, label=label, color=color)
    right.set(xlabel="epoch", ylabel="top-1, %")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
